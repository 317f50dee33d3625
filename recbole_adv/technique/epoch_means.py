"""Figures of an epoch, kept on the device until its end."""

from __future__ import annotations

import torch
from torch import Tensor


class EpochMeans:
    """Means over the steps of an epoch, summed on the device and read once, at the end.

    A value of nan or inf (the gradient of a step that a GradScaler leaves out) is not counted.
    """

    def __init__(self):
        self._sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        """Count one step; each value is a scalar."""
        for name, value in values.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(2, dtype=torch.float64, device=value.device)
            counted = value.isfinite()
            self._sums[name] += torch.stack([torch.where(counted, value, 0).double(), counted])

    def read(self) -> dict[str, float]:
        """The means by name, and a new start; this reads the device."""
        sums, self._sums = self._sums, {}
        pairs = {name: pair.tolist() for name, pair in sums.items()}
        return {name: total / count for name, (total, count) in pairs.items() if count}
