"""Label smoothing as what it adds to the loss of each row: tensors in, tensors out.

The losses of coins and of softmax are linear in the label, so what is added is linear in the scores.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bernoulli_smoothing(logit: Tensor, label: Tensor, epsilon: float) -> Tensor:
    """eps (y - 1/2) z: binary cross entropy at y (1 - eps) + eps / 2, minus that at y.

    0 where the label is neither 0 nor 1, but soft already.

    logit, label: one shape.   Returns that shape.
    """
    label = label.to(logit.dtype)
    hard = (label == 0) | (label == 1)
    return torch.where(hard, epsilon * (label - 0.5) * logit, 0.0)


def smoothed_bpr(difference: Tensor, epsilon: float) -> Tensor:
    """(1 - eps / 2) softplus(-D) + (eps / 2) softplus(D): BPR if one pair in 2 / eps were reversed.

    Least at D = logit(1 - eps / 2), where margins stop to grow.

    difference: D = positive - negative score, any shape.   Returns that shape.
    """
    return F.softplus(-difference) + epsilon / 2 * difference


def softmax_smoothing(
    score: Tensor, target: Tensor, epsilon: float, skip_first: bool = False
) -> Tensor:
    """eps (z_y - mean_k z_k): cross entropy with torch's ``label_smoothing``, minus that without.

    The mean is over the candidates: every column, the target's too, but those of -inf, and with
    ``skip_first`` column 0.

    score: [..., K]; target: [...] int64 columns.   Returns [...].
    """
    own = score.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    candidates = score[..., 1:] if skip_first else score
    masked = torch.isneginf(candidates)
    count = (~masked).sum(dim=-1)
    return epsilon * (own - candidates.masked_fill(masked, 0.0).sum(dim=-1) / count)
