"""Directions, projections and random starts of perturbations, in units of their radius.

A perturbation is ``radius * move``, and a move lies in the ball of radius 1, so that nothing here
knows epsilon. A list of tensors holds one for each table, ``[rows, D]``, or one for each lookup,
``[B, D]`` or ``[B, L, D]``. The scope says what has a norm of its own:

* ``row``, ``sample``: everything that shares the first index: a row of a table, and of a lookup a
  sample with all its positions;
* ``table``: the whole tensor;
* ``global``: all tensors together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TINY = 1e-18
"""A shorter gradient has no direction: its squares are below float32's normal numbers."""


def lengths(tensors: Sequence[Tensor], scope: str) -> list[Tensor]:
    """The L2 norm of each unit of the scope, shaped to be broadcast to its tensor."""
    if scope in ("row", "sample"):
        return [
            torch.linalg.vector_norm(t, dim=tuple(range(1, t.dim())), keepdim=True) for t in tensors
        ]
    whole = [torch.linalg.vector_norm(t) for t in tensors]
    if scope == "global":
        whole = [torch.linalg.vector_norm(torch.stack(whole))] * len(whole)
    return [norm.view((1,) * t.dim()) for norm, t in zip(whole, tensors)]


def directions(
    gradients: Sequence[Tensor], scope: str, norm: str, min_gradient: float = 0.0
) -> list[Tensor]:
    """The move of length 1 along which the loss grows fastest to first order.

    ``l2``: ``g / ||g||`` of each unit; ``linf``: ``sign(g)``. A unit whose gradient is zero or not
    finite, or shorter than ``min_gradient`` times the median of its tensor, does not move.
    """
    moves = []
    for gradient, length in zip(gradients, lengths(gradients, scope)):
        finite = length.isfinite()
        usable = finite & (length > TINY)
        if min_gradient > 0 and length.numel():
            median = torch.where(usable, length, math.nan).nanmedian()
            usable &= length >= min_gradient * median
        factor = torch.where(usable, 1.0 if norm == "linf" else 1 / length, 0.0)
        move = (gradient.sign() if norm == "linf" else gradient) * factor
        # Zero times infinity is nan. Looking costs nothing on a CPU, a pass over a table does.
        if length.device.type != "cpu" or not bool(finite.all()):
            move.masked_fill_(~usable, 0.0)
        moves.append(move)
    return moves


def project(moves: Sequence[Tensor], scope: str, norm: str, projection: str) -> list[Tensor]:
    """The nearest point of the unit ball of ``norm`` (``ball``), of the unit box (``box``: each
    element by itself, whatever the norm), or the point itself (``none``)."""
    if projection == "none":
        return list(moves)
    if projection == "box" or norm == "linf":
        return [move.clamp(-1.0, 1.0) for move in moves]
    return [move / length.clamp_min(1.0) for move, length in zip(moves, lengths(moves, scope))]


def ascend(
    moves: Sequence[Tensor] | None,
    steps: Sequence[Tensor],
    rate: float,
    scope: str,
    norm: str,
    projection: str,
) -> list[Tensor]:
    """One projected step of length ``rate``, from zero where ``moves`` is None."""
    if moves is None:
        moved = [step if rate == 1.0 else rate * step for step in steps]
        if abs(rate) <= 1.0:
            return moved  # within the ball already
    else:
        moved = [move + rate * step for move, step in zip(moves, steps)]
    return project(moved, scope, norm, projection)


def random_start(shapes: Sequence[Tensor], scope: str, norm: str) -> list[Tensor]:
    """Uniform in the box that the unit ball holds: ``[-1, 1]``, over ``sqrt(n)`` for L2, where n
    counts the elements of a unit."""
    elements = sum(t.numel() for t in shapes)
    moves = []
    for like in shapes:
        n = {"table": like.numel(), "global": elements}.get(scope, like[:1].numel())
        half = 1.0 if norm == "linf" else 1.0 / math.sqrt(max(n, 1))
        moves.append(torch.empty_like(like).uniform_(-half, half))
    return moves
