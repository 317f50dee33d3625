"""The mathematics of splits under shift: arrays in, arrays out.

Controlled popularity shift is the recipe of the Tencent-synthetic data (Zhang et al., "Invariant
Collaborative Filtering to Popularity Distribution Shift", WWW 2023; ``sample_data.ipynb`` of
anzhang314/InvCF at f3e77ad): items are ordered by popularity and cut into K chunks, and an item of
chunk k is to have ``n_max gamma^(-(k-1)/(K-1))`` test interactions, k = 1 the most popular.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from recbole_adv.errors import DataError

N_CHUNKS = 50


@dataclass(frozen=True)
class Rows:
    """The interactions to be split, [N] each.

    user, item: ids from 1 on; time: numbers, or None; sequential: rows are the steps of users'
    sequences in their order, of which only the end may be held out: an earlier step would stay
    in the histories of the steps after it.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray | None = None
    sequential: bool = False


@dataclass(frozen=True)
class Draw:
    """One held-out part: its name and how its rows are chosen.

    kind: ``id`` (uniformly), ``popularity`` (by gamma), ``users`` (of a group), ``time`` (the last).
    """

    name: str
    kind: str
    share: float
    gamma: float = 1.0
    n_max: float | None = None


@dataclass
class Units:
    """What is drawn: user-item pairs, so that no pair is torn apart, or steps of sequences.

    user, item: [M]; left: [M] bool, not yet held out; base: what shares are of.
    """

    user: np.ndarray
    item: np.ndarray
    sequential: bool
    base: int
    left: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.left = np.ones(len(self.user), dtype=bool)

    def candidates(self, rng: np.random.Generator) -> np.ndarray:
        """[M] bool: what may still leave the training data, of which each user and item keeps one.

        The recipe's "never the only interaction", for every draw: of an item, then of a user, all
        of whose units are candidates, one that is chosen at random stays.
        """
        free = self.left.copy()
        if self.sequential:
            free &= _last_of(self.user, self.left)
        for key in (self.item, self.user):
            stays = np.bincount(key[self.left & ~free], minlength=key.max() + 1) > 0
            order = rng.permutation(np.flatnonzero(free & ~stays[key]))
            kept = np.full(len(stays), -1)
            kept[key[order]] = order  # of several units of a key the last one in a random order
            free[kept[kept >= 0]] = False
        return free


def _last_of(user: np.ndarray, left: np.ndarray) -> np.ndarray:
    """[M] bool: the last unit of each user among those left."""
    last = np.full(user.max() + 1, -1)
    last[user[left]] = np.flatnonzero(left)  # where a user comes again, the last value stays
    ends = np.zeros(len(user), dtype=bool)
    ends[last[last >= 0]] = True
    return ends


def chunk_of(count: np.ndarray, n_chunks: int = N_CHUNKS) -> np.ndarray:
    """The popularity chunk 0..K-1 of each item, 0 the most popular, K at most the number of items.

    Chunks differ by one item at most; equal counts are ordered by id.

    count: [I] interactions.   Returns [I] int64, -1 for an item without any.
    """
    n_items = int((count > 0).sum())
    chunk = np.full(len(count), -1)
    most_popular_first = np.argsort(-count, kind="stable")[:n_items]
    chunk[most_popular_first] = np.arange(n_items) * min(n_chunks, n_items) // n_items
    return chunk


def exposure(chunk: np.ndarray, gamma: float) -> np.ndarray:
    """gamma^(-k/(K-1)) of chunk k = 0..K-1: 1 for the most popular items, 1/gamma for the rarest.

    gamma 1 exposes all items equally, above 1 the test has a long tail as the data have, below 1
    rare items are exposed most.   Returns [I], 0 where the chunk is -1.
    """
    last = max(int(chunk.max()), 1)
    return np.where(chunk < 0, 0.0, float(gamma) ** (-chunk / last))


def level(weight: np.ndarray, limit: np.ndarray, total: float) -> float:
    """The n with sum_i min(n weight_i, limit_i) = total.

    weight, limit: [I], not negative; total: at most the sum of the limits of positive weight.
    """
    used = weight > 0
    weight, limit = weight[used], limit[used]
    order = np.argsort(limit / weight)
    weight, limit = weight[order], limit[order]
    full = np.concatenate([[0.0], np.cumsum(limit)])  # of the first j items, at their limit
    rest = np.concatenate([np.cumsum(weight[::-1])[::-1], [0.0]])
    reached = full[:-1] + rest[:-1] * limit / weight  # the sum where item j comes to its limit
    j = min(int(np.searchsorted(reached, total)), len(limit) - 1)
    return float((total - full[j]) / rest[j])


def draw_exposed(
    units: Units, chunk: np.ndarray, draw: Draw, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, float]]:
    """Units such that item i is expected min(n_max exposure_i, c_i) times, c_i its candidates.

    Each candidate is taken independently with probability min(1, n_max exposure_i / c_i). Without
    ``draw.n_max`` it is what gives ``draw.share``.

    Where the official notebook errs: it removes from the list it iterates over, which skips rows;
    its index starts at 0, so the top chunk is expected gamma^(1/49) n_max times; the last chunk has
    the remainder of the division; only items with one interaction are spared, so others lose all of
    theirs.

    Returns [M] bool, and for the log n_max and the number of items whose limit c_i is below.
    """
    free = units.candidates(rng)
    wanted = exposure(chunk, draw.gamma)
    limit = np.bincount(units.item[free], minlength=len(chunk))
    n_max = draw.n_max
    if n_max is None:
        total = draw.share * units.base
        _check_enough(draw, total, int(limit.sum()), units.base)
        n_max = level(wanted, limit, total)
    quota = n_max * wanted
    prob = quota / np.maximum(limit, 1)
    taken = free & (rng.random(len(free)) < prob[units.item])
    return taken, {"n_max": n_max, "items_at_limit": int((quota > limit).sum())}


def draw_uniform(
    units: Units, draw: Draw, rng: np.random.Generator, among: np.ndarray | None = None
) -> np.ndarray:
    """``draw.share`` of the units, uniformly among the candidates (of the users in ``among`` [U])."""
    free = units.candidates(rng)
    if among is not None:
        free &= among[units.user]
    total = round(draw.share * units.base)
    where = np.flatnonzero(free)
    _check_enough(draw, total, len(where), units.base)
    taken = np.zeros(len(free), dtype=bool)
    taken[rng.choice(where, total, replace=False)] = True
    return taken


def _check_enough(draw: Draw, wanted: float, there: int, base: int) -> None:
    if not 1 <= wanted <= there:
        share = np.floor(1000 * there / base) / 1000
        what = f"shift_share: {draw.share:g} asks for {wanted:.0f} interactions in {draw.name}, "
        if wanted < 1:
            raise DataError(f"{what}which must be at least 1; write a larger share")
        raise DataError(
            f"{what}got {there} that may leave the training data (each user and item keeps one, and "
            f"other parts took theirs before); write a share of at most {share:g}"
        )


def latest(time: np.ndarray, left: np.ndarray, n: int) -> np.ndarray:
    """[N] bool: the last n of the rows that are left; rows of one time stay together, so about n.

    No row that is left is later than, or as late as, one that is taken.
    """
    values, count = np.unique(time[left], return_counts=True)
    later = np.cumsum(count[::-1])[::-1]  # rows from each time on
    first = int(np.abs(later[1:] - n).argmin()) + 1 if len(values) > 1 else 0
    if not first:
        raise DataError(
            f"a temporal split needs at least two times, got {len(values)} in the interactions left"
        )
    return left & (time >= values[first])


def split_rows(
    rows: Rows, draws: list[Draw], group: np.ndarray | None, seed: int
) -> tuple[np.ndarray, dict[str, dict[str, float]]]:
    """Which part each row belongs to: 0 for training, d + 1 for ``draws[d]``.

    Parts are drawn one after the other from what is left, in the given order, those by time first.

    group: [U] bool, the users of kind ``users``.
    Returns [N] int8, and what is to be logged of each part.
    """
    rng = np.random.default_rng(seed)
    part = np.zeros(len(rows.user), dtype=np.int8)
    notes: dict[str, dict[str, float]] = {}
    for code, draw in enumerate(draws, start=1):
        if draw.kind == "time":
            assert rows.time is not None
            part[latest(rows.time, part == 0, round(draw.share * len(part)))] = code
    pool = np.flatnonzero(part == 0)
    units, unit_of = _units(rows, pool)
    chunk = chunk_of(np.bincount(units.item))
    for code, draw in enumerate(draws, start=1):
        if draw.kind == "time":
            continue
        if draw.kind == "popularity":
            taken, notes[draw.name] = draw_exposed(units, chunk, draw, rng)
        else:
            taken = draw_uniform(units, draw, rng, group if draw.kind == "users" else None)
        units.left &= ~taken
        part[pool[taken[unit_of]]] = code
    return part, notes


def _units(rows: Rows, pool: np.ndarray) -> tuple[Units, np.ndarray]:
    """The units of the rows in ``pool``, and the unit of each of these rows.

    Shares are of all interactions; in sequences, which have one end each, of the users.
    """
    user, item = rows.user[pool], rows.item[pool]
    if rows.sequential:
        return Units(user, item, True, len(np.unique(user))), np.arange(len(pool))
    key = user.astype(np.int64) * (int(rows.item.max()) + 1) + item
    _, first, unit_of = np.unique(key, return_index=True, return_inverse=True)
    every = len(first) * len(rows.user) / max(len(pool), 1)
    return Units(user[first], item[first], False, round(every)), unit_of
