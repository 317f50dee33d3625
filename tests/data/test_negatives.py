"""Sampling on the device: what is drawn, how often, and never a training item."""

import pytest
import torch

from recbole_adv.data.negatives import UniformNegatives, UserUniformPositives
from recbole_adv.errors import DataError

# Four users (0 is padding), items 1..8; user 1 has all but item 5, user 3 none, a pair is doubled.
PAIRS = [(1, 1), (1, 2), (1, 3), (1, 4), (1, 6), (1, 7), (1, 8), (2, 8), (2, 1), (2, 8)]
USER, ITEM = torch.tensor(PAIRS).t().contiguous()
FREE = {1: [5], 2: [2, 3, 4, 5, 6, 7], 3: [1, 2, 3, 4, 5, 6, 7, 8]}


def chi_square(drawn, values):
    """Pearson's statistic of equal frequencies; asserts that only ``values`` were drawn."""
    count = torch.bincount(drawn.flatten(), minlength=max(values) + 1)
    assert count[values].sum() == drawn.numel()
    expected = drawn.numel() / len(values)
    return float((count[values] - expected).square().sum() / expected)


def test_negatives_are_uniform_over_exactly_the_free_items():
    torch.manual_seed(1)
    negatives = UniformNegatives(USER, ITEM, n_users=4, n_items=9)
    drawn = negatives.sample(torch.tensor([1, 2, 3]), 60_000)
    assert drawn.shape == (3, 60_000) and drawn.dtype == torch.int64
    assert (drawn[0] == 5).all()
    # The 99.9 % points of chi-square with 5 and 7 degrees of freedom.
    assert chi_square(drawn[1], FREE[2]) < 20.52
    assert chi_square(drawn[2], FREE[3]) < 24.32


def test_negatives_of_many_users_are_never_positives():
    torch.manual_seed(2)
    held = torch.rand(200, 50) < torch.rand(200, 1)  # from hardly any item to nearly all
    held[:, 0], held[:, 7] = False, False
    user, item = held.nonzero().t()
    drawn = UniformNegatives(user, item, 200, 50).sample(torch.arange(200), 500)
    assert drawn.min() >= 1 and drawn.max() <= 49
    assert not held.gather(1, drawn).any()
    seen = torch.zeros_like(held).scatter(1, drawn, True)
    assert seen.sum() > 0.999 * (~held[:, 1:]).sum()  # each is left out with probability < 5e-5


def test_the_order_of_the_rows_is_nothing_and_the_seed_is_all():
    one = UniformNegatives(USER, ITEM, 4, 9)
    other = UniformNegatives(USER.flip(0), ITEM.flip(0), 4, 9)
    drawn = []
    for negatives, seed in ((one, 3), (other, 3), (one, 4)):
        torch.manual_seed(seed)
        drawn.append(negatives.sample(torch.tensor([2, 2, 3]), 20))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not one.state_dict()  # nothing of it is in a checkpoint


def test_a_user_with_all_items_is_named():
    user, item = torch.tensor([1, 2, 2, 2]), torch.tensor([1, 3, 1, 2])
    with pytest.raises(DataError, match="user 'Bo' has a training row with all 3 items"):
        UniformNegatives(user, item, 3, 4, {2: "Bo"}.get)


def test_positives_take_users_in_turn_and_items_at_random():
    torch.manual_seed(5)
    user, item = torch.tensor([4, 2, 4, 4, 2, 7]), torch.tensor([1, 5, 2, 3, 6, 9])
    positives = UserUniformPositives(user, item)
    rows = torch.arange(6).repeat(10_000)
    drawn_user, drawn_item = positives.positives_of(rows)
    assert torch.equal(drawn_user[:6], torch.tensor([2, 4, 7, 2, 4, 7]))
    assert chi_square(drawn_item[drawn_user == 4], [1, 2, 3]) < 13.82
    assert chi_square(drawn_item[drawn_user == 2], [5, 6]) < 10.83
    assert (drawn_item[drawn_user == 7] == 9).all()
    torch.manual_seed(6)
    first = positives.positives_of(rows)[1]
    torch.manual_seed(6)
    assert torch.equal(first, positives.positives_of(rows)[1])
