"""Optimizers that move the rows of a sparse gradient alone."""

import numpy as np
import pytest
import torch
from torch import nn, optim

from recbole_adv.game.lazy_rows import LazyRows, lazy
from recbole_adv.game.optimizer import LEARNERS

ARGUMENTS = {
    "adam": {"weight_decay": 0.1, "amsgrad": True},
    "adamw": {"weight_decay": 0.1},
    "sgd": {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    "adagrad": {"weight_decay": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.2},
    "rmsprop": {"momentum": 0.5, "centered": True, "weight_decay": 0.1},
    "clippy_adagrad": {"weight_decay": 0.1},
    "row_adagrad": {"weight_decay": 0.1, "initial_accumulator_value": 0.2},
}
N, D = 7, 3


def gradient(rows, seed):
    """An uncoalesced gradient with a value for each of the rows, which may repeat."""
    values = torch.randn(len(rows), D, generator=torch.Generator().manual_seed(seed))
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, (N, D), check_invariants=True)


def table():
    return nn.Parameter(torch.randn(N, D, generator=torch.Generator().manual_seed(7)))


@pytest.fixture(params=[2**16, 2 * D], ids=["whole", "blocks of two rows"], autouse=True)
def block(request, monkeypatch):
    """Rows are stepped on a block at a time; most tests would have one block only."""
    monkeypatch.setattr("recbole_adv.game.lazy_rows._BLOCK", request.param)


def stepped(optimizer, parameter, gradients):
    for each in gradients:
        parameter.grad = each.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("learner", ARGUMENTS)
def test_rows_of_every_step_move_as_under_the_optimizer_itself(learner):
    given = [gradient([*reversed(range(N)), 2, 2], seed) for seed in range(5)]
    mine, other = table(), table()
    cls = LEARNERS[learner]
    ours = lazy(cls)([mine], lr=0.1, **ARGUMENTS[learner])
    theirs = cls([other], lr=0.1, **ARGUMENTS[learner])
    stepped(ours, mine, given)
    stepped(theirs, other, [g.to_dense() for g in given])
    assert torch.equal(mine, other)
    assert ours.state[mine].keys() == theirs.state[other].keys()
    for name, value in theirs.state[other].items():
        assert torch.equal(torch.as_tensor(ours.state[mine][name]), torch.as_tensor(value)), name


def test_every_learner_but_sparse_adam_is_tested():
    assert set(ARGUMENTS) == set(LEARNERS) - {"sparse_adam"}


@pytest.mark.parametrize("learner", ARGUMENTS)
def test_other_rows_and_their_state_keep_still(learner):
    parameter = table()
    optimizer = lazy(LEARNERS[learner])([parameter], lr=0.1, **ARGUMENTS[learner])
    stepped(optimizer, parameter, [gradient([0, 1, 2, 3], 1), gradient([5, 1], 2)])
    before = parameter.detach().clone()
    state = {k: v.clone() for k, v in optimizer.state[parameter].items() if v.dim()}
    stepped(optimizer, parameter, [gradient([1, 4, 4], 3)])
    touched = torch.tensor([1, 4])
    still = torch.tensor([0, 2, 3, 5, 6])
    assert torch.equal(parameter[still], before[still])
    assert (parameter[touched] != before[touched]).all()
    for name, value in state.items():
        assert torch.equal(optimizer.state[parameter][name][still], value[still]), name


def test_adam_by_hand():
    """float64 numpy: moments of touched rows, the table's count of steps, decay of touched rows."""
    lr, b1, b2, eps, decay = 0.1, 0.8, 0.95, 1e-3, 0.05
    parameter = table()
    weight = parameter.detach().double().numpy().copy()
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    optimizer = lazy(optim.Adam)([parameter], lr, (b1, b2), eps, decay)
    batches = [[0, 2, 2], [2, 5], [0], [6, 6, 0, 1]]
    for t, rows in enumerate(batches, start=1):
        each = gradient(rows, t)
        stepped(optimizer, parameter, [each])
        dense = each.to_dense().double().numpy()
        for row in set(rows):
            g = dense[row] + decay * weight[row]
            first[row] = b1 * first[row] + (1 - b1) * g
            second[row] = b2 * second[row] + (1 - b2) * g**2
            root = np.sqrt(second[row] / (1 - b2**t)) + eps
            weight[row] -= lr * first[row] / (1 - b1**t) / root
    np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=2e-5, atol=1e-6)


def test_without_eps_adam_is_torchs_sparse_adam():
    """Theirs adds eps before the correction of the bias, so that only without it the two are one."""
    given = [gradient(rows, n) for n, rows in enumerate([[0, 1, 1], [1, 5], [3], [0, 3, 6]])]
    mine, other = table(), table()
    stepped(lazy(optim.Adam)([mine], lr=0.1, eps=1e-20), mine, given)
    stepped(optim.SparseAdam([other], lr=0.1, eps=1e-20), other, given)
    torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("learner", ["sgd", "adagrad", "row_adagrad"])
def test_what_has_no_memory_of_time_equals_the_dense_step(learner):
    given = [gradient(rows, n) for n, rows in enumerate([[0, 1, 1], [1, 5], [3], [0, 3, 6]])]
    mine, other = table(), table()
    stepped(lazy(LEARNERS[learner])([mine], lr=0.1), mine, given)
    stepped(LEARNERS[learner]([other], lr=0.1), other, [g.to_dense() for g in given])
    assert torch.equal(mine, other)


def test_dense_gradients_and_state_are_the_optimizers_own():
    given = [gradient([0, 1], 1).to_dense(), gradient([2, 1], 2).to_dense()]
    mine, other = table(), table()
    ours, theirs = lazy(optim.Adam)([mine]), optim.Adam([other])
    assert torch.equal(stepped(ours, mine, given), stepped(theirs, other, given))
    again = optim.Adam([nn.Parameter(mine.detach().clone())])
    again.load_state_dict(ours.state_dict())
    assert type(ours).__name__ == "LazyAdam" and lazy(optim.Adam) is type(ours)
    assert isinstance(ours, LazyRows) and isinstance(ours, optim.Adam)


def test_a_dense_and_a_sparse_table_in_groups_of_their_own():
    sparse, dense = table(), table()
    groups = [{"params": [sparse], "lr": 0.1}, {"params": [dense], "lr": 0.2}]
    optimizer = lazy(optim.SGD)(groups, lr=1.0)
    starts = sparse.detach().clone(), dense.detach().clone()
    sparse.grad = gradient([1, 1], 1)
    dense.grad = torch.ones(N, D)
    optimizer.step()
    torch.testing.assert_close(sparse, starts[0] - 0.1 * gradient([1, 1], 1).to_dense())
    torch.testing.assert_close(dense, starts[1] - 0.2)


def test_the_groups_come_back_after_an_error():
    class Failing(optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("out of memory")

    parameter = table()
    optimizer = lazy(Failing)([parameter], lr=0.1)
    parameter.grad = gradient([1], 1)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    assert optimizer.param_groups[0]["params"][0] is parameter
    assert set(optimizer.state) <= {parameter}


def test_no_row_at_all_and_a_closure():
    parameter = table()
    before = parameter.detach().clone()
    optimizer = lazy(optim.Adam)([parameter], lr=0.1)
    parameter.grad = gradient([], 1)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert torch.equal(parameter, before)
    stepped(optimizer, parameter, [gradient([1], 2)])
    assert (parameter[1] != before[1]).all() and torch.equal(parameter[2:], before[2:])
