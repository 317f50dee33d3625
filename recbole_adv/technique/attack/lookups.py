"""A perturbation of the outputs of lookups, each occurrence by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from recbole_adv.errors import ConfigError
from recbole_adv.technique.attack.tables import Table
from recbole_adv.technique.attack.weights import looked_up


class LookupPlace:
    """The outputs of the lookups, each occurrence by itself: FreeLB's, and that of VAT and PamaCF.

    Exact only where lookups carry the whole gradient of their tables, which the audit of the first
    batch makes sure of.
    """

    def __init__(self, tables: Sequence[Table]):
        self.of = list(tables)
        self.begin()

    def begin(self) -> None:
        """Forget the lookups of the last batch."""
        self.tables: list[Table] = []
        self._indices: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._found: list[Tensor | None] = []
        self.known = False

    @contextmanager
    def at(self, deltas: Sequence[Tensor] | None) -> Iterator[None]:
        """Passes inside add ``deltas`` to the lookups, in their order; None adds nothing."""
        self._found, calls = [], []

        def add(table: Table):
            def hook(module, args, kwargs, output):
                number = len(calls)
                calls.append(table)
                self._notice(number, table, looked_up(args, kwargs), output)
                output = output if deltas is None else output + deltas[number]
                if output.requires_grad:
                    output.register_hook(lambda gradient: self._keep(number, gradient))
                return output

            return hook

        handles = [
            module.register_forward_hook(add(table), with_kwargs=True)
            for table in self.of
            for module in table.modules
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self.known = True

    def _notice(self, number: int, table: Table, index: Tensor, output: Tensor) -> None:
        self._found.append(None)
        if not self.known:
            self.tables.append(table)
            self._indices.append(index)
            self._outputs.append(output.detach())
        elif number >= len(self.tables) or output.shape != self._outputs[number].shape:
            raise ConfigError(
                "embedding_attack_scope: sample needs the same lookups in each pass on a batch, and "
                f"{table.name} was looked up otherwise; write embedding_attack_same_random: True or "
                "embedding_attack_scope: row"
            )

    def _keep(self, number: int, gradient: Tensor) -> None:
        self._found[number] = gradient.detach()

    def gradients(self, of_parameters: Sequence[Tensor | None]) -> list[Tensor]:
        """Those of the outputs, zero at padding; the gradients of the tables are not looked at."""
        found = [
            torch.zeros_like(output) if gradient is None else gradient
            for output, gradient in zip(self._outputs, self._found)
        ]
        return self.mask(found)

    def shapes(self) -> list[Tensor]:
        """Tensors of the shapes of a perturbation."""
        return self._outputs

    def mask(self, moves: Sequence[Tensor]) -> list[Tensor]:
        """The same with zeros where padding was looked up."""
        return [
            move if t.padding is None else move.masked_fill((i == t.padding).unsqueeze(-1), 0.0)
            for move, i, t in zip(moves, self._indices, self.tables)
        ]

    def sizes(self) -> list[Any]:
        """How many samples each lookup has."""
        return [output.shape[0] for output in self._outputs]
