"""What is ranked when a part of the data is evaluated: its users, their targets and candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from torch import Tensor

from recbole_adv.data.id_file import is_path, read_ids
from recbole_adv.data.leak_check import among
from recbole_adv.errors import ConfigError, DataError, suggest
from recbole_adv.evaluation.groups import Grouping


@dataclass(frozen=True)
class Pairs:
    """Items of rows, as compressed sparse rows.   start: [n + 1] int64; item: [P] int64."""

    start: Tensor
    item: Tensor

    @classmethod
    def of(cls, row: np.ndarray, item: np.ndarray, n_rows: int) -> Pairs:
        """row: [P], ascending; item: [P]."""
        start = np.zeros(n_rows + 1, dtype=np.int64)
        np.cumsum(np.bincount(row, minlength=n_rows), out=start[1:])
        return cls(torch.from_numpy(start), torch.from_numpy(item))

    def between(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """The pairs of the rows low..high-1: the row counted from low, and the item."""
        start = self.start[low : high + 1]
        row = torch.repeat_interleave(torch.arange(high - low), start.diff())
        return row, self.item[start[0] : start[-1]]


@dataclass(frozen=True)
class Part:
    """A part of the data, as it is ranked.

    rows: [n] int64, the loader's rows (users, or steps of sequences) that have a target; targets:
    of each row, in the order of items; group: of each target by grouping, [P] int64; hidden: what
    is not ranked, None where nothing is; pool: the only items ranked, None for all; masked: items
    that are never ranked, [m] int64 or None.
    """

    rows: Tensor
    targets: Pairs
    group: dict[str, Tensor]
    hidden: Pairs | None
    pool: Pairs | None
    masked: Tensor | None

    def __len__(self) -> int:
        return len(self.rows)


def phase_of(loader) -> str:
    """``valid`` or ``test``: what a loader of RecBole is for."""
    return getattr(loader._sampler, "phase", None) or "test"


def names_of_users(loader) -> np.ndarray:
    """[rows of the loader], of each the user, as the data set calls him."""
    dataset = loader._dataset
    return dataset.field2id_token[dataset.uid_field][_rows(loader)[0]]


def ranked_part(config, loader, groupings: Sequence[Grouping], lists: bool) -> Part:
    """What is to be ranked for a loader of RecBole.

    A target that is outside of the pool or masked is none, and a row without a target is left out;
    the log says how many. A target that RecBole's history hides (``mask_leaks``) stays, and is missed.

    lists: whether metrics look at whole lists, which must then be full.
    Raises :class:`DataError` where no row is left.
    """
    dataset = loader._dataset
    phase = phase_of(loader)
    key = f"{phase}_pool"
    row_user, row, item = _rows(loader)
    n_items, n_rows = dataset.item_num, len(row_user)
    pair = row * n_items + item
    pairs, first = np.unique(pair, return_index=True)
    pool = None
    if config[key] is not None:
        pool, wanted = _pool(config[key], key, dataset, row_user, pair)
        chosen = among(pairs, wanted)
        pairs, first = pairs[chosen], first[chosen]
    is_target = np.ones(len(pairs), dtype=bool) if pool is None else among(pairs, pool)
    masked, masked_pairs = _mask(config["eval_mask"], dataset, row_user)
    if masked is not None:
        is_target &= ~np.isin(pairs % n_items, masked)
    is_target &= ~among(pairs, masked_pairs)
    pairs, first = pairs[is_target], first[is_target]
    kept = np.unique(pairs // n_items)
    _say(phase, is_target, len(kept), n_rows)
    hidden = _history(loader, row_user, n_items)
    hidden = np.union1d(hidden, masked_pairs) if len(masked_pairs) else hidden
    rows = dataset.inter_feat
    part = Part(
        torch.from_numpy(kept),
        _renumbered(pairs, kept, n_items),
        {g.name: g.of(rows)[torch.from_numpy(first)] for g in groupings},
        _renumbered(hidden, kept, n_items) if len(hidden) else None,
        None if pool is None else _renumbered(pool, kept, n_items),
        None if masked is None else torch.from_numpy(masked),
    )
    if lists and (config[key] is not None or config["eval_mask"] is not None):
        _check_lists(config, part, pool, hidden, kept, n_items)
    return part


def _rows(loader) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The user of each of the loader's rows, and the row and item of each interaction."""
    rows, dataset = loader._dataset.inter_feat, loader._dataset
    user, item = rows[dataset.uid_field].numpy(), rows[dataset.iid_field].numpy()
    if isinstance(loader, FullSortEvalDataLoader) and loader.is_sequential:
        return user, np.arange(len(user)), item
    users = np.asarray(loader.uid_list)
    return users, np.searchsorted(users, user), item


def _pool(name: str, key: str, dataset, row_user, pair) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of the pool, and those that may be targets, both sorted.

    name: a column of the interactions, or a file; pair: [N], of each interaction.
    """
    if name in dataset.inter_feat:
        value = dataset.inter_feat[name].numpy().reshape(len(pair), -1)[:, 0]
        return np.unique(pair), np.unique(pair[value > 0])
    if not is_path(name):
        columns = dataset.inter_feat.columns
        raise ConfigError(
            f"{key} {name!r} is no file, and no column of the rows that are ranked, which have "
            f"{', '.join(columns)} (a file of test_sets has only users and items)"
            f"{suggest(name, columns)}; write the path of a file of pairs"
        )
    ids = read_ids(name, dataset, key)
    if ids.n_unknown:
        getLogger().warning(
            "%s %s: %d of %d rows name a user or an item that the data do not have and are left out "
            "(a file of all items, <dataset>.item, makes them known)",
            *(key, name, ids.n_unknown, ids.n_rows),
        )
    return _of_rows(ids, row_user, dataset.item_num), np.unique(pair)


def _mask(path: str | None, dataset, row_user) -> tuple[np.ndarray | None, np.ndarray]:
    """Items that nobody is recommended, and sorted pairs of row and item."""
    nothing = np.empty(0, dtype=np.int64)
    if path is None:
        return None, nothing
    ids = read_ids(path, dataset, "eval_mask", users="optional")
    if ids.user is None:
        return np.unique(ids.item), nothing
    return None, _of_rows(ids, row_user, dataset.item_num)


def _of_rows(ids, row_user: np.ndarray, n_items: int) -> np.ndarray:
    """Pairs of user and item as sorted pairs of row and item; a user may have several rows."""
    order = np.argsort(ids.user, kind="stable")
    user, item = ids.user[order], ids.item[order]
    start = np.searchsorted(user, row_user)
    count = np.searchsorted(user, row_user, side="right") - start
    row = np.repeat(np.arange(len(row_user)), count)
    place = np.arange(len(row)) - np.repeat(count.cumsum() - count, count) + start[row]
    return np.unique(row * n_items + item[place])


def _history(loader, row_user: np.ndarray, n_items: int) -> np.ndarray:
    """What RecBole hides from each row, as pairs; sequences and samples hide nothing."""
    if not isinstance(loader, FullSortEvalDataLoader) or loader.is_sequential:
        return np.empty(0, dtype=np.int64)
    history = loader.uid2history_item[row_user]
    count = np.fromiter((len(items) for items in history), dtype=np.int64, count=len(history))
    item = torch.cat(list(history)).numpy() if len(history) else np.empty(0, dtype=np.int64)
    return np.unique(np.repeat(np.arange(len(row_user)), count) * n_items + item)


def _renumbered(pairs: np.ndarray, kept: np.ndarray, n_items: int) -> Pairs:
    """Sorted pairs without those of rows that are not kept, their rows counted anew."""
    row, item = np.divmod(pairs, n_items)
    place = np.searchsorted(kept, row).clip(max=len(kept) - 1)
    there = kept[place] == row
    return Pairs.of(place[there], item[there], len(kept))


def _say(phase: str, is_target: np.ndarray, n_kept: int, n_rows: int) -> None:
    n_targets = int(is_target.sum())
    if n_targets == 0:
        raise DataError(
            f"none of the {len(is_target)} targets of {phase} is among the items that are ranked; "
            f"check {phase}_pool and eval_mask"
        )
    if n_targets < len(is_target):
        getLogger().warning(
            "%s: %d of %d targets are not ranked and do not count; %d of %d users are evaluated",
            *(phase, len(is_target) - n_targets, len(is_target), n_kept, n_rows),
        )


def _check_lists(config, part: Part, pool, hidden, kept: np.ndarray, n_items: int) -> None:
    """Every list must be full where metrics look at whole lists."""
    n_masked = 0 if part.masked is None else len(part.masked)
    if pool is None:
        if n_masked:  # what is masked is not ranked already
            hidden = hidden[~np.isin(hidden % n_items, part.masked)]
        n_hidden = int(_renumbered(hidden, kept, n_items).start.diff().max())
        shortest = n_items - 1 - n_masked - n_hidden
    else:
        left = np.setdiff1d(pool, hidden, assume_unique=True)
        left = left[~np.isin(left % n_items, part.masked)] if n_masked else left
        shortest = int(_renumbered(left, kept, n_items).start.diff().min())
    if shortest < max(config["topk"]):
        raise ConfigError(
            f"a user has {max(shortest, 0)} items to rank, fewer than topk {max(config['topk'])}, so "
            "that metrics of whole lists (popularity, coverage, Gini ...) cannot be computed; write "
            f"topk: [{max(shortest, 1)}] or less, or leave them out"
        )
