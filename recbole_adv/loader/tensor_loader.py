"""RecBole's training batches, taken and completed as tensors on the device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_adv.loader.completion import Columns, TrainCompletion, TripleCompletion
from recbole_adv.loader.device_rows import DeviceRows
from recbole_adv.loader.shares import batch_sizes, own_rows, own_size

_AHEAD = 2**17  # numbers that are taken or drawn for several batches by one call


class TensorLoader:
    """Reads like the RecBole loader it stands for: length, iteration, and every other attribute.

    An epoch is a permutation of the rows on the device, cut into batches; a batch is the rows and
    what ``complete`` adds to them. Rows and negatives of several batches are taken by one call each.
    The permutation's seed comes from ``generator``, on the CPU like RecBole's and kept in checkpoints;
    negatives come from torch's global random numbers.

    Args:
        stock: RecBole's loader, of which are read: ``step``, ``shuffle``, ``sample_size``.
        rows: what the permutation is of.
        complete: makes the columns of a batch of those of its rows; None where they are it.
        index_of: position in an epoch -> row; None: each row once.
        target: the device that batches are wanted on, where it is not that of the rows.
    """

    def __init__(
        self,
        stock,
        rows: DeviceRows,
        complete: TrainCompletion | TripleCompletion | None = None,
        index_of: Callable[[Tensor], Tensor] | None = None,
        target: torch.device | None = None,
    ):
        self.stock, self.rows, self.complete = stock, rows, complete
        self.index_of, self.target = index_of, target
        self.generator = torch.Generator()
        self.generator.manual_seed(stock.config["seed"])

    def __getattr__(self, name: str) -> Any:
        if name == "stock":  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.stock, name)

    @property
    def batch_size(self) -> int:
        """Rows of the training data in a batch, as of a torch loader."""
        return self.stock.step

    def get_model(self, model) -> None:
        """RecBole's method: the model that scores the candidates of dynamic negatives."""
        self.stock.get_model(model)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Rows of each batch, of all processes together."""
        shared = getattr(self.stock.batch_sampler, "sizes", None)
        return batch_sizes(len(self.rows), self.stock.step) if shared is None else shared

    def __iter__(self) -> Iterator[Interaction]:
        self.rows.refresh()
        if self.complete is not None:
            self.complete.refresh()
        place, sizes = own_rows(self._order(), self.sizes), list(map(own_size, self.sizes))
        for first in range(0, len(sizes), self._ahead()):
            at_once = sizes[first : first + self._ahead()]
            taken, place = place[: sum(at_once)], place[sum(at_once) :]
            for columns, negatives in self._batches(taken, at_once):
                columns = self.rows.with_sequences(columns)
                if self.complete is not None:
                    columns = self.complete(columns, negatives)
                if self.target is not None:
                    columns = {
                        name: value.pin_memory().to(self.target, non_blocking=True)
                        for name, value in columns.items()
                    }
                yield Interaction(columns)

    def _ahead(self) -> int:
        """Batches that are taken at once."""
        size = 1 + (self.complete.n_negatives if self.complete is not None else 0)
        return max(_AHEAD // (size * self.stock.step), 1)

    def _batches(self, place: Tensor, sizes: list[int]) -> Iterator[tuple[Columns, Tensor | None]]:
        """The rows at some places of the epoch, batch by batch, and negatives drawn ahead."""
        taken = self.rows.take(place if self.index_of is None else self.index_of(place))
        negatives: Iterable[Tensor | None] = itertools.repeat(None)
        if self.complete is not None and self.complete.alone and self.complete.n_negatives:
            negatives = self.complete.negatives(taken).split(sizes)
        for values, drawn in zip(zip(*(v.split(sizes) for v in taken.values())), negatives):
            yield dict(zip(taken, values)), drawn

    def _order(self) -> Tensor:
        """The rows of an epoch; [N] int64."""
        n, device = len(self.rows), self.rows.device
        if not self.stock.shuffle:
            return torch.arange(n, device=device)
        seed = int(torch.randint(2**62, (), generator=self.generator))
        generator = torch.Generator(device).manual_seed(seed)
        return torch.randperm(n, device=device, generator=generator)
