"""EnvironmentAssignment: look-up, moving rows, state."""

from __future__ import annotations

import pytest
import torch

from recbole_adv.environment.assignment import EnvironmentAssignment


def assignment(*environment, n_environments=3):
    return EnvironmentAssignment(len(environment), n_environments, torch.tensor(environment))


def test_looking_up():
    rows = assignment(2, 0, 1, 1)
    assert rows.of(torch.tensor([3, 0, 3])).tolist() == [1, 2, 1]
    assert rows.membership(torch.tensor([1, 0])).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert rows.membership(torch.tensor([1])).dtype == torch.get_default_dtype()
    assert rows.counts().tolist() == [1, 2, 1]
    assert EnvironmentAssignment(4, 3).counts().tolist() == [4, 0, 0]


def test_assign_counts_the_rows_that_moved():
    rows = assignment(2, 0, 1, 1)
    assert rows.assign(torch.tensor([0, 1, 3]), torch.tensor([2, 1, 0])) == 2
    assert rows.environment.tolist() == [2, 1, 1, 0]
    # A row in three tiles is one row.
    assert rows.assign(torch.tensor([2, 2, 2, 0]), torch.tensor([0, 0, 0, 2])) == 1
    assert rows.environment.tolist() == [2, 1, 0, 0]


def test_reassign_takes_the_least_cost_and_keeps_ties():
    rows = assignment(2, 0, 1, 1)
    nan = float("nan")
    cost = torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 1.0], [nan, 2.0, 1.0], [0.5, 2.0, 1.0]])
    # A tie with the present one stays; a tie of two cheaper ones takes the first; nan stays.
    assert rows.reassign(torch.tensor([0, 1, 2, 3]), cost) == 2
    assert rows.environment.tolist() == [2, 1, 1, 0]


def test_reassign_touches_only_its_rows():
    rows = assignment(0, 0, 0, 0, n_environments=2)
    assert rows.reassign(torch.tensor([3, 1]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == 1
    assert rows.environment.tolist() == [0, 0, 0, 1]


def test_state_is_a_buffer_of_full_size_that_survives_a_round_trip(tmp_path):
    rows = assignment(2, 0, 1, 1)
    assert not list(rows.parameters())
    torch.save(rows.state_dict(), tmp_path / "rows.pth")
    fresh = EnvironmentAssignment(4, 3)
    fresh.load_state_dict(torch.load(tmp_path / "rows.pth", weights_only=True))
    assert torch.equal(fresh.environment, rows.environment)
    assert fresh.environment.dtype == torch.int64
    # Half precision is for floats: a model.half() or model.to(dtype) leaves the indices alone.
    assert rows.half().environment.dtype == torch.int64


def test_the_given_tensor_is_copied():
    given = torch.tensor([0, 1])
    rows = EnvironmentAssignment(2, 2, given)
    rows.assign(torch.tensor([0]), torch.tensor([1]))
    assert given.tolist() == [0, 1]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"must be \[3\], got \[2\]"):
        EnvironmentAssignment(3, 2, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"lie in 0..1, got 0..2"):
        EnvironmentAssignment(2, 2, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="n_environments >= 1"):
        EnvironmentAssignment(2, 0)
    rows = assignment(0, 0)
    with pytest.raises(ValueError, match=r"lie in 0..2, got -1..0"):
        rows.assign(torch.tensor([0, 1]), torch.tensor([-1, 0]))
    with pytest.raises(ValueError, match=r"cost must be \[2, 3\], got \[2, 2\]"):
        rows.reassign(torch.tensor([0, 1]), torch.zeros(2, 2))
    assert rows.environment.tolist() == [0, 0]
