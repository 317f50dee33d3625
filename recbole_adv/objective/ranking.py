"""Ranking losses per row, each with its gradient in a scalar multiplier of the scores.

The gradient of row i is g_i = d/dw l_i(w * scores) at w = 1, the "dummy classifier" of IRM
(Arjovsky et al., 2019), in closed form: an invariance penalty on it needs no double backward, so it
works with sparse products, mixed precision and distributed training. Autograd flows through both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PROB_EPS = 1e-7
"""Probabilities are kept this far from 0 and 1; float32 has no number between 1 - 6e-8 and 1."""


class RowLoss(NamedTuple):
    """One number per row: what is minimised, and its derivative in a multiplier of the scores."""

    loss: Tensor
    gradient: Tensor


def bpr(positive_score: Tensor, negative_score: Tensor) -> RowLoss:
    """Bayesian personalised ranking (Rendle et al., UAI 2009) of pairs of scores.

    With D = positive - negative: l = softplus(-D), g = -D sigma(-D).
    RecBole's BPRLoss is -log(1e-10 + sigma(D)): the same below a loss of about 20, flat above it.

    positive_score, negative_score: one shape, [B].   Returns loss [B] and gradient [B].
    """
    difference = positive_score - negative_score
    return RowLoss(F.softplus(-difference), -difference * torch.sigmoid(-difference))


def bce(logit: Tensor, label: Tensor) -> RowLoss:
    """Binary cross entropy of logits.

    l = softplus(z) - y z, g = z (sigma(z) - y).

    logit: [B]; label: [B] in [0, 1].   Returns loss [B] and gradient [B].
    """
    label = label.to(logit.dtype)
    loss = F.binary_cross_entropy_with_logits(logit, label, reduction="none")
    # sigma(z) - y without the cancellation that turns it into 0 for a good positive.
    residual = (1 - label) * torch.sigmoid(logit) - label * torch.sigmoid(-logit)
    return RowLoss(loss, logit * residual)


def logit_of(prob: Tensor) -> Tensor:
    """The logit log(p) - log(1 - p) of a probability, p kept in [1e-7, 1 - 1e-7].

    The derivative is that of the logit at the kept p, also outside the interval: a plain clamp has
    derivative 0 there, and a row that is confidently wrong would never be mended.

    prob: any shape.   Returns the same shape.
    """
    # Half precision has no number between 1 - 5e-4 and 1.
    prob = prob.to(torch.promote_types(prob.dtype, torch.float32))
    kept = prob.detach().clamp(PROB_EPS, 1 - PROB_EPS)
    prob = prob + (kept - prob.detach())
    return torch.log(prob) - torch.log1p(-prob)


def bce_from_prob(prob: Tensor, label: Tensor) -> RowLoss:
    """Binary cross entropy of probabilities, for models that end in a sigmoid and nn.BCELoss.

    :func:`bce` at z = log(p) - log(1 - p), p kept in [1e-7, 1 - 1e-7], so a loss is at most 16.1
    (nn.BCELoss stops at 100).

    prob: [B]; label: [B] in [0, 1].   Returns loss [B] and gradient [B].
    """
    return bce(logit_of(prob), label)


def softmax_cross_entropy(score: Tensor, target: Tensor) -> RowLoss:
    """Softmax cross entropy over all items, or over one positive and its negatives (InfoNCE).

    With p = softmax(z): l = logsumexp(z) - z_y, g = sum_j p_j z_j - z_y. Computed as
    g = l - H(p), because log p_j = z_j - logsumexp(z): nothing cancels at large scores.
    A column masked by -inf has p_j = 0 and adds nothing; the target must not be masked.

    score: [B, I]; target: [B] int64 column.   Returns loss [B] and gradient [B].
    """
    log_prob = torch.log_softmax(score, dim=-1)
    loss = -log_prob.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    finite = log_prob.masked_fill(torch.isneginf(log_prob), 0.0)
    return RowLoss(loss, loss + (log_prob.exp() * finite).sum(dim=-1))


def fold_rows(value: Tensor, times: int) -> Tensor:
    """Mean over the tiles of a batch in which RecBole repeats each row.

    RecBole puts the k-th negative of positive i at row k * B + i, so row i of the result is
    (1/T) sum_k value[k * B + i].

    value: [T * B, ...]; times: T.   Returns [B, ...].
    """
    if times < 1 or len(value) % times:
        raise ValueError(f"{len(value)} rows are not {times} tiles of one batch")
    return value.unflatten(0, (times, -1)).mean(dim=0)
