"""R-Drop: two passes under different dropout masks are to say the same; tensors in, tensors out."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_adv.objective.parts import Loss


def bernoulli_divergence(first: Tensor, second: Tensor) -> Tensor:
    """J = KL(p || q) + KL(q || p) of two coins p = sigmoid(a), q = sigmoid(b).

    J = (p - q)(a - b), exactly: there is no logarithm that could overflow.

    first, second: logits a and b of one shape.   Returns that shape.
    """
    return (torch.sigmoid(first) - torch.sigmoid(second)) * (first - second)


def categorical_divergence(first: Tensor, second: Tensor) -> Tensor:
    """J = KL(p || q) + KL(q || p) of p = softmax(a), q = softmax(b).

    J = sum_k (p_k - q_k)(a_k - b_k): both normalising constants drop out. What is -inf in one of
    them is no candidate in either.

    first, second: scores [..., K].   Returns [...].
    """
    masked = torch.isneginf(first) | torch.isneginf(second)
    p, q = (score.masked_fill(masked, -torch.inf).softmax(dim=-1) for score in (first, second))
    difference = first.masked_fill(masked, 0.0) - second.masked_fill(masked, 0.0)
    return ((p - q) * difference).sum(dim=-1)


def r_drop_loss(first: Loss, second: Loss, divergence: Tensor, weight: float) -> tuple[Tensor, ...]:
    """(L1 + L2) / 2 + weight J / 2, in parts: half of the loss of Liang et al., NeurIPS 2021, which
    is L1 + L2 + alpha J / 2, at weight = alpha / 2.

    first, second: the losses of the passes, with as many parts each; divergence: J, a scalar.
    Returns the means of the parts, and the divergence's as a part of its own.
    """
    pairs = zip(*(loss if isinstance(loss, tuple) else (loss,) for loss in (first, second)))
    return (*((one + other) / 2 for one, other in pairs), weight * divergence / 2)
