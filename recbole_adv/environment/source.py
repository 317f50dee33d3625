"""Environments that are known before training: popularity, activity, time, a column, chance.

A source is one function (dataset, request) -> [N], entered in :data:`SOURCES`. It sees the built
training dataset only, so validation and test interactions have no say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recbole_adv.errors import ConfigError, suggest

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset


@dataclass(frozen=True)
class Request:
    """What is asked of a source."""

    n_environments: int | None
    column: str | None = None
    seed: int = 0


def environments_of(
    dataset: Dataset,
    *,
    source: str,
    n_environments: int | None = None,
    column: str | None = None,
    seed: int = 0,
) -> Tensor:
    """The environment of each training row.

    dataset: RecBole's training dataset, built; source: a name of :data:`SOURCES`;
    n_environments: E, None only for a token column; column: for 'column'; seed: for 'random'.
    Returns [N] int64 in 0..E-1 in the order of ``dataset.inter_feat``; no environment is empty.
    """
    if source not in SOURCES:
        raise ConfigError(
            f"the source of environments must be one of {', '.join(SOURCES)}, got {source!r}"
            + (suggest(source, SOURCES) or "; write item_popularity")
        )
    return SOURCES[source](dataset, Request(n_environments, column, seed))


def mass_quantiles(*keys: Tensor, n_environments: int | None) -> Tensor:
    """Cut ordered rows into environments of nearly equal numbers of rows.

    Rows are ordered by the keys (the first counts most) and rows with equal keys stay together. A
    group whose rows stand at c-m+1..c of N goes where its middle falls, floor(E (c - m/2) / N);
    where a large group would leave an environment empty, the cuts move to the next groups.

    keys: [N] each; n_environments: E.   Returns [N] int64, 0 the smallest keys, none empty.
    """
    n_environments = _at_least_two(n_environments)
    code = torch.zeros_like(keys[0], dtype=torch.int64)
    for key in keys:
        distinct, rank = torch.unique(key, return_inverse=True)
        # Made dense at each key, so that the product stays below N^2.
        _, code = torch.unique(code * len(distinct) + rank, return_inverse=True)
    mass = torch.bincount(code)
    n_rows, n_groups = len(code), len(mass)
    if n_groups < n_environments:
        raise ConfigError(
            f"{n_environments} environments cannot be cut from the {n_groups} different values of "
            f"the training rows, got n_environments={n_environments}; "
            + (f"write {n_groups} or less" if n_groups > 1 else "choose another source")
        )
    middle = 2 * mass.cumsum(0) - mass
    wanted = middle * n_environments // (2 * n_rows)
    order = torch.arange(1, n_environments, device=code.device)
    first = torch.searchsorted(wanted, order)
    first = (first - order).clamp(min=0).cummax(0).values + order
    first = torch.minimum(first, n_groups - n_environments + order)
    return torch.searchsorted(first, code, right=True)


def _at_least_two(n_environments: int | None) -> int:
    if n_environments is None or n_environments < 2:
        raise ConfigError(
            f"n_environments must be at least 2, got {n_environments}; write n_environments: 2"
        )
    return n_environments


def _by_count(idx: Tensor, n_environments: int | None) -> Tensor:
    """Mass quantiles of how often each id stands in ``idx`` [N], ties broken by the id."""
    return mass_quantiles(torch.bincount(idx)[idx], idx, n_environments=n_environments)


def item_popularity(dataset: Dataset, request: Request) -> Tensor:
    """How many training rows the row's item has; 0 is the long tail.

    In a sequential dataset the row's item is the target, and the counts are those of targets.
    """
    return _by_count(dataset.inter_feat[dataset.iid_field], request.n_environments)


def user_activity(dataset: Dataset, request: Request) -> Tensor:
    """How many training rows the row's user has; 0 is the least active users."""
    return _by_count(dataset.inter_feat[dataset.uid_field], request.n_environments)


def time(dataset: Dataset, request: Request) -> Tensor:
    """When the interaction (of a sequential dataset: the target) took place; 0 is the earliest.

    RecBole stores timestamps as float32: Unix seconds are rounded to multiples of 128.
    """
    field = dataset.time_field
    if field is None or field not in dataset.inter_feat:
        loaded = [c for c in _columns(dataset) if c in dataset.inter_feat]
        raise ConfigError(
            f"the source time needs the timestamps of the interactions, got only the columns "
            f"{', '.join(loaded)}; write load_col: "
            f"{{inter: [{', '.join([*loaded, field or 'timestamp'])}]}}"
            + ("" if field else " and TIME_FIELD: timestamp")
        )
    return mass_quantiles(*_keys(dataset.inter_feat[field]), n_environments=request.n_environments)


def column(dataset: Dataset, request: Request) -> Tensor:
    """A column of the interactions, users or items, looked for in this order.

    A token column: one environment for each value that training rows have (a missing value, [PAD],
    is a value), in the order of RecBole's ids. A float column: mass quantiles.
    """
    values, kind = _column_values(dataset, request.column)
    if kind == "float":
        return mass_quantiles(*_keys(values), n_environments=request.n_environments)
    distinct, environment = torch.unique(values, return_inverse=True)
    found, wanted = len(distinct), request.n_environments
    if found < 2:
        raise ConfigError(
            f"column {request.column!r} cannot give environments, got {found} value in the "
            "training rows; choose a column with at least 2"
        )
    if wanted is not None and wanted != found:
        raise ConfigError(
            f"n_environments must be the number of values of column {request.column!r} in the "
            f"training rows, {found}, got {wanted}; write n_environments: {found} or leave it out"
        )
    return environment


def random(dataset: Dataset, request: Request) -> Tensor:
    """Chance, by the seed; sizes differ by at most 1. The control for every other source."""
    n_environments, n_rows = _at_least_two(request.n_environments), len(dataset.inter_feat)
    if n_environments > n_rows:
        raise ConfigError(
            f"n_environments must be at most the number of training rows, {n_rows}, "
            f"got {n_environments}; write n_environments: 2"
        )
    generator = torch.Generator().manual_seed(request.seed)
    return torch.randperm(n_rows, generator=generator) % n_environments


SOURCES: dict[str, Callable[[Dataset, Request], Tensor]] = {
    "item_popularity": item_popularity,
    "user_activity": user_activity,
    "time": time,
    "column": column,
    "random": random,
}


def _keys(values: Tensor) -> tuple[Tensor, ...]:
    """The keys of a float column: RecBole's numerical_features are pairs (value, bucket)."""
    return values.reshape(len(values), -1).unbind(dim=1)


def _tables(dataset: Dataset) -> list[tuple]:
    """(features, the id in a training row by which they are joined) of the tables there are."""
    rows = dataset.inter_feat
    tables = [(rows, None)]
    if dataset.user_feat is not None:
        tables.append((dataset.user_feat, rows[dataset.uid_field]))
    if dataset.item_feat is not None:
        tables.append((dataset.item_feat, rows[dataset.iid_field]))
    return tables


def _kind(dataset: Dataset, name: str) -> str:
    return dataset.field2type[name].value if name in dataset.field2type else "unknown"


def _columns(dataset: Dataset) -> list[str]:
    names = dict.fromkeys(name for features, _ in _tables(dataset) for name in features.columns)
    return [name for name in names if _kind(dataset, name) in ("token", "float")]


def _column_values(dataset: Dataset, name: str | None) -> tuple[Tensor, str]:
    """The column's value in each training row, and its RecBole type: token or float."""
    usable = _columns(dataset)
    if name in usable:
        for features, idx in _tables(dataset):
            if name in features:
                values = features[name]
                return (values if idx is None else values[idx]), _kind(dataset, name)
    raise ConfigError(
        f"the source column needs the name of a token or float column, got {name!r}"
        + (suggest(name, usable) if name else "")
        + f"; write one of {', '.join(usable)}"
    )
