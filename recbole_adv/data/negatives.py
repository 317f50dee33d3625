"""Negatives and positives drawn on the device, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recbole_adv.errors import DataError

_TRIES = 8  # redraws of a rejected item before all items of the batch are looked at
_LARGE = 2**62  # a number below it, modulo n, prefers none of the n by more than n / 2^62
HAS_ALL = (
    "user {!r} has a training row with all {} items, so there is no negative for him; leave him out "
    "of the data"
)


def sorted_pairs(user: Tensor, item: Tensor, n_items: int) -> Tensor:
    """user * n_items + item, sorted, once each; [P] int64.   user, item: [N] int64."""
    pairs = user * n_items + item
    if pairs.device.type != "cpu":
        return torch.unique(pairs)
    pairs.numpy().sort()  # in place, where torch.unique takes four times the memory
    return torch.unique_consecutive(pairs)


def rows_of_owners(pairs: Tensor, n_owners: int, n_items: int) -> tuple[Tensor, Tensor]:
    """Where each owner's pairs begin among the sorted pairs, and how many they are; [U] each."""
    bounds = torch.arange(n_owners + 1, device=pairs.device) * n_items
    start = torch.searchsorted(pairs, bounds)
    return start[:-1], start.diff()


class UniformNegatives(nn.Module):
    """Draws items uniformly among those a user has no training row with.

    With a user's F free items and his positives p_0 < p_1 < ..., the r-th free item (r = 0..F-1) is
    1 + r + #{j : p_j - 1 - j <= r}. One search among the sorted keys
    user * n_items + p_j - 1 - j counts for all rows at once: nothing is rejected, so the work does
    not depend on luck and the device never waits for the host.

    user, item: [N] int64, the training rows; item 0 is padding; name_of: a user's name, for errors;
    has_all: the error, of his name and the number of items, where the pairs are no training rows.

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
        has_all: str = HAS_ALL,
    ):
        super().__init__()
        self.n_items = n_items
        keys = sorted_pairs(user, item, n_items)
        start, count = rows_of_owners(keys, n_users, n_items)
        free = n_items - 1 - count
        if (free <= 0).any():
            full = int((free <= 0).nonzero()[0])
            raise DataError(has_all.format(name_of(full), n_items - 1))
        keys -= torch.arange(1, len(keys) + 1, device=keys.device)  # 1 + the rank among all pairs,
        keys += start.repeat_interleave(count)  # less the pairs of the users before
        self.register_buffer("keys", keys, persistent=False)
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("free", free, persistent=False)

    def sample(self, user: Tensor, n: int) -> Tensor:
        """n items for each user, with replacement, by torch's global random numbers.

        user: [B] int64.   Returns [B, n] int64.
        """
        free = self.free[user].unsqueeze(-1)
        return self.nth(user, torch.randint(_LARGE, (len(user), n), device=user.device) % free)

    def nth(self, user: Tensor, r: Tensor) -> Tensor:
        """The r-th free item of each user, r = 0..F-1.   user: [B]; r: [B, n].   Returns [B, n]."""
        below = torch.searchsorted(self.keys, user.unsqueeze(-1) * self.n_items + r, right=True)
        return 1 + r + below - self.start[user].unsqueeze(-1)


class StaticNegatives(UniformNegatives):
    """Negatives that stay the same for a user-item pair over all epochs and runs of one seed.

    The k-th negative of a pair is a free item chosen by a hash of seed, pair and k: uniform like a
    drawn one, with nothing to be stored for any row and no state to be saved.
    """

    def __init__(self, *arguments, seed: int = 0, **named):
        super().__init__(*arguments, **named)
        self.seed = seed

    def of(self, user: Tensor, item: Tensor, n: int) -> Tensor:
        """n negatives for each pair; user, item: [B] int64.   Returns [B, n] int64."""
        pair = _mix(user * self.n_items + item + _mix(torch.tensor(self.seed)))
        number = _mix(pair.unsqueeze(-1) + torch.arange(n, device=user.device))
        return self.nth(user, (number & (2**63 - 1)) % self.free[user].unsqueeze(-1))


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): int64 to int64, one to one."""
    x = x - 0x61C8864680B583EB  # the golden ratio of 2^64, as a signed number
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor  # >> copies the sign bit
    return x


class InBatchNegatives(nn.Module):
    """Draws negatives among the items of the batch, in which an item is as frequent as it is popular.

    Left out are the items with which the user has a training row; where a batch holds no other, the
    negative is drawn uniformly among all free items.

    user, item: [N] int64, the training rows.   Buffer (in no checkpoint): pairs, sorted.
    """

    pairs: Tensor

    def __init__(self, user: Tensor, item: Tensor, n_users: int, n_items: int, **named):
        super().__init__()
        self.n_items = n_items
        self.uniform = UniformNegatives(user, item, n_users, n_items, **named)
        self.register_buffer("pairs", sorted_pairs(user, item, n_items), persistent=False)

    def is_positive(self, user: Tensor, item: Tensor) -> Tensor:
        """Whether there is a training row; user, item: shapes that broadcast.   Returns bool."""
        key = (user * self.n_items + item).contiguous()
        place = torch.searchsorted(self.pairs, key).clamp(max=len(self.pairs) - 1)
        return self.pairs[place] == key

    @staticmethod
    def others(item: Tensor) -> Tensor:
        """The items of the other rows of a batch; item: [B].   Returns [B, B - 1]."""
        row = torch.arange(len(item), device=item.device)
        return item[(row.unsqueeze(-1) + row[1:]) % len(item)]

    def sample(self, user: Tensor, item: Tensor, n: int) -> Tensor:
        """n items for each row of a batch, with replacement, by torch's global random numbers.

        user, item: [B] int64, the batch.   Returns [B, n] int64.
        """
        drawn = item[torch.randint(len(item), (len(user), n), device=user.device)]
        for _ in range(_TRIES):
            row, column = self.is_positive(user.unsqueeze(-1), drawn).nonzero(as_tuple=True)
            if not len(row):
                return drawn
            drawn[row, column] = item[torch.randint(len(item), row.shape, device=user.device)]
        row, column = self.is_positive(user.unsqueeze(-1), drawn).nonzero(as_tuple=True)
        if len(row):
            allowed = ~self.is_positive(user[row].unsqueeze(-1), item)
            none = ~allowed.any(dim=-1, keepdim=True)
            chosen = item[torch.multinomial((allowed | none).float(), 1)]
            free = self.uniform.sample(user[row], 1)
            drawn[row, column] = torch.where(none, free, chosen).squeeze(-1)
        return drawn


def per_positive(tiled: Tensor, n: int) -> Tensor:
    """RecBole's tiles of negatives as one row for each positive.

    The k-th negative of positive i stands at k B + i, so ``view(B, n)`` mixes the users.

    tiled: [n B, ...].   Returns [B, n, ...].
    """
    if n < 1 or len(tiled) % n:
        raise ValueError(f"{len(tiled)} rows are not {n} tiles of one batch")
    return tiled.unflatten(0, (n, -1)).transpose(0, 1)


def as_tiles(rows: Tensor) -> Tensor:
    """The inverse of :func:`per_positive`.   rows: [B, n].   Returns [n B]."""
    return rows.t().reshape(-1)


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
