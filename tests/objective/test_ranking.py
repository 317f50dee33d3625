"""Row losses against numbers worked by hand, finite differences and autograd."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_adv.objective import ranking

LN2, LN3, LN5 = math.log(2), math.log(3), math.log(5)
B, N_ITEMS = 7, 5


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def scaled_losses():
    """name -> (function of (scores, ...) with scores first, scores): every loss on random rows."""
    rng = torch.Generator().manual_seed(0)
    pair = torch.randn(2, B, generator=rng, dtype=torch.float64) * 2
    table = torch.randn(B, N_ITEMS, generator=rng, dtype=torch.float64) * 2
    masked = table.clone()
    masked[:, 3] = -torch.inf
    label = torch.tensor([0, 1, 1, 0, 1, 0.3, 1], dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 4, 0, 1, 2])
    return {
        "bpr": (lambda s: ranking.bpr(s[0], s[1]), pair),
        "bce": (lambda s: ranking.bce(s, label), pair[0]),
        "bce_from_prob": (lambda s: ranking.bce_from_prob(torch.sigmoid(s), label), pair[0]),
        "softmax": (lambda s: ranking.softmax_cross_entropy(s, target), table),
        "softmax, masked": (lambda s: ranking.softmax_cross_entropy(s, target), masked),
    }


every_loss = pytest.mark.parametrize("name", list(scaled_losses()))


def test_bpr_by_hand():
    # D = ln 3: sigma(D) = 3/4, sigma(-D) = 1/4.
    loss, gradient = ranking.bpr(torch.tensor([2 * LN3]), torch.tensor([LN3]))
    assert loss.item() == pytest.approx(math.log(4 / 3))
    assert gradient.item() == pytest.approx(-LN3 / 4)


def test_bce_by_hand():
    loss, gradient = ranking.bce(torch.tensor([LN3, LN3]), torch.tensor([1, 0]))
    assert loss.tolist() == pytest.approx([math.log(4 / 3), math.log(4)])
    assert gradient.tolist() == pytest.approx([-LN3 / 4, LN3 * 3 / 4])


def test_softmax_by_hand():
    # p = (1, 2, 5) / 8.
    score = torch.tensor([[0.0, LN2, LN5]], dtype=torch.float64)
    loss, gradient = ranking.softmax_cross_entropy(score, torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log(4))
    assert gradient.item() == pytest.approx(2 / 8 * LN2 + 5 / 8 * LN5 - LN2)


def test_a_masked_column_is_a_column_left_out():
    score = torch.randn(3, 4, dtype=torch.float64)
    target = torch.tensor([0, 1, 1])
    masked = torch.cat([score, torch.full((3, 2), -torch.inf, dtype=torch.float64)], dim=1)
    masked.requires_grad_()
    with_mask = ranking.softmax_cross_entropy(masked, target)
    without = ranking.softmax_cross_entropy(score, target)
    torch.testing.assert_close(tuple(with_mask), tuple(without))
    (slope,) = torch.autograd.grad(with_mask.loss.sum() + with_mask.gradient.sum(), masked)
    assert torch.isfinite(slope).all()
    assert (slope[:, 4:] == 0).all()


@every_loss
def test_gradient_is_the_finite_difference_in_the_scale(name):
    row_loss, scores = scaled_losses()[name]
    h = 1e-5
    up, down = row_loss(scores * (1 + h)).loss, row_loss(scores * (1 - h)).loss
    # Error O(h^2) + rounding / h.
    torch.testing.assert_close(
        row_loss(scores).gradient, (up - down) / (2 * h), atol=1e-8, rtol=1e-8
    )


@every_loss
def test_gradient_and_its_slope_are_those_of_double_backward(name):
    row_loss, scores = scaled_losses()[name]
    scores = scores.clone().requires_grad_()
    scale = torch.ones(B, dtype=torch.float64, requires_grad=True)
    by_row = scale if scores.shape[-1] == B else scale.unsqueeze(-1)
    masked = torch.isinf(scores)
    # -inf * scale has a nan derivative in the scale.
    scored = (by_row * scores.masked_fill(masked, 0)).masked_fill(masked, -torch.inf)
    (oracle,) = torch.autograd.grad(row_loss(scored).loss.sum(), scale, create_graph=True)
    gradient = row_loss(scores).gradient
    torch.testing.assert_close(gradient, oracle, atol=1e-6, rtol=1e-6)

    weight = torch.arange(1.0, B + 1, dtype=torch.float64)
    (ours,) = torch.autograd.grad((weight * gradient.square()).sum(), scores)
    (theirs,) = torch.autograd.grad((weight * oracle.square()).sum(), scores)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [0.0, 30.0, 100.0, 1e4])
def test_float32_stays_finite_and_true_at_large_scores(size):
    score = torch.tensor([size, -size, size, -size], requires_grad=True)
    other = torch.tensor([-size, size, size, 0.0], requires_grad=True)
    label = torch.tensor([1.0, 1.0, 0.0, 0.0])
    target = torch.tensor([0, 0, 1, 1])
    both = torch.stack([score, other], dim=1)

    def outputs(a, b, table, y):
        return [
            *ranking.bpr(a, b),
            *ranking.bce(a, y),
            *ranking.softmax_cross_entropy(table, target),
        ]

    found = outputs(score, other, both, label)
    truth = outputs(score.double(), other.double(), both.double(), label.double())
    for value, exact in zip(found, truth):
        torch.testing.assert_close(value.double(), exact, atol=1e-6, rtol=1e-5)
        slopes = torch.autograd.grad(
            value.sum(), [score, other], retain_graph=True, allow_unused=True
        )
        assert all(torch.isfinite(slope).all() for slope in slopes if slope is not None)


def test_a_good_positive_keeps_its_gradient():
    # sigma(20) rounds to 1 in float32; g = -20 sigma(-20) does not vanish.
    _, gradient = ranking.bce(torch.tensor([20.0]), torch.tensor([1.0]))
    assert gradient.item() == pytest.approx(-20 / (1 + math.exp(20)), rel=1e-5)


def test_bce_from_prob_is_bce_loss_inside_the_interval():
    prob = torch.tensor([0.01, 0.5, 0.7, 0.999], dtype=torch.float64)
    label = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    loss, _ = ranking.bce_from_prob(prob, label)
    torch.testing.assert_close(loss, torch.nn.BCELoss(reduction="none")(prob, label))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bce_from_prob_at_the_ends(dtype):
    prob = torch.tensor([0.0, 1.0, 1e-9, 0.0, 1.0], dtype=dtype, requires_grad=True)
    label = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=dtype)
    loss, gradient = ranking.bce_from_prob(prob, label)
    assert loss[:3].tolist() == pytest.approx([-math.log(1e-7)] * 3, rel=2e-2)
    assert (loss[3:] < 2e-7).all()
    (slope,) = torch.autograd.grad(loss.sum(), prob)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
    # Confidently wrong rows are still pulled the right way.
    assert torch.isfinite(slope).all()
    assert slope[0] < 0 and slope[1] > 0 and slope[2] < 0


def test_bce_from_prob_of_half_precision_is_finite():
    prob = torch.tensor([0.0, 1.0], dtype=torch.float16)
    loss, gradient = ranking.bce_from_prob(prob, torch.tensor([1.0, 0.0]))
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()


def test_fold_rows_averages_recboles_tiles():
    # k-th negative of positive i at row k * B + i, here value = 10 i + k.
    tiles = [[10.0 * i + k for i in range(3)] for k in range(4)]
    value = torch.tensor(sum(tiles, []))
    assert ranking.fold_rows(value, 4).tolist() == [1.5, 11.5, 21.5]
    assert torch.equal(ranking.fold_rows(value, 1), value)
    with pytest.raises(ValueError, match="12 rows are not 5 tiles"):
        ranking.fold_rows(value, 5)


def test_folding_is_a_mean_over_negatives_of_loss_and_gradient():
    positive, negative = torch.randn(3), torch.randn(3, 4)
    rows = ranking.bpr(positive.repeat(4), negative.t().reshape(-1))
    by_negative = ranking.bpr(positive.unsqueeze(1), negative)
    for row, table in zip(rows, by_negative):
        torch.testing.assert_close(ranking.fold_rows(row, 4), table.mean(dim=1))
