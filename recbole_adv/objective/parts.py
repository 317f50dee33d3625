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


def is_number(value: Any) -> bool:
    """Whether it is a tensor of one element; some of RecBole's losses have shape [1]."""
    return isinstance(value, Tensor) and value.numel() == 1


def is_loss(value: Any) -> bool:
    """Whether it is a number as a tensor, or a tuple of them."""
    if isinstance(value, tuple):
        return bool(value) and all(map(is_number, value))
    return is_number(value)


def explain_no_loss(what: str, value: Any) -> str:
    """The sentence about ``what`` a user wrote, which returned ``value`` in the place of a loss."""
    return f"{what} returned {_described(value)}; return one number as a tensor, such as .mean()"


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if value is None:
        return "None"
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def flat(losses: Any) -> Any:
    """An epoch's sums, where RecBole's MKRTrainer and KGATTrainer put a tuple into their own."""
    if not isinstance(losses, tuple):
        return losses
    return tuple(x for loss in losses for x in (loss if isinstance(loss, tuple) else (loss,)))
