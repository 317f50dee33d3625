"""Negatives and positives drawn on the device, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recbole_adv.errors import DataError

_LARGE = 2**62  # a number below it, modulo n, prefers none of the n by more than n / 2^62


class UniformNegatives(nn.Module):
    """Draws items uniformly among those a user has no training row with.

    With a user's F free items and his positives p_0 < p_1 < ..., the r-th free item (r = 0..F-1) is
    1 + r + #{j : p_j - 1 - j <= r}. One search among the sorted keys
    user * n_items + p_j - 1 - j counts for all rows at once: nothing is rejected, so the work does
    not depend on luck and the device never waits for the host.

    user, item: [N] int64, the training rows; item 0 is padding; name_of: a user's name, for errors.

    Buffers (int64, in no checkpoint, because the data give them): keys, sorted, one for each pair;
    start [U], where a user's keys begin; free [U].

    Raises:
        DataError: a user has a training row with every item.
    """

    keys: Tensor
    start: Tensor
    free: Tensor

    def __init__(
        self,
        user: Tensor,
        item: Tensor,
        n_users: int,
        n_items: int,
        name_of: Callable[[int], str] = str,
    ):
        super().__init__()
        self.n_items = n_items
        pairs = torch.unique(user * n_items + item)
        count = torch.bincount(pairs // n_items, minlength=n_users)
        free = n_items - 1 - count
        if (free <= 0).any():
            full = int((free <= 0).nonzero()[0])
            raise DataError(
                f"user {name_of(full)!r} has a training row with all {n_items - 1} items, so there "
                "is no negative for him; leave him out of the data"
            )
        start = count.cumsum(0) - count
        rank = torch.arange(len(pairs), device=pairs.device) - start[pairs // n_items]
        self.register_buffer("keys", pairs - 1 - rank, persistent=False)
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("free", free, persistent=False)

    def sample(self, user: Tensor, n: int) -> Tensor:
        """n items for each user, with replacement, by torch's global random numbers.

        user: [B] int64.   Returns [B, n] int64.
        """
        free = self.free[user].unsqueeze(-1)
        r = torch.randint(_LARGE, (len(user), n), device=user.device) % free
        below = torch.searchsorted(self.keys, user.unsqueeze(-1) * self.n_items + r, right=True)
        return 1 + r + below - self.start[user].unsqueeze(-1)


class UserUniformPositives(nn.Module):
    """Draws positives as the codes of InvCF, AdvInfoNCE and AdvDrop do: users in turn.

    Training row k of an epoch stands for the (k mod U')-th of the U' users with data and for one of
    his training items, chosen uniformly, so that an active user counts no more than others.

    user, item: [N] int64.   Buffers (in no checkpoint): users, start, count [U'], items [N].
    """

    users: Tensor
    start: Tensor
    count: Tensor
    items: Tensor

    def __init__(self, user: Tensor, item: Tensor):
        super().__init__()
        order = torch.argsort(user, stable=True)
        users, count = torch.unique_consecutive(user[order], return_counts=True)
        self.register_buffer("users", users, persistent=False)
        self.register_buffer("start", count.cumsum(0) - count, persistent=False)
        self.register_buffer("count", count, persistent=False)
        self.register_buffer("items", item[order], persistent=False)

    def positives_of(self, row_idx: Tensor) -> tuple[Tensor, Tensor]:
        """User and item for each training row; row_idx: [B] int64.   Returns two [B] int64."""
        which = row_idx % len(self.users)
        r = torch.randint(_LARGE, which.shape, device=which.device) % self.count[which]
        return self.users[which], self.items[self.start[which] + r]
