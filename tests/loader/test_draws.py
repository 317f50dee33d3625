"""What is drawn, how often, and never an item that the owner has."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2, chi2_contingency

from recbole_adv.errors import DataError
from recbole_adv.loader.negatives import FreeItems, OtherItems, Popularity, free_items

# Three owners (0 is padding), items 1..6. Owner 1 has 2 and 5, owner 2 all but 4 and 6, owner 3 none.
PAIRS = [(1, 2), (1, 5), (2, 1), (2, 2), (2, 3), (2, 5), (2, 5)]
OWNER, ITEM = torch.tensor(PAIRS).t().contiguous()
COUNT = torch.tensor([0, 1, 30, 4, 5, 60, 0])  # nobody has item 6


def fits(drawn, expected):
    """Whether counts of ``drawn`` agree with probabilities; 1 of 10,000 right ones would not."""
    count = torch.bincount(drawn.flatten(), minlength=len(expected)).double()
    expected = torch.tensor(expected, dtype=torch.float64) * drawn.numel()
    assert count[expected == 0].sum() == 0, "drawn although it has no probability"
    seen = expected > 0
    statistic = ((count - expected).square() / expected)[seen].sum()
    return statistic < chi2.ppf(1 - 1e-4, max(int(seen.sum()) - 1, 1))


@pytest.mark.parametrize("table", [True, False])
def test_uniform_over_what_the_owner_lacks(table):
    torch.manual_seed(1)
    draw = free_items(OWNER, ITEM, 4, 7)
    if not table:
        draw.table = None
    owner = torch.tensor([1, 2, 3])
    drawn = draw(owner, owner, 40_000)
    assert drawn.shape == (3, 40_000) and drawn.dtype == torch.int64
    assert fits(drawn[0], [0, 1 / 4, 0, 1 / 4, 1 / 4, 0, 1 / 4])
    assert fits(drawn[1], [0, 0, 0, 0, 1 / 2, 0, 1 / 2])
    assert fits(drawn[2], [0] + [1 / 6] * 6)


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.0, 0.0])
def test_popularity_to_the_power_alpha_over_what_the_owner_lacks(alpha, table):
    torch.manual_seed(2)
    draw = free_items(OWNER, ITEM, 4, 7, Popularity(COUNT, alpha, 4))
    if not table:
        draw.table = None
    owner = torch.tensor([1, 2, 3])
    drawn = draw(owner, owner, 40_000)
    # By hand: counts 1, 30, 4, 5, 60 to the power alpha, without the owner's items; item 6 never.
    weights = [0.0, 1.0, 30**alpha, 4**alpha, 5**alpha, 60**alpha, 0.0]
    for row, has in ((0, (2, 5)), (1, (1, 2, 3, 5)), (2, ())):
        free = [0.0 if i in has else w for i, w in enumerate(weights)]
        assert fits(drawn[row], [w / sum(free) for w in free])


@pytest.mark.parametrize("alpha", [100.0, -100.0])
def test_powers_beyond_the_largest_number(alpha):
    """5000^100 is above 10^308, and 5000^-100 below 10^-308."""
    weight = Popularity(torch.tensor([0, 4900, 5000]), alpha, 3).weight.tolist()
    assert weight[0] == 0
    assert weight[1] / weight[2] == pytest.approx(0.98**alpha, rel=1e-9)


def test_the_test_of_fit_can_fail():
    drawn = torch.tensor([1] * 5_200 + [2] * 4_800)
    assert not fits(drawn, [0, 0.5, 0.5]) and fits(drawn, [0, 0.52, 0.48])
    with pytest.raises(AssertionError, match="no probability"):
        fits(drawn, [0, 1.0, 0.0])


@pytest.mark.parametrize("alpha", [1.0, 0.7])
def test_popularity_is_exact_where_owners_have_nearly_everything(alpha):
    """Against a mask, for owners with from no item to all but one; frequencies from 1 to 10^6."""
    torch.manual_seed(3)
    n_owners, n_items = 300, 40
    held = torch.rand(n_owners, n_items) < torch.linspace(0, 1.2, n_owners).unsqueeze(1)
    held[:, 0] = False
    held[torch.arange(n_owners), torch.randint(1, n_items, (n_owners,))] = False
    owner, item = held.nonzero().t().contiguous()
    count = torch.cat([torch.zeros(1), torch.logspace(0, 6, n_items - 1)]).long()
    draw = free_items(owner, item, n_owners, n_items, Popularity(count, alpha, n_owners))
    draw.table = None
    everyone = torch.arange(n_owners)
    drawn = draw(everyone, everyone, 2_000)
    assert drawn.min() >= 1 and not held.gather(1, drawn).any()
    weight = count.double().pow(alpha) * (count > 0)
    for one in range(0, n_owners, 50):
        free = torch.where(held[one], 0.0, weight)
        top = int(free.argmax())
        share, p = float((drawn[one] == top).double().mean()), float(free[top] / free.sum())
        assert abs(share - p) <= 4 * (p * (1 - p) / 2_000) ** 0.5 + 1e-9


def test_weights_of_very_many_owners_fit_into_one_number():
    n_owners = 2**30
    popularity = Popularity(COUNT, 0.5, n_owners)
    assert 0 < popularity.total * (n_owners + 1) < 2**62
    assert torch.equal(popularity.weight > 0, COUNT > 0)
    share = popularity.weight.double() / popularity.total
    assert torch.allclose(share, COUNT.double().sqrt() / COUNT.double().sqrt().sum(), atol=1e-6)


def test_all_but_the_own_item():
    torch.manual_seed(4)
    item = torch.tensor([1, 4, 6])
    drawn = OtherItems(7)(item, item, 40_000)
    for row, own in enumerate(item.tolist()):
        assert fits(drawn[row], [0] + [0 if i == own else 1 / 5 for i in range(1, 7)])
    drawn = OtherItems(7, Popularity(COUNT, 1.0, 1))(item, item, 40_000)
    for row, own in enumerate(item.tolist()):
        free = [0 if i == own else int(c) for i, c in enumerate(COUNT)]
        assert fits(drawn[row], [w / sum(free) for w in free])


def test_the_table_changes_no_distribution():
    """Drawn with and without the table, for owners who have 3 of 4 items on average."""
    torch.manual_seed(5)
    held = torch.rand(30, 20) < 0.75
    held[:, 0], held[:, 1] = False, False
    owner, item = held.nonzero().t().contiguous()
    everyone = torch.arange(30)
    with_table = free_items(owner, item, 30, 20)
    assert with_table.table is not None
    without = FreeItems(with_table.exact, with_table.propose, owner, item, 30, 20)
    without.table = None
    one, other = (draw(everyone, everyone, 4_000) for draw in (with_table, without))
    for row in range(30):
        counts = torch.stack([torch.bincount(d[row], minlength=20) for d in (one, other)])
        assert counts[:, held[row]].sum() == 0
        counts = counts[:, counts.sum(0) > 0].numpy()
        if counts.shape[1] > 1:
            assert chi2_contingency(counts).pvalue > 1e-5


def test_owners_who_have_everything_are_named():
    owner, item = torch.tensor([1, 2, 2]), torch.tensor([1, 1, 2])
    with pytest.raises(DataError, match="'Bo' has every item that can be drawn by popularity"):
        popularity = Popularity(torch.tensor([0, 3, 4, 0]), 1.0, 3)
        free_items(owner, item, 3, 4, popularity, {2: "Bo"}.get)
    with pytest.raises(DataError, match="no other item"):
        OtherItems(2)


def test_the_seed_is_all():
    draw = free_items(OWNER, ITEM, 4, 7)
    owner = torch.tensor([1, 2, 3]).repeat(50)
    drawn = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        np.random.seed(seed + 1)
        drawn.append(draw(owner, owner, 2))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
