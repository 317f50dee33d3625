"""Environments that are known before training: popularity, activity, tastes, time, columns, chance.

A source is one function (dataset, request) -> [N], entered in :data:`SOURCES`. It sees the built
training dataset only, so validation and test interactions have no say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recbole_adv.environment.columns import column_values, columns_of, keys_of
from recbole_adv.environment.environment_file import read_environments
from recbole_adv.environment.kmeans import kmeans_environments
from recbole_adv.errors import ConfigError, suggest

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset


@dataclass(frozen=True)
class Request:
    """What is asked of a source: the keys ``environment_*``.

    balanced: equal mass also where the source has another measure; features: of 'kmeans'; file:
    of 'inferred'; key_of_n: what the configuration calls their number.
    """

    n_environments: int | None
    column: str | None = None
    seed: int = 0
    balanced: bool = False
    features: Sequence[str] | None = None
    file: str | None = None
    key_of_n: str = "n_environments"


def environments_of(dataset: Dataset, *, source: str, **asked) -> Tensor:
    """The environment of each training row.

    dataset: RecBole's training dataset, built; source: a name of :data:`SOURCES`; asked: the fields
    of :class:`Request`; n_environments is None only where the source has its own number.
    Returns [N] int64 in 0..E-1 in the order of ``dataset.inter_feat``; no environment is empty.
    """
    if source not in SOURCES:
        raise ConfigError(
            f"the source of environments must be one of {', '.join(SOURCES)}, got {source!r}"
            + (suggest(source, SOURCES) or "; write item_popularity")
        )
    asked.setdefault("n_environments", None)
    return SOURCES[source](dataset, Request(**asked))


def mass_quantiles(
    *keys: Tensor, n_environments: int | None, key_of_n: str = "n_environments"
) -> Tensor:
    """Cut ordered rows into environments of nearly equal numbers of rows.

    Rows are ordered by the keys (the first counts most) and rows with equal keys stay together. A
    group whose rows stand at c-m+1..c of N goes where its middle falls, floor(E (c - m/2) / N);
    where a large group would leave an environment empty, the cuts move to the next groups.

    keys: [N] each; n_environments: E; key_of_n: its name in errors.
    Returns [N] int64, 0 the smallest keys, none empty.
    """
    n_environments = at_least_two(n_environments, key_of_n)
    code = torch.zeros_like(keys[0], dtype=torch.int64)
    for key in keys:
        distinct, rank = torch.unique(key, return_inverse=True)
        # Made dense at each key, so that the product stays below N^2.
        _, code = torch.unique(code * len(distinct) + rank, return_inverse=True)
    mass = torch.bincount(code)
    n_rows, n_groups = len(code), len(mass)
    if n_groups < n_environments:
        raise ConfigError(
            f"{n_environments} parts cannot be cut from the {n_groups} different values of the "
            f"training rows, got {key_of_n}={n_environments}; "
            + (f"write {n_groups} or less" if n_groups > 1 else "choose another source or column")
        )
    middle = 2 * mass.cumsum(0) - mass
    wanted = middle * n_environments // (2 * n_rows)
    order = torch.arange(1, n_environments, device=code.device)
    first = torch.searchsorted(wanted, order)
    first = (first - order).clamp(min=0).cummax(0).values + order
    first = torch.minimum(first, n_groups - n_environments + order)
    return torch.searchsorted(first, code, right=True)


def at_least_two(n_environments: int | None, key: str = "n_environments") -> int:
    if n_environments is None or n_environments < 2:
        raise ConfigError(f"{key} must be at least 2, got {n_environments}; write {key}: 2")
    return n_environments


def _by_count(idx: Tensor, request: Request) -> Tensor:
    """Mass quantiles of how often each id stands in ``idx`` [N], ties broken by the id."""
    n, key = request.n_environments, request.key_of_n
    return mass_quantiles(torch.bincount(idx)[idx], idx, n_environments=n, key_of_n=key)


def item_popularity(dataset: Dataset, request: Request) -> Tensor:
    """How many training rows the row's item has; 0 is the long tail.

    In a sequential dataset the row's item is the target, and the counts are those of targets.
    """
    return _by_count(dataset.inter_feat[dataset.iid_field], request)


def user_activity(dataset: Dataset, request: Request) -> Tensor:
    """How many training rows the row's user has; 0 is the least active users."""
    return _by_count(dataset.inter_feat[dataset.uid_field], request)


def user_group(dataset: Dataset, request: Request) -> Tensor:
    """S-DRO's groups of users (:func:`user_groups`); ``balanced``: mass quantiles of the share."""
    user = dataset.inter_feat[dataset.uid_field]
    if request.balanced:
        _, share = user_groups(dataset)
        return mass_quantiles(share[user], user, n_environments=request.n_environments)
    if request.n_environments not in (None, 3):
        raise ConfigError(
            "user_group has 3 environments (niche, diverse, blockbuster), got n_environments "
            f"{request.n_environments}; write n_environments: 3, or environment_balanced: True"
        )
    environment = user_groups(dataset)[0][user]
    found = torch.bincount(environment, minlength=3)
    if int(found.min()) == 0:
        sizes = ", ".join(f"{n} {name}" for n, name in zip(found.tolist(), USER_GROUPS))
        raise ConfigError(
            f"user_group finds no row of one group (of the training rows {sizes}); write "
            "environment_balanced: True"
        )
    return environment


def user_groups(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The group of each user by the share r of popular items in his training rows, and r.

    Popular is the fifth of the items with most rows. 0 niche (r < 0.6), 1 diverse (r < 0.8), 2
    blockbuster (Wen et al., WWW 2022, with the bounds of anzhang314/InvCF at f3e77ad).

    Returns [U] int64 and [U] float64; 0 for a user without rows.
    """
    user, item = (dataset.inter_feat[f] for f in (dataset.uid_field, dataset.iid_field))
    count = torch.bincount(item)
    popular = torch.zeros(len(count), dtype=torch.bool)
    n_popular = -(-int((count > 0).sum()) // 5)
    popular[count.argsort(descending=True, stable=True)[:n_popular]] = True
    n_rows = torch.bincount(user, minlength=dataset.user_num)
    n_hits = torch.bincount(user[popular[item]], minlength=dataset.user_num)
    # In whole numbers: 3 of 5 is no less than 0.6.
    at_least_3, at_least_4 = 5 * n_hits >= 3 * n_rows, 5 * n_hits >= 4 * n_rows
    group = (at_least_3.long() + at_least_4.long()) * (n_rows > 0)
    return group, n_hits / n_rows.clamp(min=1).double()


def time(dataset: Dataset, request: Request) -> Tensor:
    """When the interaction (of a sequential dataset: the target) took place; 0 is the earliest.

    RecBole stores timestamps as float32: Unix seconds are rounded to multiples of 128.
    """
    field = dataset.time_field
    if field is None or field not in dataset.inter_feat:
        loaded = [c for c in columns_of(dataset) if c in dataset.inter_feat]
        raise ConfigError(
            f"the source time needs the timestamps of the interactions, got only the columns "
            f"{', '.join(loaded)}; write load_col: "
            f"{{inter: [{', '.join([*loaded, field or 'timestamp'])}]}}"
            + ("" if field else " and TIME_FIELD: timestamp")
        )
    return mass_quantiles(
        *keys_of(dataset.inter_feat[field]), n_environments=request.n_environments
    )


def column(dataset: Dataset, request: Request) -> Tensor:
    """A column of the interactions, users or items, looked for in this order.

    A token column: one environment for each value that training rows have (a missing value, [PAD],
    is a value), in the order of RecBole's ids. A float column: mass quantiles.
    """
    values, kind = column_values(dataset, request.column, "column")
    if kind == "float":
        return mass_quantiles(*keys_of(values), n_environments=request.n_environments)
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


def kmeans(dataset: Dataset, request: Request) -> Tensor:
    """Clusters of what is known of the rows (:mod:`recbole_adv.environment.kmeans`)."""
    n_environments = at_least_two(request.n_environments)
    return kmeans_environments(
        dataset, n_environments, request.features, request.seed, request.balanced
    )


def inferred(dataset: Dataset, request: Request) -> Tensor:
    """What another run inferred (:mod:`recbole_adv.environment.environment_file`)."""
    if request.file is None:
        raise ConfigError(
            "the source inferred reads a file, got environment_file None; write the "
            "environments.inter of a run of EIIL or InvPref"
        )
    return read_environments(request.file, dataset, request.n_environments)


def random(dataset: Dataset, request: Request) -> Tensor:
    """Chance, by the seed; sizes differ by at most 1. The control for every other source."""
    n_environments, n_rows = at_least_two(request.n_environments), len(dataset.inter_feat)
    if n_environments > n_rows:
        raise ConfigError(
            f"n_environments must be at most the number of training rows, {n_rows}, "
            f"got {n_environments}; write n_environments: 2"
        )
    generator = torch.Generator().manual_seed(request.seed)
    return torch.randperm(n_rows, generator=generator) % n_environments


USER_GROUPS = ("niche", "diverse", "blockbuster")
"""The environments of 'user_group'."""

SOURCES: dict[str, Callable[[Dataset, Request], Tensor]] = {
    "item_popularity": item_popularity,
    "user_activity": user_activity,
    "user_group": user_group,
    "time": time,
    "column": column,
    "kmeans": kmeans,
    "inferred": inferred,
    "random": random,
}
