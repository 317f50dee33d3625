"""Layers that models share."""

from __future__ import annotations

import torch
from torch import Tensor


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, alpha):
        ctx.alpha = alpha
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.alpha * gradient, None


def reverse_gradient(value: Tensor, alpha: float) -> Tensor:
    """The same value, whose gradient comes back multiplied by -alpha (Ganin et al., JMLR 2016).

    What stands behind it descends on a loss while what stands before it ascends on alpha times that
    loss, in one backward pass and under one optimizer.

    value: any shape; alpha: >= 0.   Returns the shape of ``value``.
    """
    return _ReverseGradient.apply(value, alpha)
