"""RecBole's samplers without Python's sets: the same distributions, in a fraction of the memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import recbole.data.utils as recbole_data
import torch
from recbole.data.dataloader import NegSampleEvalDataLoader
from recbole.sampler import KGSampler, RepeatableSampler, Sampler
from torch import Tensor

from recbole_adv.data.negatives import HAS_ALL, as_tiles, rows_of_owners, sorted_pairs
from recbole_adv.loader.negatives import Draw, OtherItems, Popularity, free_items

_HAS_ALL_IN_PARTS = (
    "user {{!r}} has rows with all {{}} items in {parts} together, so an evaluation on sampled items "
    "has no negative for him; leave him out of the data, or write mode: full in eval_args"
)
_HAS_ALL_TAILS = (
    "entity {!r} is the head of triples with all {} entities, so there is no negative tail for it; "
    "leave it out of the knowledge graph"
)


class UsedItems:
    """The items of each user in some datasets: ``used[user]`` is a set, made when it is asked for.

    Two arrays stand for the sets: 4 bytes for a pair, where a set takes 60 or more.
    """

    def __init__(self, datasets: Sequence[Any]):
        self._datasets = datasets
        self._start: np.ndarray | None = None

    def pairs(self) -> tuple[Tensor, Tensor]:
        """User and item of all rows, [N] int64 each."""
        first, *more = self._datasets
        fields = (first.uid_field, first.iid_field)
        if not more:
            return tuple(first.inter_feat[f] for f in fields)
        return tuple(torch.cat([d.inter_feat[f] for d in self._datasets]) for f in fields)

    def __len__(self) -> int:
        return self._datasets[0].user_num

    def __getitem__(self, key):
        """A user's set; for several users an array of sets; for None, before RecBole's first user, None."""
        if key is None:
            return None
        if self._start is None:
            self._sort()
        if np.ndim(key) == 0:
            return set(self._items[self._start[key] : self._start[key + 1]].tolist())
        found = np.empty(len(key), dtype=object)
        found[:] = [self[one] for one in key]
        return found

    def _sort(self) -> None:
        first = self._datasets[0]
        n_items, fields = first.item_num, (first.uid_field, first.iid_field)
        parts = (sorted_pairs(*(d.inter_feat[f] for f in fields), n_items) for d in self._datasets)
        pairs = torch.cat(list(parts))
        pairs.numpy().sort()
        pairs = torch.unique_consecutive(pairs)
        start, _ = rows_of_owners(pairs, len(self), n_items)
        self._items = pairs.remainder_(n_items).to(torch.int32).numpy()
        self._start = np.append(start.numpy(), len(pairs))


class TensorSampler(Sampler):
    """Draws as RecBole's Sampler, whole batches at once and by torch's global random numbers."""

    def set_distribution(self, distribution: str) -> None:
        """RecBole's method; the table of popularities is made when it is drawn from."""
        self.distribution = distribution
        self._drawn: dict[tuple[str, str], Draw] = {}

    def get_used_ids(self) -> dict[str, UsedItems]:
        """By phase: the items of that phase and of those before it."""
        return {
            phase: UsedItems(self.datasets[: index + 1]) for index, phase in enumerate(self.phases)
        }

    def sample_by_user_ids(self, user_ids, item_ids, num: int) -> Tensor:
        """RecBole's method: ``num`` tiles of one item for each user."""
        user, item = (torch.as_tensor(np.asarray(ids)) for ids in (user_ids, item_ids))
        return as_tiles(self.draw_of_phase()(user, item, num))

    def draw_of_phase(self) -> Draw:
        """What is drawn in the phase and by the distribution that it has, made once.

        Raises :class:`DataError` where a user has every item.
        """
        key = (self.phase, self.distribution)
        if key not in self._drawn:
            self._drawn[key] = draw_of(self, torch.device("cpu"))
        return self._drawn[key]

    def _pop_sampling(self, sample_num: int) -> np.ndarray:
        popularity = _popularity(self, _item_counts(self.datasets), 1, torch.device("cpu"))
        return popularity.propose((sample_num, 1), torch.device("cpu")).view(-1).numpy()


class TensorKGSampler(KGSampler):
    """Draws tails as RecBole's KGSampler, whole batches at once."""

    def set_distribution(self, distribution: str) -> None:
        """RecBole's method; the table of popularities is made when it is drawn from."""
        self.distribution, self._draw = distribution, None

    def get_used_ids(self) -> None:
        """No sets are kept."""

    def sample_by_entity_ids(self, head_entity_ids, num: int = 1) -> Tensor:
        """RecBole's method: ``num`` tiles of one tail for each head."""
        if self._draw is None:
            self._draw = draw_of(self, torch.device("cpu"))
        head = torch.as_tensor(np.asarray(head_entity_ids))
        return as_tiles(self._draw(head, head, num))


@contextmanager
def tensor_samplers(wanted: bool = True) -> Iterator[None]:
    """RecBole's ``data_preparation`` inside builds ours in the place of its samplers."""
    ours = {"Sampler": TensorSampler, "KGSampler": TensorKGSampler} if wanted else {}
    stock = {name: getattr(recbole_data, name) for name in ours}
    try:
        for name, cls in ours.items():
            setattr(recbole_data, name, cls)
        yield
    finally:
        for name, cls in stock.items():
            setattr(recbole_data, name, cls)


def check_evaluation_draws(loaders: Iterable[Any]) -> None:
    """Raise :class:`DataError` where an evaluation on sampled items has no negative for a user.

    Our samplers find it when they first draw: in a test, after the whole training.
    """
    for loader in loaders:
        sampler = loader._sampler
        if isinstance(loader, NegSampleEvalDataLoader) and isinstance(sampler, TensorSampler):
            asked = loader.neg_sample_args
            if "none" not in (asked["distribution"], asked["sample_num"]):
                sampler.draw_of_phase()


def draw_of(sampler, device: torch.device) -> Draw:
    """What a sampler draws, of the phase and distribution that it has, as a function on tensors."""
    if isinstance(sampler, KGSampler):
        head, tail = (
            torch.as_tensor(np.array(ids)) for ids in (sampler.hid_list, sampler.tid_list)
        )
        count = torch.bincount(torch.cat([head, tail]), minlength=sampler.entity_num)
        popularity = _popularity(sampler, count, sampler.entity_num, device)
        n = sampler.entity_num
        return free_items(
            head.to(device),
            tail.to(device),
            n,
            n,
            popularity,
            lambda i: str(sampler.dataset.id2token(sampler.hid_field, i)),
            _HAS_ALL_TAILS,
        )
    if isinstance(sampler, RepeatableSampler):
        count = _item_counts([sampler.dataset])
        return OtherItems(sampler.item_num, _popularity(sampler, count, 1, device))
    last = sampler.phases.index(sampler.phase)
    parts = " and ".join(sampler.phases[: last + 1])
    user, item = UsedItems(sampler.datasets[: last + 1]).pairs()
    popularity = _popularity(sampler, _item_counts(sampler.datasets), sampler.user_num, device)
    return free_items(
        user.to(device),
        item.to(device),
        sampler.user_num,
        sampler.item_num,
        popularity,
        lambda i: str(sampler.datasets[0].id2token(sampler.uid_field, i)),
        _HAS_ALL_IN_PARTS.format(parts=parts) if last else HAS_ALL,
    )


def _item_counts(datasets: Sequence[Any]) -> Tensor:
    """Rows of each item in all phases, of which RecBole's popularity is made."""
    first = datasets[0]
    counts = [
        torch.bincount(d.inter_feat[first.iid_field], minlength=first.item_num) for d in datasets
    ]
    return torch.stack(counts).sum(0)


def _popularity(sampler, count: Tensor, n_owners: int, device: torch.device) -> Popularity | None:
    if sampler.distribution == "uniform":
        return None
    return Popularity(count, sampler.alpha, n_owners).to(device)
