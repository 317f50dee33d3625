"""Further test sets that are files beside the data set, as parts of it."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_adv.data.id_file import is_path, read_ids
from recbole_adv.errors import ConfigError


def file_parts(config, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The files of ``test_sets``, by the names given there.

    parts: RecBole's datasets, train first. Rows with a user or an item that the data do not have
    cannot be ranked and are left out, with a warning that says how many.

    Raises:
        ConfigError: a name is that of a part, or none of a file nor of a part.
    """
    train, found = parts["train"], {}
    for name, where in (config["test_sets"] or {}).items():
        if where in parts:
            continue
        if not is_path(where):
            raise ConfigError(
                f"test_sets names {where!r} for {name}, which is neither a file nor a part of the "
                f"data; the parts are {', '.join(parts)}"
            )
        if name in parts:
            raise ConfigError(
                f"test_sets calls a file {name!r}, which is a part of the data; write another name"
            )
        ids = read_ids(where, train, "test_sets")
        if ids.n_unknown:
            getLogger().warning(
                "test set %s: %d of the %d rows of %s name a user or an item that the data do not "
                "have, and are left out",
                *(name, ids.n_unknown, ids.n_rows, where),
            )
        columns = {train.uid_field: ids.user, train.iid_field: ids.item}
        rows = {field: torch.from_numpy(values) for field, values in columns.items()}
        found[name] = train.copy(Interaction(rows))
    return found
