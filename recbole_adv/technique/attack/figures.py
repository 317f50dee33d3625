"""What the attacks of an epoch were, summed on the device and read once at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NAMES = ("loss", "gap", "delta_mean", "delta_max", "delta_relative", "idle_rows", "skipped")
"""
* ``loss``: at the last perturbed weights (VAT: the divergence there); ``gap``: that minus the loss at
  the weights, where a pass was made there. A mean gap below 0 tells of a fault.
* ``delta_mean``, ``delta_max``: L2 norm of the perturbed rows; ``delta_relative``: its mean in units
  of the mean row norm of the table, which is what epsilon amounts to.
* ``idle_rows``: share of the rows that could move and did not: their gradient was zero, not finite
  or below ``min_gradient``.
* ``skipped``: share of the batches whose adversarial term was left out, because no row could be
  perturbed or its loss was not finite.
"""


class Figures:
    """Sums of one epoch, by name."""

    def __init__(self):
        self.n_batches = self.n_skipped = 0
        self._sums: dict[str, Any] = {}

    def add(self, loss: Tensor, clean: Tensor | None) -> None:
        """Count one attacked batch; ``clean`` is the loss at the weights."""
        self.n_batches += 1
        self._sum("loss", loss)
        if clean is not None:
            self._sum("gap", loss - clean)
            self._sum("gaps", 1)

    def add_rows(
        self, norms: Sequence[Tensor], sizes: Sequence[Any], mean_row_norms: Sequence[float]
    ) -> None:
        """Count the rows of a perturbation.

        norms: for each table the L2 norm of each row's perturbation; sizes: how many rows could
        move; mean_row_norms: of the table's weights.
        """
        for norm, size, of_table in zip(norms, sizes, mean_row_norms):
            moved = (norm > 0).sum()
            total = norm.sum()
            self._sum("rows", size)
            self._sum("moved", moved)
            self._sum("delta", total)
            self._sum("relative", total / of_table if of_table > 0 else 0.0 * total)
            if norm.numel():
                largest = self._sums.get("largest", norm.new_zeros(()))
                self._sums["largest"] = torch.maximum(largest, norm.max())

    def skip(self) -> None:
        """Count a batch whose adversarial term was left out."""
        self.n_skipped += 1

    def _sum(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            value = value.detach().double()
        self._sums[name] = self._sums.get(name, 0.0) + value

    def read(self) -> dict[str, float]:
        """Means by name, as ``NAMES`` says; empty where nothing was attacked."""
        tried = self.n_batches + self.n_skipped
        if not tried:
            return {}
        sums = {name: float(value) for name, value in self._sums.items()}
        figures = {"skipped": self.n_skipped / tried}
        if self.n_batches:
            figures["loss"] = sums["loss"] / self.n_batches
        if sums.get("gaps"):
            figures["gap"] = sums["gap"] / sums["gaps"]
        if sums.get("moved"):
            figures["delta_mean"] = sums["delta"] / sums["moved"]
            figures["delta_max"] = sums["largest"]
            figures["delta_relative"] = sums["relative"] / sums["moved"]
        if sums.get("rows"):
            figures["idle_rows"] = 1 - sums["moved"] / sums["rows"]
        return {name: figures[name] for name in NAMES if name in figures}
