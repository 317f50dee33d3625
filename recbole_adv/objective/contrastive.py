"""Contrastive losses over sampled negatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_DENSE = 16
"""All scores of a batch are cheaper than the sampled ones up to this many items for a negative."""


def info_nce(
    positive: Tensor,
    negative: Tensor,
    log_weight: Tensor | float = 0.0,
    negative_weight: float = 1.0,
) -> Tensor:
    r"""InfoNCE with weighted negatives, in log-sum-exp form.

    .. math::
        -\log \frac{e^{s^+}}{e^{s^+} + k \sum_j w_j e^{s^-_j}}
        = -s^+ + \mathrm{logaddexp}(s^+, \log k + \mathrm{logsumexp}_j(\log w_j + s^-_j))

    AdvInfoNCE has log w = log N + log softmax(hardness): all weights 1 where hardness is equal.
    The quotient itself overflows in float32 from scores of 88 on, cosines at temperature 0.011.

    positive: [B] scores over temperature; negative, log_weight: [B, N]; negative_weight: k > 0.
    Returns [B].
    """
    rest = math.log(negative_weight) + torch.logsumexp(negative + log_weight, dim=-1)
    return torch.logaddexp(positive, rest) - positive


def sampled_products(row: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Inner products of each row with its own N rows of a table.

    Where the table is small the products with all of it are taken and picked from: the backward is
    then two matrix products instead of B N rows added into the table.

    row: [B, D]; table: [I, D]; index: [B, N] int64 in 0..I-1.   Returns [B, N].
    """
    if len(table) <= _DENSE * index.shape[-1]:
        return (row @ table.t()).gather(-1, index)
    return torch.einsum("bd,bnd->bn", row, table[index])
