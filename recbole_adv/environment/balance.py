"""Environments of equal mass at least cost."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_least_cost(cost: Tensor) -> Tensor:
    """Put rows into environments of equal size, each where it costs least as far as there is room.

    Rows ask for their cheapest environment that has room; one that is asked by too many keeps those
    that would lose most by their next choice, and is full. For two environments the total cost is
    the least there is; for more it is close to it. Sizes differ by one at most.

    cost: [N, E], finite.   Returns [N] int64.
    """
    n_rows, n_environments = cost.shape
    room = torch.full((n_environments,), n_rows // n_environments, device=cost.device)
    room[: n_rows % n_environments] += 1
    chosen = torch.full((n_rows,), -1, device=cost.device)
    open_ = torch.ones(n_environments, dtype=torch.bool, device=cost.device)
    rows = torch.arange(n_rows, device=cost.device)
    while len(rows):
        left = cost[rows].masked_fill(~open_, torch.inf)
        best, choice = left.min(dim=1)
        second = left.scatter(1, choice.unsqueeze(1), torch.inf).min(dim=1).values
        regret = second - best
        asked = torch.bincount(choice, minlength=n_environments)
        full = open_ & (asked >= room)
        for e in full.nonzero().flatten().tolist():
            asking = (choice == e).nonzero().flatten()
            by_regret = regret[asking].argsort(descending=True, stable=True)
            chosen[rows[asking[by_regret[: room[e]]]]] = e
        open_ &= ~full
        rows = rows[chosen[rows] < 0]
    return chosen
