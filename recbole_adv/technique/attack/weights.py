"""A perturbation of the tables themselves, which every lookup and every product then reads.

This is one of two places for a perturbation; the other is attack/lookups.py. A place learns its rows,
or its lookups, from the first pass on a batch. For lists in an order of its own it answers: how is a
pass made around the weights (``at``), what is the gradient there of the pass just made
(``gradients``), what is padding (``mask_``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adv.technique.attack.tables import Table


def looked_up(args: tuple, kwargs: dict) -> Tensor:
    """The index that an embedding module is called with."""
    return args[0] if args else kwargs["input"]


class WeightPlace:
    """Rows of the tables, written in place and copied back: what every lookup and product reads.

    Args:
        tables: what is perturbed.
        by_lookup: for each table whether only the rows that the batch looks up are; else all.
    """

    def __init__(self, tables: Sequence[Table], by_lookup: Sequence[bool]):
        self.tables = list(tables)
        self.by_lookup = list(by_lookup)
        self._buffers: dict[str, Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Forget the rows of the last batch."""
        self.rows: list[Tensor | None] = [None] * len(self.tables)
        self.known = not any(self.by_lookup)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What a pass must have the gradients of."""
        return [table.parameter for table in self.tables]

    @contextmanager
    def at(
        self, moves: Sequence[Tensor] | None, radii: Sequence[Tensor | float] = ()
    ) -> Iterator[None]:
        """Passes inside are made at the weights plus ``radius * move``; None: at the weights.

        The weights come back bit for bit, also when a pass raises.
        """
        kept: list[Tensor] = []
        with self._watching():
            try:
                for index, (move, radius) in enumerate(zip(moves or (), radii)):
                    self._write(index, move, radius, kept)
                yield
            finally:
                self._restore(kept)

    @torch.no_grad()
    def _write(self, index: int, move: Tensor, radius: Tensor | float, kept: list[Tensor]) -> None:
        table, rows = self.tables[index], self.rows[index]
        weight = table.parameter
        if rows is not None:
            kept.append(weight.index_select(0, rows))
            weight.index_copy_(0, rows, kept[-1] + radius * move)
            return
        if table.name not in self._buffers:
            self._buffers[table.name] = torch.empty_like(weight)
        kept.append(self._buffers[table.name].copy_(weight))
        if isinstance(radius, Tensor):
            weight.addcmul_(move, radius)
        else:
            weight.add_(move, alpha=radius)

    @torch.no_grad()
    def _restore(self, kept: Sequence[Tensor]) -> None:
        for table, rows, old in zip(self.tables, self.rows, kept):
            if rows is None:
                table.parameter.copy_(old)
            else:
                table.parameter.index_copy_(0, rows, old)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Note which rows the first pass looks up; the indices alone are read."""
        if self.known:
            yield
            return
        seen: list[list[Tensor]] = [[] for _ in self.tables]
        handles = [
            module.register_forward_pre_hook(
                lambda m, args, kwargs, own=own: own.append(looked_up(args, kwargs).flatten()),
                with_kwargs=True,
            )
            for table, own, hooked in zip(self.tables, seen, self.by_lookup)
            if hooked
            for module in table.modules
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self.rows = [self._unique(i, own) for i, own in enumerate(seen)]
        self.known = True

    def _unique(self, index: int, seen: list[Tensor]) -> Tensor | None:
        if not self.by_lookup[index]:
            return None
        if seen:
            return torch.unique(torch.cat(seen))
        return torch.empty(0, dtype=torch.long, device=self.tables[index].parameter.device)

    def gradients(self, of_parameters: Sequence[Tensor | None]) -> list[Tensor]:
        """Those of the rows, from the gradients of the whole tables; not to be written to."""
        found = []
        for table, rows, gradient in zip(self.tables, self.rows, of_parameters):
            if gradient is None:
                gradient = table.parameter.new_zeros(self._shape(table, rows))
            elif gradient.is_sparse:
                gradient = _rows_of_sparse(gradient.coalesce(), rows)
            elif rows is not None:
                gradient = gradient.index_select(0, rows)
            found.append(gradient)
        return found

    def shapes(self) -> list[Tensor]:
        """Tensors of the shapes of a perturbation."""
        return [
            table.parameter.new_empty(self._shape(table, rows))
            for table, rows in zip(self.tables, self.rows)
        ]

    def mask_(self, moves: list[Tensor]) -> list[Tensor]:
        """Zero padding in place."""
        for move, rows, table in zip(moves, self.rows, self.tables):
            if table.padding is None:
                continue
            if rows is None:
                move[table.padding].zero_()
            else:
                move.masked_fill_((rows == table.padding).view(-1, *(1,) * (move.dim() - 1)), 0.0)
        return moves

    def sizes(self) -> list[Any]:
        """How many rows of each table may move, padding left out."""
        counts = []
        for table, rows in zip(self.tables, self.rows):
            if rows is None:
                counts.append(table.parameter.shape[0] - (table.padding is not None))
            else:
                counts.append(
                    rows.numel() if table.padding is None else (rows != table.padding).sum()
                )
        return counts

    @staticmethod
    def _shape(table: Table, rows: Tensor | None) -> tuple[int, ...]:
        shape = tuple(table.parameter.shape)
        return shape if rows is None else (rows.numel(), *shape[1:])


def _rows_of_sparse(gradient: Tensor, rows: Tensor | None) -> Tensor:
    """Rows of a coalesced gradient, whose own rows are among them."""
    if rows is None:
        return gradient.to_dense()
    values = gradient.values()
    found = values.new_zeros((rows.numel(), *values.shape[1:]))
    return found.index_copy_(0, torch.searchsorted(rows, gradient.indices()[0]), values)
