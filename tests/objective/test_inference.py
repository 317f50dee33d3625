"""EIIL's closed form against the objective itself, whose derivatives are autograd's."""

import pytest
import torch

from recbole_adv.objective import balance, eiil_objective, environment_mass
from recbole_adv.objective.inference import irm_of_gradients, irm_of_membership, irm_statistics


def batch(n_rows=7, n_environments=3, dtype=torch.float64):
    torch.manual_seed(0)
    gradient = torch.randn(n_rows, dtype=dtype, requires_grad=True)
    logit = torch.randn(n_rows, n_environments, dtype=dtype, requires_grad=True)
    return gradient, logit.softmax(1).detach().requires_grad_()


def of_both(gradient, q, estimator, weight=0.0):
    """J for both players and the masses; q [B, E]."""
    statistics = irm_statistics(gradient, q.t(), estimator)
    return (
        irm_of_gradients(gradient, q.t(), statistics),
        irm_of_membership(gradient, q.t(), statistics, weight),
        statistics.mass.flatten(),
    )


def degenerate():
    """Two rows: environment 1 has one of them, which is no pair, and environment 2 none."""
    gradient = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    return gradient, q


def test_by_hand():
    """Slopes 1, 2, 3 in one environment: G^2 is 4, without bias (1*2 + 1*3 + 2*3) / 3 = 11/3."""
    gradient = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    q = torch.ones(3, 1, requires_grad=True)
    value, leashed, mass = of_both(gradient, q, "u", 1.0)
    assert value.item() == leashed.item() == pytest.approx(11 / 3)  # KL of one environment is 0
    assert mass.tolist() == [1.0]
    value.backward()
    assert gradient.grad.tolist() == pytest.approx([5 / 3, 4 / 3, 1.0])  # (sum of the others) / 3
    assert q.grad is None  # held
    assert of_both(gradient, q, "plain")[0].item() == pytest.approx(4.0)


@pytest.mark.parametrize("make", [batch, degenerate])
@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("estimator", ["u", "plain"])
def test_values_and_derivatives_are_those_of_the_objective(estimator, weight, make):
    gradient, q = make()
    by_rows, by_membership, mass = of_both(gradient, q, estimator, weight)
    value = eiil_objective("irm", gradient, gradient, q, estimator)
    leashed = value - weight * balance(environment_mass(q))
    torch.testing.assert_close(by_rows, value)
    torch.testing.assert_close(by_membership, leashed)
    torch.testing.assert_close(mass, environment_mass(q).detach())
    for mine, theirs, held in ((by_rows, value, q), (by_membership, leashed, gradient)):
        found = torch.autograd.grad(2.5 * mine, [gradient, q], retain_graph=True, allow_unused=True)
        right = torch.autograd.grad(2.5 * theirs, [gradient, q], retain_graph=True)
        for tensor, one, other in zip((gradient, q), found, right):
            if tensor is held:
                assert one is None
            else:
                torch.testing.assert_close(one, other)


@pytest.mark.parametrize("estimator", ["u", "plain"])
def test_second_derivatives(estimator):
    """The Hessian of the monitor goes through the penalty; gradcheck compares with differences."""
    gradient, q = batch()

    def by_rows(gradient):
        return of_both(gradient, q.detach(), estimator)[0]

    def by_membership(q):
        return of_both(gradient.detach(), q, estimator, 0.3)[1]

    for function, at in ((by_rows, gradient), (by_membership, q)):
        assert torch.autograd.gradcheck(function, at)
        assert torch.autograd.gradgradcheck(function, at)


def test_in_single_precision_under_autocast():
    gradient, q = batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = of_both(gradient.bfloat16(), q, "u")[0]
    assert value.dtype == torch.float32
    right = eiil_objective("irm", gradient, gradient.bfloat16().float(), q, "u")
    torch.testing.assert_close(value, right)
