"""Which rows of each batch a process reads, where several train together.

The batches of an epoch are those of one process, in the same order, drawn on every process from the same
seed; of batch b, process r of n reads the rows r, r + n, r + 2n ... So each row of an epoch is read once,
and all processes take the same number of steps.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from recbole.data.dataloader import KnowledgeBasedDataLoader
from recbole.utils import KGDataLoaderState

from recbole_adv import processes
from recbole_adv.errors import DataError


def batch_sizes(n_rows: int, step: int, drop_last: bool = False) -> list[int]:
    """Rows of each batch of an epoch, of all processes together.

    With several processes a last batch is left out here where ``drop_last`` says so, so that all agree;
    and one that has fewer than two rows for each process is joined to the one before it, because a
    process cannot step on nothing, nor BatchNorm on one row.

    Raises :class:`DataError` where there are too few rows for all.
    """
    full, rest = divmod(n_rows, step)
    sizes = [step] * full + [rest] * (rest > 0)
    n = processes.count()
    if n == 1:
        return sizes
    if rest and full and drop_last:
        return sizes[:-1]
    if rest and full and rest < 2 * n:
        sizes[-2:] = [step + rest]
    if sizes and min(sizes) < n:
        raise DataError(
            f"a batch has fewer rows than there are processes, got {min(sizes)} rows and {n} "
            "processes; write a larger train_batch_size or fewer processes"
        )
    return sizes


def own_size(size: int) -> int:
    """This process's rows of a batch of ``size``."""
    return len(range(processes.rank(), size, processes.count()))


def own_rows(order: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """This process's rows of an epoch, batch by batch.   order: [N], of all; sizes: of the batches."""
    n, rank = processes.count(), processes.rank()
    if n == 1:
        return order
    return torch.cat([batch[rank::n] for batch in order[: sum(sizes)].split(list(sizes))])


def weight_of(size: int) -> float:
    """What a mean over this process's rows of a batch counts, 1 where the rows are evenly shared.

    The mean over processes of weight times mean is then the mean over the batch.
    """
    return own_size(size) * processes.count() / size


class SharedBatches:
    """The batches that a loader of RecBole's reads, as torch's ``batch_sampler``; its own rows only."""

    def __init__(self, sampler, n_rows: int, step: int, drop_last: bool):
        self.sampler, self.sizes = sampler, batch_sizes(n_rows, step, drop_last)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.as_tensor(
            list(self.sampler)
        )  # drawn by the loader's generator, alike everywhere
        own = own_rows(order, self.sizes)
        for rows in own.split([own_size(size) for size in self.sizes]):
            yield rows.tolist()


class _OwnSeed:
    """Seeds a worker process of a loader, which torch seeds alike on every process."""

    def __init__(self, rank: int):
        self.rank = rank

    def __call__(self, worker: int) -> None:
        seed = (torch.initial_seed() + (self.rank << 16)) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


def share_training(train_data, drop_last: bool) -> None:
    """Let a training loader of RecBole's read this process's rows only; one process: nothing is done."""
    if processes.count() == 1:
        return
    for loader in _inner(train_data):
        batches = SharedBatches(loader.sampler, loader.sample_size, loader.step, drop_last)
        vars(loader)["batch_sampler"] = batches  # torch lets it be set in the constructor only
        loader.worker_init_fn = _OwnSeed(processes.rank())


def _inner(train_data) -> list:
    if isinstance(train_data, KnowledgeBasedDataLoader):
        return [train_data.general_dataloader, train_data.kg_dataloader]
    return [train_data]


def weights(train_data) -> Iterable[float]:
    """:func:`weight_of` each batch that the loader is about to read."""
    if processes.count() == 1:
        return itertools.repeat(1.0)
    if isinstance(train_data, KnowledgeBasedDataLoader):
        on_triples = train_data.state == KGDataLoaderState.KG
        train_data = train_data.kg_dataloader if on_triples else train_data.general_dataloader
    return [weight_of(size) for size in train_data.batch_sampler.sizes]


# --- evaluation ------------------------------------------------------------------------------------


def own_block(n: int) -> range:
    """This process's block of n batches that follow one another; all blocks in order are all batches."""
    return range(
        n * processes.rank() // processes.count(), n * (processes.rank() + 1) // processes.count()
    )


@contextmanager
def block_of(eval_data) -> Iterator[None]:
    """Inside, reading a loader of RecBole's gives this process's block of its batches, as they are."""
    if processes.count() == 1:
        yield
        return
    stock, block = eval_data.batch_sampler, own_block(len(eval_data.batch_sampler))
    vars(eval_data)["batch_sampler"] = list(itertools.islice(stock, block.start, block.stop))
    try:
        yield
    finally:
        vars(eval_data)["batch_sampler"] = stock
