"""R-Drop's divergences against torch's KL, numbers worked by hand, and scores of extreme size."""

import math

import pytest
import torch
from torch.nn import functional as F

from recbole_adv.objective.consistency import (
    bernoulli_divergence,
    categorical_divergence,
    r_drop_loss,
)


def both_ways(first, second):
    """KL(p || q) + KL(q || p) by the textbook, from log-probabilities [..., K]."""
    one = F.kl_div(second, first, log_target=True, reduction="none")
    other = F.kl_div(first, second, log_target=True, reduction="none")
    return (one + other).sum(dim=-1)


def test_a_coin_worked_by_hand():
    """p = 3/4, q = 1/2: KL(p||q) + KL(q||p) = (3/4 - 1/2) log 3."""
    value = bernoulli_divergence(torch.tensor(3.0).log(), torch.tensor(0.0))
    assert value.item() == pytest.approx(0.25 * math.log(3))
    p, q = 0.75, 0.5
    forth = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    back = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert value.item() == pytest.approx(forth + back)


def test_coins_are_softmax_over_two():
    torch.manual_seed(0)
    a, b = 3 * torch.randn(2, 50, dtype=torch.float64)
    coins = [torch.stack([F.logsigmoid(z), F.logsigmoid(-z)], dim=-1) for z in (a, b)]
    torch.testing.assert_close(bernoulli_divergence(a, b), both_ways(*coins))
    pairs = [torch.stack([z, torch.zeros_like(z)], dim=-1) for z in (a, b)]
    torch.testing.assert_close(bernoulli_divergence(a, b), categorical_divergence(*pairs))


def test_softmax_against_kl_div():
    torch.manual_seed(0)
    a, b = 2 * torch.randn(2, 6, 11, dtype=torch.float64)
    expected = both_ways(a.log_softmax(-1), b.log_softmax(-1))
    torch.testing.assert_close(categorical_divergence(a, b), expected)
    assert (expected > 0).all()
    # The constants of a row drop out of softmax.
    torch.testing.assert_close(categorical_divergence(a + 5, b - 3), expected)


def test_gradients_flow_into_both():
    torch.manual_seed(0)
    a, b = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, y: categorical_divergence(x, y).sum(), (a, b))
    assert torch.autograd.gradcheck(lambda x, y: bernoulli_divergence(x, y).sum(), (a, b))
    categorical_divergence(a, b).sum().backward()
    assert a.grad.abs().sum() > 0 and b.grad.abs().sum() > 0


def test_extreme_scores():
    """The textbook gives nan: inf - inf, or 0 times -inf."""
    a, b = (torch.tensor([90.0, -90.0, 90.0], requires_grad=True) for _ in range(2))
    value = bernoulli_divergence(a, -b)
    assert value.tolist() == [180, 180, 180]
    value.sum().backward()
    assert a.grad.isfinite().all() and b.grad.isfinite().all()
    score = torch.tensor([[90.0, -90.0, 0.0]])
    assert categorical_divergence(score, -score).item() == 360


def test_masked_candidates_are_none():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 6)
    masked = a.clone(), b.clone()
    for score in masked:
        score[:, 2] = -torch.inf
        score.requires_grad_()
    value = categorical_divergence(*masked)
    kept = [0, 1, 3, 4, 5]
    torch.testing.assert_close(value.detach(), categorical_divergence(a[:, kept], b[:, kept]))
    value.sum().backward()
    assert all(score.grad.isfinite().all() and (score.grad[:, 2] == 0).all() for score in masked)


def test_weight_0_is_the_mean_of_two_losses():
    one, other = torch.tensor(1.0), torch.tensor(4.0)
    assert [x.item() for x in r_drop_loss(one, other, torch.tensor(7.0), 0.0)] == [2.5, 0.0]
    parts = r_drop_loss((one, other), (other, other), torch.tensor(6.0), 0.5)
    assert [x.item() for x in parts] == [2.5, 4.0, 1.5]  # 0.5 * 6 / 2
