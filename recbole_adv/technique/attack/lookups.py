"""A perturbation of the outputs of lookups, each occurrence by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What a pass must have the gradients of, so that it comes by the lookups."""
        return [table.parameter for table in self.of]

    @contextmanager
    def at(
        self, moves: Sequence[Tensor] | None, radii: Sequence[Tensor | float] = ()
    ) -> Iterator[None]:
        """Passes inside add ``radius * move`` to the lookups, in their order; None adds nothing."""
        self._found, calls = [], []

        def add(table: Table):
            def hook(module, args, kwargs, output):
                number = len(calls)
                calls.append(table)
                self._notice(number, table, looked_up(args, kwargs), output)
                if moves is not None:
                    output = output + radii[number] * moves[number]
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
        """Those of the outputs; the gradients of the tables are not looked at."""
        return [
            torch.zeros_like(output) if gradient is None else gradient
            for output, gradient in zip(self._outputs, self._found)
        ]

    def shapes(self) -> list[Tensor]:
        """Tensors of the shapes of a perturbation."""
        return self._outputs

    def mask_(self, moves: list[Tensor]) -> list[Tensor]:
        """Zero what was looked up at padding, in place."""
        for move, index, table in zip(moves, self._indices, self.tables):
            if table.padding is not None:
                move.masked_fill_((index == table.padding).unsqueeze(-1), 0.0)
        return moves

    def sizes(self) -> list[Any]:
        """How many samples each lookup has."""
        return [output.shape[0] for output in self._outputs]
