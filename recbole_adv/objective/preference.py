"""Losses of invariant and environment-aware preferences (InvPref), per row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def row_loss(a: Tensor, b: Tensor | None, label: Tensor, explicit: bool) -> Tensor:
    """How badly an invariant score a, or one made environment-aware by b, fits a label.

    Implicit, with p = sigma(a) sigma(b), or sigma(a): -y log p - (1 - y) log(1 - p), in logarithms
    throughout, as 1 - p = sigma(-a) + sigma(a) sigma(-b). Explicit: (a + b - y)^2, or (a - y)^2.

    a, b: scores, any shape; label: in [0, 1] if implicit.   Returns the common shape.
    """
    if explicit:
        return (a - label if b is None else a + b - label).square()
    if b is None:
        return F.softplus(a) - label * a
    log_p = F.logsigmoid(a) + F.logsigmoid(b)
    log_not_p = torch.logaddexp(F.logsigmoid(-a), F.logsigmoid(a) + F.logsigmoid(-b))
    return -label * log_p - (1 - label) * log_not_p


def product_loss(a: Tensor, b: Tensor, label: Tensor, explicit: bool) -> Tensor:
    """:func:`row_loss` by way of the probability, as coarse as its type is (official InvPref).

    log p and log(1 - p) are cut off at -100.
    """
    if explicit:
        return row_loss(a, b, label, explicit)
    p = torch.sigmoid(a) * torch.sigmoid(b)
    return F.binary_cross_entropy(p, label.expand_as(p), reduction="none")


def environment_weight(size: Tensor, kind: str) -> Tensor:
    """The weight of a row by its environment, n_e of n rows.

    none: 1; frequency: min(n_e + 1, n - 1) / n; inverse: n / (E n_e), whose mean over rows is 1.

    size: [E] int64, n_e.   Returns [E].
    """
    n = size.sum()
    if kind == "frequency":
        return torch.minimum(size + 1, n - 1) / n
    if kind == "inverse":
        return n / (len(size) * size.clamp(min=1))
    return torch.ones_like(size, dtype=torch.get_default_dtype())
