"""Figures of an epoch, kept on the device until its end."""

from __future__ import annotations

import torch
from torch import Tensor


class EpochMeans:
    """Means over the steps of an epoch, summed on the device and read once, at the end.

    A value of nan or inf (the gradient of a step that a GradScaler leaves out) is not counted.
    """

    def __init__(self):
        self._sums: dict[tuple[str, ...], Tensor] = {}  # by names [k]: sums and counts [2, k]

    def add(self, **values: Tensor) -> None:
        """Count one step; each value is a scalar, all are on one device."""
        if not values:
            return
        new = torch.stack(list(values.values())).double()
        counted = new.isfinite()
        pair = torch.stack([torch.where(counted, new, 0.0), counted.double()])
        names = tuple(values)
        if names in self._sums:
            self._sums[names] += pair
        else:
            self._sums[names] = pair

    def read(self) -> dict[str, float]:
        """The means by name, and a new start; this reads the device."""
        sums, self._sums = self._sums, {}
        totals: dict[str, tuple[float, float]] = {}
        for names, pair in sums.items():
            for name, total, count in zip(names, *pair.tolist()):
                before = totals.get(name, (0.0, 0.0))
                totals[name] = before[0] + total, before[1] + count
        return {name: total / count for name, (total, count) in totals.items() if count}
