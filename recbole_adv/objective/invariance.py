"""Objectives over environments: risks, penalties, weights; tensors in, tensors out.

Throughout, ``q`` [B, E] is the membership of each row in each environment (rows sum to 1; one-hot
for hard environments), ``loss`` [B] and ``gradient`` [B] come from :mod:`.ranking`. An environment
without rows in the batch is left out, never counted as one whose risk is 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recbole_adv.errors import ConfigError, suggest

ESTIMATORS = ("plain", "u", "split")
EIIL_KINDS = ("irm", "irm_raw", "rex")


def environment_mass(q: Tensor) -> Tensor:
    """Share of the batch in each environment: p_e = mean_i q_ie.   q: [B, E].   Returns [E]."""
    return q.mean(dim=0)


def present(q: Tensor) -> Tensor:
    """Which environments have rows in the batch.   q: [B, E].   Returns [E] bool.

    A mass below machine precision, which only a softmax leaves, counts as none: derivatives of a
    mean over it, which are divided by the mass, would overflow.
    """
    return q.detach().sum(dim=0) > torch.finfo(q.dtype).eps


def _weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """sum_i w_ie v_ie / sum_i w_ie, constant 0 without weight.   [B, E or 1], [B, E] -> [E]."""
    there = present(weight)
    mass = torch.where(there, weight.sum(dim=0), 1.0)
    return torch.where(there, (weight * value).sum(dim=0) / mass, 0.0)


def environment_risk(loss: Tensor, q: Tensor) -> Tensor:
    """Mean loss in each environment: R_e = sum_i q_ie l_i / sum_i q_ie.

    0 with gradient 0 where :func:`present` is False; mask by it before averaging over environments.

    loss: [B]; q: [B, E].   Returns [E].
    """
    return _weighted_mean(loss.unsqueeze(-1), q)


def _squared_mean(value: Tensor, weight: Tensor, estimator: str) -> Tensor:
    """An estimate of (E[v])^2 under ``weight``.   value: [B, E or 1]; weight: [B, E] -> [E]."""
    if estimator == "plain":
        return _weighted_mean(value, weight).square()
    if estimator == "split":
        even, odd = slice(0, None, 2), slice(1, None, 2)
        return _weighted_mean(value[even], weight[even]) * _weighted_mean(value[odd], weight[odd])
    if estimator != "u":
        raise ConfigError(
            f"the estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}"
            + (suggest(estimator, ESTIMATORS) or "; write u")
        )
    total, weighted = weight.sum(dim=0).square(), weight * value
    pairs = total - weight.square().sum(dim=0)
    products = weighted.sum(dim=0).square() - weighted.square().sum(dim=0)
    # pairs / total = 1 - 1 / (effective number of rows); both differences are rounding error below.
    enough = pairs.detach() > math.sqrt(torch.finfo(weight.dtype).eps) * total.detach()
    enough = enough & present(weight)
    return torch.where(enough, products / torch.where(enough, pairs, 1.0), 0.0)


def squared_gradient(gradient: Tensor, q: Tensor, estimator: str = "u") -> Tensor:
    """The square of each environment's mean gradient, (E[g | e])^2, from a batch.

    plain: (sum q g / sum q)^2, too large by Var(g)/n.
    u:     ((sum q g)^2 - sum q^2 g^2) / ((sum q)^2 - sum q^2), the mean over pairs of different
           rows; unbiased; 0 with fewer than two rows.
    split: product of the means of the batch's even and odd rows (DomainBed); unbiased, but of
           larger variance than u; 0 where a half is empty.
    The unbiased ones may be negative.

    gradient: [B]; q: [B, E].   Returns [E].
    """
    return _squared_mean(gradient.unsqueeze(-1), q, estimator)


def irm_penalty(gradient: Tensor, q: Tensor, estimator: str = "u") -> Tensor:
    """IRMv1 (Arjovsky et al., 2019) as in DomainBed: the mean over present environments of G_e^2.

    gradient: [B]; q: [B, E].   Returns a scalar, 0 for an empty batch.
    """
    there = present(q)
    squares = squared_gradient(gradient, q, estimator)
    return torch.where(there, squares, 0.0).sum() / there.sum().clamp(min=1)


def eiil_objective(
    kind: str, loss: Tensor, gradient: Tensor, q: Tensor, estimator: str = "plain"
) -> Tensor:
    """What environment inference increases in q (Creager et al., EIIL, ICML 2021).

    irm:     sum_e p_e G_e^2, G_e the mean gradient of e. With 'plain' it is
             (mean g)^2 + between-environment variance of g: :func:`kmeans_1d` of g maximises it.
    irm_raw: (1/E) sum_e ((1/B) sum_i q_ie g_i)^2, the authors' code (ecreager/eiil@2198213),
             which averages its two penalties: their 1/2 is our 1/E. For E = 2 :func:`sign_split`
             maximises it; for more, E - 2 environments stay empty.
    rex:     sum_e p_e (R_e - Rbar)^2, Rbar = sum_e p_e R_e: :func:`kmeans_1d` of the losses.
             It reads no gradient and no estimator.

    loss, gradient: [B]; q: [B, E].   Returns a scalar.
    """
    if kind == "irm":
        return (environment_mass(q) * squared_gradient(gradient, q, estimator)).sum()
    if kind == "irm_raw":
        return _squared_mean(q * gradient.unsqueeze(-1), torch.ones_like(q), estimator).mean()
    if kind == "rex":
        mass, risk = environment_mass(q), environment_risk(loss, q)
        return (mass * (risk - (mass * risk).sum()).square()).sum()
    raise ConfigError(
        f"the objective of environment inference must be one of {', '.join(EIIL_KINDS)}, "
        f"got {kind!r}" + (suggest(kind, EIIL_KINDS) or "; write irm")
    )


def risk_variance(risk: Tensor, present: Tensor) -> Tensor:
    """V-REx (Krueger et al., ICML 2021): the population variance (divisor E) of present risks.

    0 for one environment. EERM divides by E - 1 instead.

    risk: [E]; present: [E] bool.   Returns a scalar.
    """
    count = present.sum().clamp(min=1)
    risk = torch.where(present, risk, 0.0)
    deviation = torch.where(present, risk - risk.sum() / count, 0.0)
    return deviation.square().sum() / count


def _negative_entropy(prob: Tensor) -> Tensor:
    """p log p elementwise; 0 with a finite derivative (about -87 in float32) at p = 0."""
    return prob * prob.clamp(min=torch.finfo(prob.dtype).tiny).log()


def balance(p: Tensor) -> Tensor:
    """KL(p || uniform) = sum_e p_e log p_e + log E: 0 for equal masses, log E for one environment.

    p: [E], sums to 1.   Returns a scalar.
    """
    return _negative_entropy(p).sum() + math.log(len(p))


def membership_entropy(q: Tensor) -> Tensor:
    """mean_i H(q_i), 0 for hard environments, log E for undecided ones.   q: [B, E] -> scalar."""
    return -_negative_entropy(q).sum(dim=-1).mean()


@torch.no_grad()
def group_dro_weights(
    weights: Tensor,
    risk: Tensor,
    present: Tensor,
    eta: float,
    adjustment: float = 0.0,
    counts: Tensor | None = None,
    running_risk: Tensor | None = None,
) -> Tensor:
    """One exponentiated-gradient step of GroupDRO (Sagawa et al., ICLR 2020) on the simplex.

    w_e <- w_e exp(eta (R_e + C / sqrt(n_e))), then normalised; computed on logarithms.

    Absent environments: the authors set R_e = 0, and a factor of 1 is that same 0, which hands
    their weight to whoever is in the batch. Here an absent environment is updated with
    ``running_risk``, or, without one (None, or not finite for it), keeps its weight: the others
    share theirs. A weight of 0 counts as the smallest normal number, so it can rise again.

    weights, risk, running_risk: [E]; present: [E] bool; eta: step size; adjustment: C; counts: [E],
    training rows n_e, needed where C is not 0.   Returns [E], sums to 1, without gradient.
    """
    if adjustment and counts is None:
        raise ConfigError(f"adjustment={adjustment} needs the counts n_e, got None; write 0")
    if running_risk is not None:
        risk = torch.where(present, risk, running_risk)
        present = present | torch.isfinite(running_risk)
    if adjustment and counts is not None:
        risk = risk + adjustment / counts.clamp(min=1).to(risk.dtype).sqrt()
    weights = weights.clamp(min=torch.finfo(weights.dtype).tiny)
    weights = weights / weights.sum()
    share = torch.where(present, weights.log() + eta * risk, -torch.inf).softmax(dim=0)
    moved = torch.where(present, weights, 0.0).sum() * share
    return torch.where(present, moved.to(weights.dtype), weights)
