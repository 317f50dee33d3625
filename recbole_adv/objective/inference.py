"""EIIL's objective with its derivatives in closed form: a third of the small operations of autograd's."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Statistics(NamedTuple):
    """Of a batch: q g [E, B], and by environment, each [E, 1]: mass p, sum of q, sum of q g, the square
    of the mean gradient, and 2 p by what that square is divided by (inf where it counts as 0)."""

    product: Tensor
    mass: Tensor
    weight: Tensor
    weighted: Tensor
    square: Tensor
    slope: Tensor


def _statistics(g: Tensor, q: Tensor, unbiased: bool) -> _Statistics:
    """g: [B]; q: [E, B]."""
    product = q * g
    weight, weighted = q.sum(1, keepdim=True), product.sum(1, keepdim=True)
    eps = torch.finfo(q.dtype).eps
    there, divisor, square = weight > eps, weight.square(), weighted.square()
    if unbiased:
        pairs = divisor - (q * q).sum(1, keepdim=True)
        square = square - (product * product).sum(1, keepdim=True)
        there, divisor = there & (pairs > math.sqrt(eps) * divisor), pairs
    divisor = torch.where(there, divisor, math.inf)
    mass = weight / len(g)
    return _Statistics(product, mass, weight, weighted, square / divisor, 2 * mass / divisor)


class _OfGradients(torch.autograd.Function):
    """J = sum_e p_e G_e^2. With D_e the divisor of G_e^2 and u = 1 for the unbiased estimator, else 0::

    dJ/dg_i = sum_e 2 p_e q_ie (sum_j q_je g_j - u q_ie g_i) / D_e
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, q: Tensor, unbiased: bool, s: _Statistics) -> Tensor:
        ctx.save_for_backward(g, q)
        ctx.unbiased, ctx.statistics = unbiased, s
        return (s.mass * s.square).sum()

    @staticmethod
    def backward(ctx: Any, pull: Tensor):
        g, q = ctx.saved_tensors
        # Of a second derivative autograd must see where the statistics come from.
        s = _statistics(g, q, ctx.unbiased) if torch.is_grad_enabled() else ctx.statistics
        slope = pull * s.slope
        level = slope * s.weighted
        others = torch.addcmul(level, slope, s.product, value=-1) if ctx.unbiased else level
        return (q * others).sum(0), None, None, None


class _OfMembership(torch.autograd.Function):
    """J - w KL(p || uniform), the other derivative::

    dJ/dq_ie  = G_e^2 / B + 2 p_e (g_i sum_j q_je g_j - u q_ie g_i^2 - G_e^2 (sum_j q_je - u q_ie)) / D_e
    dKL/dq_ie = (log p_e + [p_e > 0]) / B
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, q: Tensor, unbiased: bool, s: _Statistics, w: float) -> Tensor:
        ctx.save_for_backward(g, q)
        ctx.unbiased, ctx.statistics, ctx.w = unbiased, s, w
        value = s.square
        if w:
            ctx.log_mass = _log(s.mass)
            value = value - w * ctx.log_mass
        return (s.mass * value).sum() - w * math.log(len(q))

    @staticmethod
    def backward(ctx: Any, pull: Tensor):
        g, q = ctx.saved_tensors
        again = torch.is_grad_enabled()
        s = _statistics(g, q, ctx.unbiased) if again else ctx.statistics
        of_g, of_square = s.slope * s.weighted, s.slope * s.square
        level = torch.addcmul(s.square / len(g), of_square, s.weight, value=-1)
        if ctx.w:
            tiny = torch.finfo(s.mass.dtype).tiny
            log_mass = _log(s.mass) if again else ctx.log_mass
            level = level.sub(log_mass + (s.mass >= tiny), alpha=ctx.w / len(g))
        if ctx.unbiased:
            of_g = torch.addcmul(of_g, s.slope, s.product, value=-1)
            level = torch.addcmul(level, of_square, q)
        return None, pull * torch.addcmul(level, of_g, g), None, None, None


def _log(mass: Tensor) -> Tensor:
    """Finite at 0, as in :func:`~recbole_adv.objective.invariance.balance`."""
    return mass.clamp(min=torch.finfo(mass.dtype).tiny).log()


def irm_inference(
    gradient: Tensor, q: Tensor, estimator: str, balance_weight: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """``eiil_objective('irm', ...)`` for two players, the second one's less a multiple of ``balance``.

    estimator: ``u`` or ``plain``. gradient: [B]; q: [E, B], the other way round than elsewhere.
    Returns J as a function of the gradients alone, q held; J - balance_weight KL(p || uniform) as one
    of q alone, the gradients held, on a graph of its own; and the masses p [E].
    """
    g = gradient.to(q.dtype)
    g_held, q_held = g.detach(), q.detach()
    unbiased = estimator == "u"
    with torch.no_grad():
        s = _statistics(g_held, q_held, unbiased)
    by_gradients = _OfGradients.apply(g, q_held, unbiased, s)
    return (
        by_gradients,
        _OfMembership.apply(g_held, q, unbiased, s, balance_weight),
        s.mass.flatten(),
    )
