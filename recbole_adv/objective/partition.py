"""Closed-form environments: the partitions that maximise EIIL's objectives, without an ascent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sign_split(gradient: Tensor) -> Tensor:
    """The environment 1[g_i > 0]: it or its complement maximises 'irm_raw' for two environments.

    The objective is convex in q, so a vertex is best, and of the vertices the one that gathers all
    positive g. For BPR environment 1 is the mis-ranked pairs.

    gradient: [B].   Returns [B] int64.
    """
    return (gradient > 0).long()


def kmeans_1d(values: Tensor, k: int) -> Tensor:
    """The exact optimal k-means partition of numbers, by dynamic programming.

    Maximises sum_c S_c^2 / n_c (S_c the sum, n_c the size of cluster c), which is the total minus
    the within-cluster sum of squares. Of gradients it maximises the EIIL objective 'irm', of losses
    'rex'. Optimal clusters are intervals of the sorted values; with F_c(i) the best value of the
    first i distinct values in c clusters, F_c(i) = max_j F_{c-1}(j) + S(j, i)^2 / n(j, i), and the
    best j grows with i, so each layer takes O(N log N) by divide and conquer (Gronlund et al.,
    2017, arXiv 1701.07204), here one whole level of it at a time.

    values: [B], finite; k >= 1.   Returns [B] int64 in 0..k-1, 0 the smallest values; equal values
    share a cluster, so fewer than k distinct values give fewer clusters.
    """
    if k < 1 or not torch.isfinite(values).all():
        raise ValueError(f"kmeans_1d needs finite values and k >= 1, got k={k}")
    numbers = values.detach().double()
    # Centred, because the squares of sums lose what a large common offset takes of the precision.
    numbers = numbers - numbers.mean() if len(numbers) else numbers
    distinct, group, count = torch.unique(numbers, return_inverse=True, return_counts=True)
    n_groups = len(distinct)
    k = min(k, n_groups)
    mass = F.pad(count.double().cumsum(0), (1, 0))
    total = F.pad((count * distinct).cumsum(0), (1, 0))
    best = total.square() / mass.clamp(min=1)
    cuts = []
    for c in range(2, k + 1):
        # Only the whole of the values is asked of the last layer.
        best, cut = _layer(best, mass, total, c, first=n_groups if c == k else c)
        cuts.append(cut)
    cluster = torch.zeros_like(count)
    end = n_groups
    for c, cut in reversed(list(enumerate(cuts, start=1))):
        start = int(cut[end])
        cluster[start:end] = c
        end = start
    return cluster[group]


def _layer(best: Tensor, mass: Tensor, total: Tensor, c: int, first: int) -> tuple[Tensor, Tensor]:
    """F_c(i) and its best j for i in first..M, from F_{c-1} = ``best``.   All tensors [M + 1]."""
    n_groups = len(best) - 1
    value, cut = torch.full_like(best, -torch.inf), torch.zeros_like(best, dtype=torch.int64)
    # Open intervals of i, and for each of them the interval in which its best j lie.
    left, right, low, high = torch.tensor(
        [[first], [n_groups], [c - 1], [n_groups - 1]], device=best.device
    )
    while len(left):
        middle = (left + right) // 2
        value[middle], cut[middle] = _best_cut(
            best, mass, total, middle, low, torch.minimum(high, middle - 1)
        )
        chosen = cut[middle]
        left, right = torch.cat([left, middle + 1]), torch.cat([middle - 1, right])
        low, high = torch.cat([low, chosen]), torch.cat([chosen, high])
        open_ = left <= right
        left, right, low, high = left[open_], right[open_], low[open_], high[open_]
    return value, cut


def _best_cut(
    best: Tensor, mass: Tensor, total: Tensor, i: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """max and argmax of F(j) + S(j, i)^2 / n(j, i) over j in low..high, for each i.   All [R]."""
    length = high - low + 1
    row = torch.repeat_interleave(torch.arange(len(i), device=i.device), length)
    start = length.cumsum(0) - length
    j = torch.arange(len(row), device=i.device) - start[row] + low[row]
    value = best[j] + (total[i[row]] - total[j]).square() / (mass[i[row]] - mass[j])
    top = torch.full_like(best[i], -torch.inf).scatter_reduce(0, row, value, "amax")
    candidate = torch.where(value == top[row], j, len(best))
    return top, torch.full_like(i, len(best)).scatter_reduce(0, row, candidate, "amin")
