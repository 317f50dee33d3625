"""What an epoch was, summed on the device and read once at its end."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_adv import processes
from recbole_adv.trainer.turn import Outcome


class PlayerStatistics:
    """The sums of one player over an epoch.

    Losses are added in float64 in the order of the batches, which gives exactly RecBole's
    ``total_loss += loss.item()`` without reading the device at each batch.
    """

    def __init__(self, maximises: bool):
        self.sign = -1.0 if maximises else 1.0
        self.steps = 0
        self._sums: list[Tensor] = []
        self._samples: dict[str, list[Tensor]] = {"gradient_norm": [], "gain": []}

    def add(self, outcome: Outcome) -> None:
        """Count one step; a closed-form move has no loss."""
        self.steps += 1
        if not self._sums:
            self._sums = [
                torch.zeros((), dtype=torch.float64, device=p.device) for p in outcome.parts
            ]
        for total, part in zip(self._sums, outcome.parts):
            total += part.sum() if part.dim() else part
        for name, samples in self._samples.items():
            value = getattr(outcome, name)
            if value is not None:
                samples.append(value)

    def agree(self) -> None:
        """Make losses and samples the means over the processes; again without effect."""
        for values in (self._sums, *self._samples.values()):
            processes.mean_(values)

    @property
    def losses(self) -> tuple[float, ...]:
        """The sum of each part of the loss; this reads the device."""
        return tuple(total.item() for total in self._sums)

    def mean(self) -> float:
        """The mean loss of a step, or objective of a player that maximises."""
        return self.sign * sum(self.losses) / max(self.steps, 1)

    def figures(self) -> dict[str, float]:
        """Means per step by name, for the logs."""
        figures: dict[str, float] = {"steps": self.steps}
        if self._sums and self.steps:
            means = [self.sign * value / self.steps for value in self.losses]
            name = "objective" if self.sign < 0 else "loss"
            figures[name] = sum(means)
            if len(means) > 1:
                figures |= {f"{name}{i}": mean for i, mean in enumerate(means, start=1)}
        for name, samples in self._samples.items():
            if samples:
                figures[name] = torch.stack([s.detach().float() for s in samples]).mean().item()
        return figures
