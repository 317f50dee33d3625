"""Sampling on the device: what is drawn, how often, and never a training item."""

import pytest
import torch

from recbole_adv.data.negatives import (
    InBatchNegatives,
    StaticNegatives,
    UniformNegatives,
    UserUniformPositives,
    _mix,
    as_tiles,
    per_positive,
)
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


def test_the_hash_is_that_of_splitmix64():
    """The first outputs of the generator from seed 1234567, as published with it in C."""
    state, drawn = torch.tensor(1234567), []
    for _ in range(3):
        drawn.append(int(_mix(state)) % 2**64)
        state = state - 0x61C8864680B583EB
    assert drawn == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_static_negatives_stay_and_are_uniform():
    static = StaticNegatives(USER, ITEM, 4, 9, seed=3)
    user, item = torch.tensor([1, 2, 3]), torch.tensor([1, 8, 4])
    drawn = static.of(user, item, 60_000)
    torch.manual_seed(0)
    assert torch.equal(drawn, static.of(user, item, 60_000))
    assert torch.equal(drawn[1:, :5], static.of(user[1:], item[1:], 5))  # whatever the batch is
    assert (drawn[0] == 5).all()
    assert chi_square(drawn[1], FREE[2]) < 20.52
    assert chi_square(drawn[2], FREE[3]) < 24.32
    assert not static.state_dict()


def test_static_negatives_of_different_pairs_are_independent():
    """The first negatives of user 3's pairs with 20 000 items, and with another seed."""
    user, item = torch.full((20_000,), 3), torch.arange(20_000)
    first, other = (StaticNegatives(USER, ITEM, 4, 9, seed=s).of(user, item, 1) for s in (3, 4))
    assert chi_square(first, FREE[3]) < 24.32 and chi_square(other, FREE[3]) < 24.32
    both = first.squeeze() * 10 + other.squeeze()
    assert chi_square(both, [10 * a + b for a in FREE[3] for b in FREE[3]]) < 103.5  # 63 degrees


def test_in_batch_negatives_are_the_batchs_items_as_often_as_they_stand_there():
    torch.manual_seed(7)
    negatives = InBatchNegatives(USER, ITEM, 4, 9)
    user, item = torch.tensor([2, 3, 3, 1, 2, 2]), torch.tensor([1, 4, 4, 5, 8, 6])
    drawn = negatives.sample(user, item, 30_000)
    assert drawn.shape == (6, 30_000)
    # User 2 has 1 and 8: of the rest, 4 stands there twice, 5 and 6 once.
    shares = torch.bincount(drawn[0], minlength=9) / 30_000
    assert shares[[1, 8, 2, 3, 7]].sum() == 0
    assert shares[[4, 5, 6]].tolist() == pytest.approx([0.5, 0.25, 0.25], abs=0.012)
    # User 3 has none: all six rows.
    shares = torch.bincount(drawn[1], minlength=9) / 30_000
    assert shares[[1, 4, 5, 6, 8]].tolist() == pytest.approx(
        [1 / 6, 1 / 3, 1 / 6, 1 / 6, 1 / 6], abs=0.012
    )
    assert (drawn[3] == 5).all()  # of the batch, user 1 has all but item 5
    assert not negatives.is_positive(user.unsqueeze(1), drawn).any()
    assert not negatives.state_dict()


def test_in_batch_negatives_where_the_batch_has_none():
    torch.manual_seed(8)
    user, item = torch.tensor([2, 2]), torch.tensor([1, 8])
    drawn = InBatchNegatives(USER, ITEM, 4, 9).sample(user, item, 20_000)
    assert chi_square(drawn[0], FREE[2]) < 20.52


def test_the_others_of_a_batch():
    assert InBatchNegatives.others(torch.tensor([5, 6, 7])).tolist() == [[6, 7], [7, 5], [5, 6]]


def test_tiles_become_one_row_for_each_positive():
    """Positives 0, 1, 2 with negatives 10 i + k; RecBole has the k-th of i at row 3 k + i."""
    tiled = torch.tensor([0, 10, 20, 1, 11, 21])
    rows = per_positive(tiled, 2)
    assert rows.tolist() == [[0, 1], [10, 11], [20, 21]]
    assert tiled.view(3, 2).tolist() != rows.tolist()  # the trap
    assert torch.equal(as_tiles(rows), tiled)
    assert per_positive(torch.zeros(6, 4), 3).shape == (2, 3, 4)
    with pytest.raises(ValueError, match="6 rows are not 4 tiles"):
        per_positive(tiled, 4)
