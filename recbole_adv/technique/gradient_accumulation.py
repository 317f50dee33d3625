"""One step on the mean gradient of several batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from recbole_adv.technique.base import Technique

if TYPE_CHECKING:
    from recbole_adv.trainer.turn import Turn


class GradientAccumulation(Technique):
    """A step in every ``batches``-th batch, on the mean of their gradients.

    Equals one large batch where the loss is a mean over rows and no BatchNorm counts them. The last
    batches of an epoch are stepped on though they are fewer; what else acts on gradients or steps
    (clipping, EMA, a schedule) acts once for each step.

    Args:
        batches: batches for a step; 1 changes nothing.
    """

    concerns: ClassVar[str] = "all"

    def __init__(self, *, batches: int):
        self.batches = batches

    def holds_back(self, turn: Turn) -> bool:
        return turn.waiting < self.batches
