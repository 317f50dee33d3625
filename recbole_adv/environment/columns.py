"""The columns of a RecBole dataset, seen from its training rows."""

from __future__ import annotations

from torch import Tensor

from recbole_adv.errors import ConfigError, suggest


def keys_of(values: Tensor) -> tuple[Tensor, ...]:
    """The keys of a float column: RecBole's numerical_features are pairs (value, bucket)."""
    return values.reshape(len(values), -1).unbind(dim=1)


def tables(dataset) -> list[tuple]:
    """(features, the id in a training row by which they are joined) of the tables there are."""
    rows = dataset.inter_feat
    found = [(rows, None)]
    if dataset.user_feat is not None:
        found.append((dataset.user_feat, rows[dataset.uid_field]))
    if dataset.item_feat is not None:
        found.append((dataset.item_feat, rows[dataset.iid_field]))
    return found


def kind_of(dataset, name: str) -> str:
    """RecBole's type of a column: token, float, token_seq, float_seq."""
    return dataset.field2type[name].value if name in dataset.field2type else "unknown"


def columns_of(dataset, kinds: tuple[str, ...] = ("token", "float")) -> list[str]:
    """The columns of these types, in the interactions, the users and the items."""
    names = dict.fromkeys(name for features, _ in tables(dataset) for name in features.columns)
    return [name for name in names if kind_of(dataset, name) in kinds]


def column_values(
    dataset, name: str | None, source: str, kinds: tuple[str, ...] = ("token", "float")
) -> tuple[Tensor, str]:
    """The column's value in each training row, and its type.

    source: what needs it, for the message of the :class:`ConfigError` where there is none.
    """
    usable = columns_of(dataset, kinds)
    if name in usable:
        for features, idx in tables(dataset):
            if name in features:
                values = features[name]
                return (values if idx is None else values[idx]), kind_of(dataset, name)
    words = " or ".join(kinds) if len(kinds) < 3 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    raise ConfigError(
        f"the source {source} needs the name of a {words} column, got {name!r}"
        + (suggest(name, usable) if name else "")
        + f"; write one of {', '.join(usable)}"
    )
