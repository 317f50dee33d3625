"""RecBole's losses: a scalar, or a tuple of parts that is summed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Loss = Tensor | tuple[Tensor, ...]
"""A scalar, or several whose sum is minimised and which are logged apart, as in RecBole."""


def total(loss: Loss) -> Tensor:
    """The scalar to minimise."""
    return sum(loss[1:], loss[0]) if isinstance(loss, tuple) else loss


def parts(loss: Loss) -> tuple[Tensor, ...]:
    """The parts as a tuple, detached."""
    if isinstance(loss, tuple):
        return tuple(part.detach() for part in loss)
    return (loss.detach(),)


def flat(losses: Any) -> Any:
    """An epoch's sums, where RecBole's MKRTrainer and KGATTrainer put a tuple into their own."""
    if not isinstance(losses, tuple):
        return losses
    return tuple(x for loss in losses for x in (loss if isinstance(loss, tuple) else (loss,)))
