"""Which parameters of a model are attacked: its embedding tables, or those that are named."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from recbole_adv.errors import ConfigError

LEFT_OUT = ("position", "first_order", "lambda", "relation", "trans_w", "k_embedding")
"""Tables that are no users, items or features, where nothing else is asked for."""


@dataclass(frozen=True, eq=False)
class Table:
    """A matrix whose rows are perturbed.

    Attributes:
        name: of the parameter in the model.
        modules: the ``nn.Embedding`` that look rows up in it; none for the weight of a Linear.
        padding: the row that stands for nothing and is never perturbed, None without one.
        kind: ``user`` or ``item`` where the rows are the users or items, else None.
    """

    name: str
    parameter: nn.Parameter
    modules: tuple[nn.Module, ...] = ()
    padding: int | None = None
    kind: str | None = None


def find_tables(
    model: nn.Module,
    parameters: Collection[nn.Parameter],
    targets: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> list[Table]:
    """The tables among ``parameters``, in the order of the model.

    Without ``targets`` every ``nn.Embedding`` and ``nn.EmbeddingBag`` wider than 1; with them every
    matrix whose name one of these regular expressions is found in. ``exclude``: regular expressions
    of those to leave out; None leaves out ``LEFT_OUT``, where no targets are given.

    Raises :class:`ConfigError` if nothing is left, or one of ``targets`` finds nothing.
    """
    matrices, modules = _matrices(model, parameters), _modules_by_weight(model)
    if targets is None:
        named = [n for n, p in matrices.items() if id(p) in modules and p.shape[1] > 1]
    else:
        named = _matching(targets, matrices)
    if exclude is None:
        exclude = LEFT_OUT if targets is None else ()
    kept = [name for name in named if not any(re.search(regex, name) for regex in exclude)]
    if not kept:
        raise ConfigError(_nothing(model, matrices, named, targets))
    return [_table(model, name, matrices[name], modules) for name in kept]


def embedding_tables(model: nn.Module, parameters: Collection[nn.Parameter]) -> list[Table]:
    """Every table that an ``nn.Embedding`` or ``nn.EmbeddingBag`` looks up, attacked or not."""
    modules = _modules_by_weight(model)
    matrices = _matrices(model, parameters)
    return [_table(model, n, p, modules) for n, p in matrices.items() if id(p) in modules]


def _matrices(model: nn.Module, parameters: Collection[nn.Parameter]) -> dict[str, nn.Parameter]:
    owned = {id(p) for p in parameters}
    named = model.named_parameters()
    return {n: p for n, p in named if p.dim() >= 2 and p.requires_grad and id(p) in owned}


def _modules_by_weight(model: nn.Module) -> dict[int, list[nn.Module]]:
    found: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            found.setdefault(id(module.weight), []).append(module)
    return found


def _matching(targets: Sequence[str], matrices: dict[str, nn.Parameter]) -> list[str]:
    for regex in targets:
        if not any(re.search(regex, name) for name in matrices):
            raise ConfigError(
                f"embedding_attack_targets: {regex!r} is found in the name of no matrix; there are "
                + _described(matrices)
            )
    return [name for name in matrices if any(re.search(regex, name) for regex in targets)]


def _nothing(model, matrices, named, targets) -> str:
    name = type(model).__name__
    if named:
        return (
            f"embedding_attack_exclude leaves none of {', '.join(named)} to attack in {name}; write "
            "embedding_attack_exclude: [] or name the tables in embedding_attack_targets"
        )
    items = _count(model, "n_items")
    example = next((n for n, p in matrices.items() if p.shape[0] == items), None)
    example = example or next(iter(matrices), None)
    if example is None:
        return f"embedding_attack finds nothing to attack in {name}: no parameter of it is a matrix"
    return (
        f"embedding_attack finds no embedding table in {name}; write the names of matrices whose rows "
        f"it is to perturb, as embedding_attack_targets: ['{re.escape(example)}']; there are "
        + _described(matrices)
    )


def _described(matrices: dict[str, nn.Parameter]) -> str:
    return ", ".join(f"{name} {list(p.shape)}" for name, p in matrices.items()) or "none"


def _table(model: nn.Module, name: str, parameter: nn.Parameter, modules) -> Table:
    own = tuple(modules.get(id(parameter), ()))
    kind = _kind(model, name, parameter.shape[0])
    padding = next((m.padding_idx for m in own if m.padding_idx is not None), None)
    if padding is None and kind is not None:
        padding = 0  # RecBole's number for no user and no item
    return Table(name, parameter, own, padding, kind)


def _kind(model: nn.Module, name: str, n_rows: int) -> str | None:
    """By the number of rows, and by name where users and items are equally many."""
    users, items = _count(model, "n_users"), _count(model, "n_items")
    # BERT4Rec and S3Rec have one row more, for the mask; items are the first of the entities.
    of_items = {items, items and items + 1, _count(model, "n_entities")} - {None}
    if n_rows == users and (n_rows not in of_items or "user" in name):
        return "user"
    return "item" if n_rows in of_items else None


def _count(model: nn.Module, attribute: str) -> int | None:
    """``n_users`` and the like of the model, or of the backbone that it trains."""
    counts = (getattr(module, attribute, None) for module in model.modules())
    return next((int(count) for count in counts if count is not None), None)
