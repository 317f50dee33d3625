"""A moving average of a table of which a step moves few rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LEAST = 1e-300  # a decay of 0 has no logarithm


def log_of(decay: float) -> float:
    """The logarithm of a decay, finite for 0 too."""
    return math.log(max(decay, _LEAST))


class LazyAverage:
    r"""The average of a table, each row as it was when a step last moved the row.

    While the weight w of a row stands still, k updates of the average a are one:

    .. math::
        a \leftarrow w + (a - w) \prod_{i=1}^{k} d_i

    so a row is brought up to date from its old weight before a step moves it, exactly but for rounding.
    The products are differences of ``so_far``, the sum of the logarithms of all decays.

    Attributes:
        values: [n, ...] the average, row by row of its own time.
        seen: [n] float64, ``so_far`` at that time.
    """

    def __init__(self, values: Tensor, so_far: float, seen: Tensor | None = None):
        self.values = values
        fresh = torch.full((len(values),), so_far, dtype=torch.float64, device=values.device)
        self.seen = fresh if seen is None else seen
        self._rows: Tensor | None = None
        self._caught: Tensor | None = None

    @torch.no_grad()
    def before_step(self, weight: Tensor, rows: Tensor | None, so_far: float) -> None:
        """The step will move these rows, or any where None; nothing is written yet."""
        self._rows = rows
        self._caught = self.now(weight, so_far, rows)

    @torch.no_grad()
    def after_step(self, weight: Tensor, decay: float, so_far: float) -> None:
        """The step was taken; ``so_far`` holds this update's ``decay`` already."""
        if self._caught is None:
            return
        rows, caught = self._rows, self._caught
        averaged = caught.lerp_(_rows_of(weight, rows), 1.0 - decay)
        if rows is None:
            self.values.copy_(averaged)
            self.seen.fill_(so_far)
        else:
            self.values.index_copy_(0, rows, averaged)
            self.seen.index_fill_(0, rows, so_far)
        self._rows = self._caught = None

    @torch.no_grad()
    def now(self, weight: Tensor, so_far: float, rows: Tensor | None = None) -> Tensor:
        """The average of this moment, of some rows or of all, in memory of its own."""
        values, seen = _rows_of(self.values, rows), _rows_of(self.seen, rows)
        share = -torch.expm1(so_far - seen).to(values.dtype)
        return torch.lerp(
            values, _rows_of(weight, rows), share.view(-1, *(1,) * (values.dim() - 1))
        )


def _rows_of(table: Tensor, rows: Tensor | None) -> Tensor:
    return table.detach() if rows is None else table.detach().index_select(0, rows)
