"""Row-wise Adagrad."""

import pytest
import torch
from torch import nn, optim

from recbole_adv.game.row_adagrad import RowAdagrad


def test_two_steps_by_hand():
    weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    optimizer = RowAdagrad([weight], lr=0.5, initial_accumulator_value=1.5, eps=0.0)
    weight.grad = torch.tensor([[3.0, 4.0], [0.0, 0.0]])  # mean square 12.5, sum 14
    optimizer.step()
    root = 14.0**0.5
    expected = torch.tensor([[1 - 1.5 / root, 2 - 2 / root], [3.0, 4.0]])
    torch.testing.assert_close(weight.data, expected)
    weight.grad = torch.tensor([[0.0, 2.0], [1.0, 0.0]])  # 2 and 0.5: sums 16 and 2
    optimizer.step()
    expected -= torch.tensor([[0.0, 1 / 4.0], [0.5 / 2**0.5, 0.0]])
    torch.testing.assert_close(weight.data, expected)
    assert optimizer.state[weight]["sum"].tolist() == [[16.0], [2.0]]


@pytest.mark.parametrize("shape", [(4,), (), (4, 1)])
def test_of_one_column_it_is_torchs_adagrad(shape):
    mine, other = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    ours = RowAdagrad([mine], lr=0.1, weight_decay=0.3, eps=1e-3)
    theirs = optim.Adagrad([other], lr=0.1, weight_decay=0.3, eps=1e-3)
    for seed in range(3):
        mine.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        other.grad = mine.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(mine, other)


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="eps must be a number >= 0, got -1"):
        RowAdagrad([nn.Parameter(torch.ones(2))], eps=-1)
