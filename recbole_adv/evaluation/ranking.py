"""Ranking users chunk by chunk: scores on the device, of which only the best items are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from torch import Tensor
from tqdm import tqdm

from recbole_adv import processes
from recbole_adv.evaluation.part import Pairs, Part
from recbole_adv.loader.shares import own_block

_BYTES_OF_A_SCORE = 8
"""A score, and what a model needs besides to make it."""
_BYTES_OF_A_RANK = 56
"""The same where RecBole sorts all scores of a user, as GAUC needs them."""


_ROWS_ON_CPU = 1536
"""About as many rows a call of ``predict`` has on a CPU: what the layers of most models make of more no
longer fits into the cache (benchmarks/predict_rows.py)."""


class Ranking(NamedTuple):
    """The lists of a part's rows.

    item: [n, K] int64, the best items, best first; target: [n, K] int64, which of the part's targets
    the item is, -1 where it is none.
    """

    item: Tensor
    target: Tensor


class Scorer:
    """Scores all items for users as RecBole's trainer does, and hides what is not to be ranked.

    n_items: I, the padding item 0 included; batch: rows of one call of ``predict``, for models
    without ``full_sort_predict``.
    """

    def __init__(self, model, device, loader, batch: int):
        self.model, self.device, self.loader = model, device, loader
        self.batch, on_cpu = batch, torch.device(device).type == "cpu"
        self.wanted = min(batch, _ROWS_ON_CPU) if on_cpu else batch
        self.n_items: int = loader._dataset.item_num
        self._items: Interaction | None = None

    def full(self, rows: Tensor) -> Tensor:
        """Scores of the loader's rows.   rows: [B] int64.   Returns [B, I]."""
        interaction = self._interaction(rows).to(self.device)
        try:
            scores = self.model.full_sort_predict(interaction)
        except NotImplementedError:
            scores = self._predicted(interaction, len(rows))
        return scores.view(-1, self.n_items)

    def _interaction(self, rows: Tensor) -> Interaction:
        """What RecBole hands to the model for these rows."""
        dataset = self.loader._dataset
        if self.loader.is_sequential:
            return self.loader.transform(dataset, dataset[rows.numpy()])
        return Interaction({k: v[rows] for k, v in self.loader.user_df.interaction.items()})

    def _predicted(self, interaction: Interaction, n_rows: int) -> Tensor:
        """The same by ``predict``, without ever holding a row for each pair of user and item.

        A call has several users with all items, or one user with a part of them.
        """
        if self._items is None:
            self._items = self.loader._dataset.get_item_feature().to(self.device)
        at_once = max(self.wanted // self.n_items, 1)
        n_calls = max(round(self.n_items / self.wanted), math.ceil(self.n_items / self.batch))
        n_items = math.ceil(self.n_items / n_calls)
        scores: Tensor | None = None
        for first in range(0, n_rows, at_once):
            last = min(first + at_once, n_rows)
            users = _repeated(interaction, slice(first, last), n_items)
            for low in range(0, self.n_items, n_items):
                part = self._one_call(users, last - first, low, min(low + n_items, self.n_items))
                if scores is None:
                    scores = part.new_empty(n_rows, self.n_items)
                scores[first:last, low : low + n_items] = part
        assert scores is not None
        return scores

    def _one_call(self, users: dict[str, Tensor], n_users: int, low: int, high: int) -> Tensor:
        """Scores of the items low..high-1 for some users.   Returns [n_users, high - low]."""
        assert self._items is not None
        columns = {name: value[: n_users * (high - low)] for name, value in users.items()}
        for name, value in self._items.interaction.items():
            part = value[low:high]
            columns[name] = part if n_users == 1 else part.repeat(n_users, *[1] * (part.dim() - 1))
        return self.model.predict(Interaction(columns)).reshape(n_users, high - low)


def _repeated(interaction: Interaction, users: slice, times: int) -> dict[str, Tensor]:
    """The columns of some users, each user's ``times`` times, one after the other."""
    return {k: v[users].repeat_interleave(times, dim=0) for k, v in interaction.interaction.items()}


def hide(scores: Tensor, part: Part, low: int, high: int) -> None:
    """Give the rows low..high-1 of a part -inf for all that is not ranked, in place.

    scores: [high - low, I].
    """
    scores[:, 0] = -torch.inf
    if part.hidden is not None:
        scores[_index(part.hidden, low, high, scores.device)] = -torch.inf
    if part.masked is not None:
        scores[:, part.masked.to(scores.device)] = -torch.inf
    if part.pool is not None:
        index = _index(part.pool, low, high, scores.device)
        kept = scores[index]
        scores.fill_(-torch.inf)
        scores[index] = kept


def _index(pairs: Pairs, low: int, high: int, device) -> tuple[Tensor, Tensor]:
    row, item = pairs.between(low, high)
    return row.to(device), item.to(device)


def best(scores: Tensor, part: Part, low: int, k: int) -> Ranking:
    """The lists of the rows from ``low`` on.   scores: [B, I]."""
    value, item = torch.topk(scores, k, dim=-1)
    n_items, device = scores.shape[1], scores.device
    row, target = _index(part.targets, low, low + len(scores), device)
    known = row * n_items + target  # sorted
    wanted = torch.arange(len(scores), device=device).unsqueeze(1) * n_items + item
    place = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    # In a list that is longer than what is ranked, hidden items follow, of which none is a hit.
    hit = (known[place] == wanted) & (value > -torch.inf)
    target = torch.where(hit, place + part.targets.start[low].to(device), -1)
    return Ranking(item.cpu(), target.cpu())


def rows_at_once(memory_mb: int | None, loader, whole_ranks: bool) -> int:
    """How many users are scored at once."""
    if memory_mb is None:
        return loader.step
    per_score = _BYTES_OF_A_RANK if whole_ranks else _BYTES_OF_A_SCORE
    return max(memory_mb * 2**20 // (loader._dataset.item_num * per_score), 1)


def chunks(trainer, loader, part: Part, n_rows: int, show: bool) -> Iterator[tuple[int, Tensor]]:
    """(first row, scores [B, I]) of the part, chunk by chunk; n_rows: of a chunk.

    Of several processes each has a block of the chunks.
    """
    if not isinstance(loader, FullSortEvalDataLoader):
        yield from _sampled(trainer, loader, show)
        return
    scorer = Scorer(trainer.model, trainer.device, loader, trainer.test_batch_size)
    starts = range(0, len(part), n_rows)
    block = own_block(len(starts))
    starts = starts[block.start : block.stop]
    for low in tqdm(starts, ncols=100, desc="Evaluate") if show else starts:
        rows = part.rows[low : low + n_rows]
        scores = scorer.full(rows)
        hide(scores, part, low, low + len(rows))
        yield low, scores


def _sampled(trainer, loader, show: bool) -> Iterator[tuple[int, Tensor]]:
    """RecBole's own scoring of the candidates that it draws."""
    trainer.tot_item_num = loader._dataset.item_num
    low = own_block(math.ceil(loader.sample_size / loader.step)).start * loader.step
    for batch in tqdm(loader, ncols=100, desc="Evaluate") if show else loader:
        _, scores, _, _ = trainer._neg_sample_batch_eval(batch)
        yield low, scores
        low += len(scores)


def rank(
    trainer,
    loader,
    part: Part,
    k: int,
    n_rows: int,
    show: bool = False,
    look: Callable[[Tensor, Tensor, Tensor], Any] | None = None,
) -> Ranking:
    """The best k items of every row of a part, whichever process has ranked it.

    n_rows: how many are scored at once; look: is shown all scores of each chunk [B, I], and row and
    item of its targets.
    """
    item = torch.empty(len(part), k, dtype=torch.int64)
    target = torch.empty_like(item)
    own: range | None = None
    for low, scores in chunks(trainer, loader, part, n_rows, show):
        high = low + len(scores)
        if look is not None:
            look(scores, *_index(part.targets, low, high, scores.device))
        item[low:high], target[low:high] = best(scores, part, low, k)
        own = range(low if own is None else own.start, high)
    if processes.count() == 1:
        return Ranking(item, target)
    tables = (None if own is None else t[own.start : own.stop] for t in (item, target))
    return Ranking(*map(processes.joined_rows, tables))
