"""Where a loss grows fastest, against numbers worked by hand."""

import math

import pytest
import torch

from recbole_adv.objective.sharpness import steepest

G = [torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [4.0]])]
W = [torch.tensor([1.0, -2.0]), torch.tensor([[5.0], [-0.5]])]


def test_one_norm_over_all():
    (first, second), skipped = steepest(G, [0.5, 0.5])
    assert first.tolist() == pytest.approx([0.3, 0.0])  # 0.5 * 3 / sqrt(9 + 16)
    assert second.flatten().tolist() == pytest.approx([0.0, 0.4])
    assert skipped == 0


def test_a_norm_for_each():
    (first, second), _ = steepest(G, [0.5, 2.0], apart=True)
    assert first.tolist() == pytest.approx([0.5, 0.0])
    assert second.flatten().tolist() == pytest.approx([0.0, 2.0])


def test_in_units_of_the_weights():
    """T g = (3, 0, 0, 2), T^2 g = (3, 0, 0, 1)."""
    (first, second), _ = steepest(G, [0.5, 0.5], [w.abs() for w in W])
    length = math.sqrt(13)
    assert first.tolist() == pytest.approx([1.5 / length, 0.0])
    assert second.flatten().tolist() == pytest.approx([0.0, 0.5 / length])


def test_no_other_perturbation_of_the_ball_is_steeper():
    torch.manual_seed(0)
    gradients, weights = torch.randn(2, 3, 7)
    for scale in (None, [w.abs() + 0.1 for w in weights]):
        moves, _ = steepest(list(gradients), [0.3] * 3, scale)
        reached = sum((g * e).sum() for g, e in zip(gradients, moves))
        units = torch.ones_like(gradients) if scale is None else torch.stack(scale)
        assert (torch.stack(moves) / units).norm().item() == pytest.approx(0.3, rel=1e-5)
        others = torch.randn(1000, 3, 7)
        others *= 0.3 / others.flatten(1).norm(dim=1)[:, None, None]
        assert (others * units * gradients).flatten(1).sum(dim=1).max() < reached


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_a_gradient_without_a_direction_moves_nothing(bad):
    gradients = [torch.tensor([bad, 0.0]), torch.tensor([1.0])]
    together, skipped = steepest(gradients, [1.0, 1.0])
    if bad == 0:
        assert [e.tolist() for e in together] == [[0, 0], [1.0]] and skipped == 0
    else:
        assert [e.tolist() for e in together] == [[0, 0], [0]] and skipped == 1
    apart, skipped = steepest(gradients, [1.0, 1.0], apart=True)
    assert [e.tolist() for e in apart] == [[0, 0], [1.0]] and skipped == 0.5


def test_the_length_of_the_gradients_does_not_matter():
    """They are scaled under mixed precision, and weighed by an outer technique."""
    for scales in (None, W):
        short, _ = steepest(G, [0.5, 0.5], scales)
        long, _ = steepest([65536 * g for g in G], [0.5, 0.5], scales)
        for one, other in zip(short, long):
            torch.testing.assert_close(one, other)
