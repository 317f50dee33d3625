"""EIIL's objective with its derivatives in closed form: a third of the small operations of autograd's."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class IRMStatistics(NamedTuple):
    """What J and both its derivatives are made of: q g [E, B], and by environment, each [E, 1]: mass p,
    sum of q, sum of q g, the square of the mean gradient, and 2 p by what that square is divided by (inf
    where it counts as 0). ``unbiased``: no row is paired with itself."""

    product: Tensor
    mass: Tensor
    weight: Tensor
    weighted: Tensor
    square: Tensor
    slope: Tensor
    unbiased: bool


def _statistics(g: Tensor, q: Tensor, unbiased: bool) -> IRMStatistics:
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
    mean, slope = square / divisor, 2 * mass / divisor
    return IRMStatistics(product, mass, weight, weighted, mean, slope, unbiased)


class _OfGradients(torch.autograd.Function):
    """J = sum_e p_e G_e^2. With D_e the divisor of G_e^2 and u = 1 for the unbiased estimator, else 0::

    dJ/dg_i = sum_e 2 p_e q_ie (sum_j q_je g_j - u q_ie g_i) / D_e
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, q: Tensor, s: IRMStatistics) -> Tensor:
        ctx.save_for_backward(g, q)
        ctx.statistics = s
        return (s.mass * s.square).sum()

    @staticmethod
    def backward(ctx: Any, pull: Tensor):
        (g, q), s = ctx.saved_tensors, ctx.statistics
        if torch.is_grad_enabled():  # of a second derivative autograd must see where they come from
            s = _statistics(g, q, s.unbiased)
        slope = pull * s.slope
        level = slope * s.weighted
        others = torch.addcmul(level, slope, s.product, value=-1) if s.unbiased else level
        return (q * others).sum(0), None, None


class _OfMembership(torch.autograd.Function):
    """J - w KL(p || uniform), the other derivative::

    dJ/dq_ie  = G_e^2 / B + 2 p_e (g_i sum_j q_je g_j - u q_ie g_i^2 - G_e^2 (sum_j q_je - u q_ie)) / D_e
    dKL/dq_ie = (log p_e + [p_e > 0]) / B
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, q: Tensor, s: IRMStatistics, w: float) -> Tensor:
        ctx.save_for_backward(g, q)
        ctx.statistics, ctx.w = s, w
        value = s.square
        if w:
            ctx.log_mass = _log(s.mass)
            value = value - w * ctx.log_mass
        return (s.mass * value).sum() - w * math.log(len(q))

    @staticmethod
    def backward(ctx: Any, pull: Tensor):
        (g, q), s, again = ctx.saved_tensors, ctx.statistics, torch.is_grad_enabled()
        if again:
            s = _statistics(g, q, s.unbiased)
        of_g, of_square = s.slope * s.weighted, s.slope * s.square
        level = torch.addcmul(s.square / len(g), of_square, s.weight, value=-1)
        if ctx.w:
            tiny = torch.finfo(s.mass.dtype).tiny
            log_mass = _log(s.mass) if again else ctx.log_mass
            level = level.sub(log_mass + (s.mass >= tiny), alpha=ctx.w / len(g))
        if s.unbiased:
            of_g = torch.addcmul(of_g, s.slope, s.product, value=-1)
            level = torch.addcmul(level, of_square, q)
        return None, pull * torch.addcmul(level, of_g, g), None, None


def _log(mass: Tensor) -> Tensor:
    """Finite at 0, as in :func:`~recbole_adv.objective.invariance.balance`."""
    return mass.clamp(min=torch.finfo(mass.dtype).tiny).log()


@torch.no_grad()
def irm_statistics(gradient: Tensor, q: Tensor, estimator: str) -> IRMStatistics:
    """Of a batch, once for both players.

    estimator: ``u`` or ``plain``. gradient: [B]; q: [E, B], the other way round than elsewhere.
    """
    return _statistics(gradient.to(q.dtype), q, estimator == "u")


def irm_of_gradients(gradient: Tensor, q: Tensor, statistics: IRMStatistics) -> Tensor:
    """``eiil_objective('irm', ...)`` as a function of the gradients [B] alone, q [E, B] held."""
    return _OfGradients.apply(gradient.to(q.dtype), q.detach(), statistics)


def irm_of_membership(
    gradient: Tensor, q: Tensor, statistics: IRMStatistics, balance_weight: float = 0.0
) -> Tensor:
    """``eiil_objective('irm', ...) - balance_weight * balance(...)`` as one of q [E, B] alone, the
    gradients [B] held."""
    held = gradient.detach().to(q.dtype)
    return _OfMembership.apply(held, q, statistics, balance_weight)
