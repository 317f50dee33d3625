"""What smoothing adds, against losses at soft labels and numbers worked by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from recbole_adv.objective.smoothing import (
    bernoulli_smoothing,
    smoothed_bpr,
    softmax_smoothing,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.9])
def test_coins_are_bce_at_soft_labels(epsilon):
    logit, label = 4 * torch.randn(40, dtype=torch.float64), torch.randint(2, (40,)).double()
    plain = F.binary_cross_entropy_with_logits(logit, label, reduction="none")
    soft = label * (1 - epsilon) + epsilon / 2
    expected = F.binary_cross_entropy_with_logits(logit, soft, reduction="none")
    torch.testing.assert_close(plain + bernoulli_smoothing(logit, label, epsilon), expected)


def test_soft_labels_stay_what_they_are():
    logit, label = torch.tensor([2.0, 2.0, 2.0, 2.0]), torch.tensor([0.0, 0.3, 0.999, 1.0])
    assert bernoulli_smoothing(logit, label, 0.2).tolist() == pytest.approx([-0.2, 0, 0, 0.2])


def test_pairs_worked_by_hand():
    """At D = log 3 softplus(-D) = log(4/3) and softplus(D) = log 4."""
    value = smoothed_bpr(torch.tensor(math.log(3), dtype=torch.float64), 0.2).item()
    assert value == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))
    difference = 5 * torch.randn(30, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(
        difference, torch.full_like(difference, 0.95), reduction="none"
    )
    torch.testing.assert_close(smoothed_bpr(difference, 0.1), expected)


def test_margins_of_pairs_stop_to_grow():
    """The least loss is at logit(1 - eps / 2)."""
    best = torch.tensor(math.log(0.95 / 0.05), requires_grad=True)
    smoothed_bpr(best, 0.1).backward()
    assert best.grad.item() == pytest.approx(0, abs=1e-6)
    far = torch.tensor([-90.0, 90.0], requires_grad=True)
    smoothed_bpr(far, 0.1).sum().backward()
    assert far.grad.tolist() == pytest.approx([-0.95, 0.05])


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.9])
def test_softmax_is_torchs(epsilon):
    score, target = 3 * torch.randn(8, 6, dtype=torch.float64), torch.randint(6, (8,))
    plain = F.cross_entropy(score, target, reduction="none")
    expected = F.cross_entropy(score, target, reduction="none", label_smoothing=epsilon)
    torch.testing.assert_close(plain + softmax_smoothing(score, target, epsilon), expected)


@pytest.mark.parametrize("mask", [False, True])
def test_only_candidates_get_a_share(mask):
    """Of 5 columns without the first, and without the third if it is masked."""
    score, target = torch.randn(7, 5, dtype=torch.float64), torch.full((7,), 4)
    candidates = [1, 3, 4] if mask else [1, 2, 3, 4]
    if mask:
        score[:, 2] = -torch.inf
    score.requires_grad_()
    log_prob = score.log_softmax(-1)
    expected = -0.8 * log_prob[:, 4] - 0.2 * log_prob[:, candidates].mean(dim=1)
    plain = F.cross_entropy(score, target, reduction="none")
    value = plain + softmax_smoothing(score, target, 0.2, skip_first=True)
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value.sum(), score)
    assert gradient.isfinite().all()
