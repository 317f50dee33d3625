"""Where a model is to be perturbed, decided by an audit of the first batch."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger

from recbole_adv.errors import ConfigError
from recbole_adv.technique.attack.audit import Coverage
from recbole_adv.technique.attack.lookups import LookupPlace
from recbole_adv.technique.attack.weights import WeightPlace


def choose_place(
    found: Sequence[Coverage], scope: str, rows: str, model: str
) -> WeightPlace | LookupPlace | None:
    """The place for an attack on the tables that have a gradient; None where none has one.

    On tables it is enough to write the rows that a batch looks up, if lookups carry the whole
    gradient (``rows: touched``); graph models and full softmaxes read all rows.

    Raises :class:`ConfigError` where the scope ``sample`` would miss part of the gradient, or
    ``rows: looked_up`` names a table that is not looked up.
    """
    of_loss = [row for row in found if row.gradient_norm is not None]
    for row in found:
        if row.gradient_norm is None:
            getLogger().info(
                "embedding_attack leaves out %s, which has no gradient", row.table.name
            )
    if not of_loss:
        return None
    tables = [row.table for row in of_loss]
    if scope == "sample":
        for row in of_loss:
            if not row.by_lookup:
                raise ConfigError(
                    f"embedding_attack_scope: sample perturbs lookups, and {row.direct_frac:.2g} of the "
                    f"gradient of {row.table.name} does not come through lookups in {model}; write "
                    "embedding_attack_scope: row"
                )
        place, where = LookupPlace(tables), ["each lookup"] * len(tables)
    else:
        by_lookup = [_by_lookup(row, rows, model) for row in of_loss]
        place = WeightPlace(tables, by_lookup)
        where = ["rows looked up" if lookup else "all rows" for lookup in by_lookup]
    shown = ", ".join(f"{table.name} ({what})" for table, what in zip(tables, where))
    getLogger().info("embedding_attack perturbs %s", shown)
    return place


def _by_lookup(row: Coverage, rows: str, model: str) -> bool:
    if rows == "looked_up" and not row.n_looked_up:
        raise ConfigError(
            f"embedding_attack_rows: looked_up needs lookups, and {row.table.name} of {model} is not "
            "looked up; write touched or all"
        )
    return rows == "looked_up" or (rows == "touched" and row.by_lookup)
