"""Clipping of each number of a gradient by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from recbole_adv.technique.base import Technique, gradient_values
from recbole_adv.technique.epoch_means import EpochMeans

if TYPE_CHECKING:
    from recbole_adv.trainer.turn import Turn


class ClipValue(Technique):
    """Every number of every gradient is brought into [-max_value, max_value].

    That is ``torch.nn.utils.clip_grad_value_``, for sparse gradients too; unlike clipping by a
    norm it turns the gradient. Logged are the mean of the largest absolute value before clipping
    and the share of steps that were clipped.

    Args:
        max_value: the bound.
    """

    concerns: ClassVar[str] = "all"

    def __init__(self, *, max_value: float):
        self.max_value = max_value
        self.means = EpochMeans()

    def edit_gradients(self, turn: Turn) -> None:
        values = [gradient_values(p) for p in turn.parameters if p.grad is not None]
        values = [value for value in values if value.numel()]
        if not values:
            return
        # aminmax reads a tensor once; the inf-norm takes twenty times as long on a CPU.
        ends = torch.stack([end for value in values for end in value.aminmax()])
        largest = ends.abs().max()
        # Looking makes another device wait; on a CPU it saves a pass that would change nothing.
        if largest.device.type != "cpu" or not largest <= self.max_value:
            for value in values:
                value.clamp_(-self.max_value, self.max_value)
        clipped = (largest > self.max_value).to(largest.dtype)
        self.means.add(largest=largest, clipped=torch.where(largest.isfinite(), clipped, largest))

    def figures(self) -> dict[str, float]:
        return self.means.read()
