"""Environments of equal size at least cost, against every partition there is."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from recbole_adv.environment.assignment import EnvironmentAssignment
from recbole_adv.environment.balance import balanced_least_cost


def least(cost, sizes):
    """The least total cost of all assignments with these sizes."""
    n_rows, n = cost.shape
    totals = []
    for choice in product(range(n), repeat=n_rows):
        if [choice.count(e) for e in range(n)] == sizes:
            totals.append(float(cost[torch.arange(n_rows), torch.tensor(choice)].sum()))
    return min(totals)


def test_by_hand():
    """All prefer environment 0; rows 1 and 3 lose most by leaving it (4 and 3; 1 and 2)."""
    cost = torch.tensor([[0.0, 1.0], [0.0, 4.0], [1.0, 3.0], [2.0, 5.0]])
    assert balanced_least_cost(cost).tolist() == [1, 0, 1, 0]


def test_two_environments_cost_the_least_there_is():
    generator = torch.Generator().manual_seed(0)
    for n_rows in (1, 2, 7, 8):
        for _ in range(20):
            cost = torch.rand(n_rows, 2, generator=generator).double()
            chosen = balanced_least_cost(cost)
            sizes = [-(-n_rows // 2), n_rows // 2]
            assert torch.bincount(chosen, minlength=2).tolist() == sizes
            found = float(cost.gather(1, chosen.unsqueeze(1)).sum())
            # Which of the two has one more is fixed.
            assert found == pytest.approx(least(cost, sizes), abs=1e-12)


def test_several_environments_are_equal_and_nearly_the_least():
    generator = torch.Generator().manual_seed(1)
    found = best = 0.0
    for _ in range(20):
        cost = torch.rand(8, 3, generator=generator).double()
        chosen = balanced_least_cost(cost)
        assert torch.bincount(chosen).tolist() == [3, 3, 2]
        found += float(cost.gather(1, chosen.unsqueeze(1)).sum())
        best += least(cost, [3, 3, 2])
    assert best <= found <= 1.1 * best  # by chance it would be twice the best


def test_what_is_balanced_already_stays():
    cost = torch.eye(6, 3).neg() + torch.eye(3).neg().repeat(2, 1)
    assert balanced_least_cost(cost).tolist() == [0, 1, 2, 0, 1, 2]


def test_ties_are_settled_by_the_order_of_the_rows():
    assert balanced_least_cost(torch.zeros(5, 2)).tolist() == [0, 0, 0, 1, 1]


def test_reassign_counts_what_moved():
    assignment = EnvironmentAssignment(4, 2)
    cost = torch.tensor([[0.0, 1.0], [0.0, 4.0], [1.0, 3.0], [2.0, 5.0]])
    assert assignment.reassign(torch.arange(4), cost, balanced=True) == 2
    assert assignment.environment.tolist() == [1, 0, 1, 0]
    assert assignment.reassign(torch.arange(4), cost, balanced=True) == 0
    assert assignment.reassign(torch.arange(4), cost) == 2  # all back to 0
