"""Groups of interactions for which metrics are reported: of items, of users, or of rows.

Groups are defined by the training data; a row of validation or test belongs to the group of its
item, its user, or its own value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recbole_adv.environment.source import (
    USER_GROUPS,
    environments_of,
    mass_quantiles,
    user_groups,
)
from recbole_adv.errors import ConfigError, suggest

BY_USER = ("user_activity", "user_group")
BY_ITEM = ("item_popularity",)
_NAMES = (*BY_ITEM, *BY_USER, "time", "environment")
_MAX_GROUPS = 50


@dataclass(frozen=True)
class Grouping:
    """One way to cut rows into groups.

    name: as in ``eval_groups``; labels: of the groups; field: the column of a row that decides;
    code: [number of ids] int64, the group of each id of ``field``; cuts: [groups - 1], ascending,
    the least value of each group but the first. One of ``code`` and ``cuts`` is None.
    """

    name: str
    labels: tuple[str, ...]
    field: str
    code: Tensor | None = None
    cuts: Tensor | None = None

    def of(self, rows) -> Tensor:
        """The group of each row of an Interaction.   Returns [N] int64."""
        if self.field not in rows:
            raise ConfigError(
                f"{self.name!r} in eval_groups needs the column {self.field!r} of each row, got rows "
                f"of {', '.join(rows.columns)} (a file of test_sets has only users and items); leave "
                "it out, or write benchmark_filename: [train, valid, test, ood] and test_sets: "
                "{'ood': 'ood'}"
            )
        value = rows[self.field]
        if self.code is not None:
            return self.code[value]
        return torch.bucketize(_number(value), self.cuts, right=True)


def groupings(config, train) -> list[Grouping]:
    """The groupings of ``eval_groups``.

    train: RecBole's training dataset.
    Raises :class:`ConfigError` for a name that is none of ours and no usable column.
    """
    return [_grouping(name, config, train) for name in config["eval_groups"] or ()]


def _grouping(name: str, config, train) -> Grouping:
    key_of_n, source, column = "eval_n_groups", name, name
    if name == "environment":
        key_of_n, source = "n_environments", config["environment_source"]
        column = config["environment_column"]
        if source not in (*BY_USER, *BY_ITEM, "time", "column"):
            raise ConfigError(
                "eval_groups: [environment] needs environments that rows of validation and test "
                f"belong to as well, got environment_source {source!r}; write the name of a column, "
                "or item_popularity, user_activity, user_group or time"
            )
    balanced = name == "environment" and bool(config["environment_balanced"])
    if source == "user_group" and not balanced:
        return Grouping(name, USER_GROUPS, train.uid_field, user_groups(train)[0])
    number = {"n_environments": config[key_of_n], "key_of_n": key_of_n}
    if source in BY_USER or source in BY_ITEM:
        return _of_ids(name, source, number, balanced, train)
    return _of_column(name, train.time_field if source == "time" else column, number, train)


def _of_ids(name: str, source: str, number: dict[str, Any], balanced: bool, train) -> Grouping:
    """Groups of users or items, as the environments of that name; one without rows is in group 0."""
    field = train.uid_field if source in BY_USER else train.iid_field
    group = environments_of(train, source=source, balanced=balanced, **number)
    code = torch.zeros(train.num(field), dtype=torch.int64)
    code[train.inter_feat[field]] = group
    return Grouping(name, _numbers(int(group.max()) + 1), field, code)


def _of_column(name: str, column: str | None, number: dict[str, Any], train) -> Grouping:
    table, key = _table_of(name, column, train)
    values = table[column]
    kind = train.field2type[column].value
    if kind == "token":
        labels = tuple(str(label) for label in train.field2id_token[column])
        if len(labels) > _MAX_GROUPS:
            raise ConfigError(
                f"eval_groups: {column!r} has {len(labels)} values, which is more than "
                f"{_MAX_GROUPS}; choose a column with fewer"
            )
        code = torch.arange(len(labels)) if key is None else values
        return Grouping(name, labels, column if key is None else key, code)
    in_training = values if key is None else values[train.inter_feat[key]]
    cuts = _cuts(_number(in_training), number)
    labels = _numbers(len(cuts) + 1)
    if key is None:
        return Grouping(name, labels, column, cuts=cuts)
    return Grouping(name, labels, key, torch.bucketize(_number(values), cuts, right=True))


def _cuts(values: Tensor, number: dict[str, Any]) -> Tensor:
    """The least value of every group but the first; groups have equal mass in training."""
    group = mass_quantiles(values, **number)
    return torch.stack([values[group == g].min() for g in range(1, int(group.max()) + 1)])


def _number(values: Tensor) -> Tensor:
    """A float column; RecBole's numerical_features are pairs (value, bucket)."""
    return values.reshape(len(values), -1)[:, 0]


def _numbers(n: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(n))


def _table_of(name: str, column: str | None, train) -> tuple:
    """The table of a token or float column, and the id by which rows are joined to it."""
    tables = [
        (train.inter_feat, None),
        (train.user_feat, train.uid_field),
        (train.item_feat, train.iid_field),
    ]
    usable = []
    for table, key in tables:
        if table is None:
            continue
        for found in table.columns:
            of_type = train.field2type.get(found)
            if of_type is not None and of_type.value in ("token", "float"):
                if found == column:
                    return table, key
                usable.append(found)
    known = [*_NAMES, *usable]
    raise ConfigError(
        f"eval_groups takes {', '.join(_NAMES)} or a token or float column that is loaded, got "
        f"{name!r}{suggest(str(name), known)}; the columns are {', '.join(usable)}"
    )
