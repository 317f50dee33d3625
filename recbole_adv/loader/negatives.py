"""What RecBole's samplers draw, for a whole batch at once on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recbole_adv.data.negatives import HAS_ALL, UniformNegatives, rows_of_owners, sorted_pairs
from recbole_adv.errors import DataError

Draw = Callable[[Tensor, Tensor, int], Tensor]
"""user [B], positive item [B], n -> n negatives for each row, [B, n], all int64."""

_LARGE = 2**62  # a number below it, modulo n, prefers none of the n by more than n / 2^62
_SCALE = 2**40  # the sum of weights that are no counts
_TABLE_BYTES = 2**26  # of a table with a byte for each pair of user and item


class Popularity(nn.Module):
    """Items by their frequency to the power alpha, in whole numbers, so that nothing is rounded.

    Item i has the places C_i .. C_i + w_i - 1 of C_I in all; w_i = count_i for alpha 1, else
    count_i^alpha in units of which all together have about 2^40.

    count: [I] int64, rows of each item; n_owners: how many totals must fit into one int64.
    Buffers (in no checkpoint): weight, end = C_i + w_i [I].
    """

    weight: Tensor
    end: Tensor

    def __init__(self, count: Tensor, alpha: float, n_owners: int):
        super().__init__()
        weight = count.clone()
        if alpha != 1:
            known = count[count > 0]
            largest = known.max() if alpha > 0 else known.min()  # has share 1: 5000 ** 100 is inf
            share = torch.where(count > 0, (count.double() / largest).pow(alpha), 0.0)
            scale = min(_SCALE, 2 ** (60 - n_owners.bit_length()))
            weight = (share * (scale / share.sum())).round().long()
            weight = torch.where(count > 0, weight.clamp(min=1), 0)
        end = weight.cumsum(0)
        self.total = int(end[-1])
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("end", end, persistent=False)

    def at(self, place: Tensor) -> Tensor:
        """The items that have these places."""
        return torch.searchsorted(self.end, place, right=True)

    def begin(self, item: Tensor) -> Tensor:
        """The first places of these items."""
        return self.end[item] - self.weight[item]

    def propose(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """Items whoever asks for them."""
        return self.at(torch.randint(self.total, size, device=device))


class PopularityNegatives(nn.Module):
    """Draws items by popularity among those that an owner does not have.

    As in :class:`UniformNegatives`, with places instead of items: of the places that are left when
    those of the owner's items p_0 < p_1 < ... are taken out, the r-th is
    r + sum of w_{p_j} over the j with C_{p_j} - (w_{p_0} + ... + w_{p_{j-1}}) <= r.

    owner, item: [N] int64 pairs; name_of: an owner's name, for errors.
    Buffers (in no checkpoint): keys = owner * (total + 1) + free places before p_j, sorted; taken,
    the sum of weights before p_j [P + 1]; start, free [owners].

    Raises:
        DataError: an owner has every item that has a weight.
    """

    keys: Tensor
    taken: Tensor
    start: Tensor
    free: Tensor

    def __init__(
        self,
        owner: Tensor,
        item: Tensor,
        n_owners: int,
        popularity: Popularity,
        name_of: Callable[[int], str] = str,
    ):
        super().__init__()
        self.popularity = popularity
        n_items = len(popularity.weight)
        pairs = sorted_pairs(owner, item, n_items)
        start, count = rows_of_owners(pairs, n_owners, n_items)
        owner, item = pairs // n_items, pairs % n_items
        taken = torch.cat([owner.new_zeros(1), popularity.weight[item].cumsum(0)])
        free = popularity.total - (taken[start + count] - taken[start])
        if (free <= 0).any():
            full = int((free <= 0).nonzero()[0])
            raise DataError(
                f"{name_of(full)!r} has every item that can be drawn by popularity, so there is no "
                "negative for it; leave it out of the data, or write distribution: uniform (of an "
                "evaluation mode: uni100)"
            )
        before = popularity.begin(item) - (taken[:-1] - taken[start[owner]])
        keys = owner * (popularity.total + 1) + before
        for name, value in (("keys", keys), ("taken", taken), ("start", start), ("free", free)):
            self.register_buffer(name, value, persistent=False)

    def sample(self, owner: Tensor, n: int) -> Tensor:
        """n items for each owner, by torch's global random numbers.   owner: [B].   Returns [B, n]."""
        free, owner = self.free[owner].unsqueeze(-1), owner.unsqueeze(-1)
        r = torch.randint(_LARGE, (len(owner), n), device=owner.device) % free
        j = torch.searchsorted(self.keys, owner * (self.popularity.total + 1) + r, right=True)
        return self.popularity.at(r + self.taken[j] - self.taken[self.start[owner]])


class OtherItems:
    """Draws any item but the row's own, as RecBole's RepeatableSampler; by popularity if given one."""

    def __init__(self, n_items: int, popularity: Popularity | None = None):
        self.n_items, self.popularity = n_items, popularity
        others = popularity.total - popularity.weight.max() if popularity else n_items - 2
        if others < 1:
            raise DataError(
                f"there is no other item than the row's own to draw: {n_items - 1} items"
            )

    def __call__(self, user: Tensor, item: Tensor, n: int) -> Tensor:
        size, item = (len(item), n), item.unsqueeze(-1)
        if self.popularity is None:
            drawn = torch.randint(1, self.n_items - 1, size, device=item.device)
            return drawn + (drawn >= item)
        weight, begin = self.popularity.weight[item], self.popularity.begin(item)
        place = torch.randint(_LARGE, size, device=item.device) % (self.popularity.total - weight)
        return self.popularity.at(place + (place >= begin) * weight)


class FreeItems(nn.Module):
    """Draws items that an owner does not have, each as often as the exact sampler does.

    Where a table with a byte for each pair is small, on a CPU, a first draw looks up the table and
    only what an owner has is drawn again, by the exact sampler: a free item comes with probability
    p + P(hit) p / (1 - P(hit)) = p / (1 - P(hit)), as it should. The searches in the sorted pairs,
    each of them twenty steps through memory, are saved.

    exact: has ``sample(owner, n)``; propose: draws whoever asks, ``(size, device) -> items``.
    """

    table: Tensor | None

    def __init__(self, exact, propose, owner: Tensor, item: Tensor, n_owners: int, n_items: int):
        super().__init__()
        self.exact, self.propose, self.n_items = exact, propose, n_items
        table = None
        if owner.device.type == "cpu" and n_owners * n_items <= _TABLE_BYTES:
            table = torch.zeros(n_owners * n_items, dtype=torch.bool)
            table[owner * n_items + item] = True
        self.register_buffer("table", table, persistent=False)

    def __call__(self, user: Tensor, item: Tensor, n: int) -> Tensor:
        if self.table is None or user.device.type != "cpu":
            return self.exact.sample(user, n)
        drawn = self.propose((len(user), n), user.device).view(-1)
        owner = user if n == 1 else user.repeat_interleave(n)
        hit = self.table.index_select(0, owner * self.n_items + drawn).nonzero().squeeze(-1)
        if len(hit):
            drawn[hit] = self.exact.sample(owner[hit], 1).squeeze(-1)
        return drawn.view(-1, n)


def free_items(
    owner: Tensor,
    item: Tensor,
    n_owners: int,
    n_items: int,
    popularity: Popularity | None = None,
    name_of: Callable[[int], str] = str,
    has_all: str = HAS_ALL,
) -> Draw:
    """Draws items that an owner has no pair with, uniformly or by popularity.

    owner, item: [N] int64 pairs, on the device where draws are wanted; has_all: the error about an
    owner who has every item, of his name and the number of items.
    """
    if popularity is not None:
        exact = PopularityNegatives(owner, item, n_owners, popularity, name_of)
        return FreeItems(exact, popularity.propose, owner, item, n_owners, n_items)
    exact = UniformNegatives(owner, item, n_owners, n_items, name_of, has_all)

    def propose(size: tuple[int, int], device: torch.device) -> Tensor:
        return torch.randint(1, n_items, size, device=device)

    return FreeItems(exact, propose, owner, item, n_owners, n_items)
