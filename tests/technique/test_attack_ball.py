"""Directions, projections and random starts, against numbers worked by hand."""

import math

import pytest
import torch

from recbole_adv.technique.attack.ball import ascend, directions, lengths, project, random_start
from recbole_adv.technique.attack.presets import PRESETS, recipe_of

TABLES = [torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]]), torch.tensor([[6.0, 8.0]])]


def test_lengths_of_rows_tables_and_all():
    assert [n.flatten().tolist() for n in lengths(TABLES, "row")] == [[5, 0, 2], [10]]
    assert [n.item() for n in lengths(TABLES, "table")] == pytest.approx([math.sqrt(29), 10])
    assert [n.item() for n in lengths(TABLES, "global")] == pytest.approx([math.sqrt(129)] * 2)


def test_a_sample_has_one_norm_over_positions_and_dimensions():
    """LoRec's port normalises [B, L, D] over dim 1, that is over time."""
    gradient = torch.zeros(2, 3, 2)
    gradient[0, 0], gradient[0, 2] = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    gradient[1, 1] = torch.tensor([5.0, 12.0])
    (move,) = directions([gradient], "sample", "l2")
    assert move.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0, 1.0])
    assert move[0].tolist() == [pytest.approx(v) for v in ([0.6, 0.0], [0.0, 0.0], [0.0, 0.8])]
    assert move[0, 1].abs().sum() == 0 and move[1, 0].abs().sum() == 0
    assert move[1, 1].tolist() == pytest.approx([5 / 13, 12 / 13])


def test_directions_of_each_scope():
    row = directions(TABLES, "row", "l2")
    assert row[0].tolist() == [pytest.approx(v) for v in ([0.6, 0.8], [0.0, 0.0], [0.0, -1.0])]
    assert row[1].tolist() == [pytest.approx([0.6, 0.8])]
    table = directions(TABLES, "table", "l2")
    assert [t.norm().item() for t in table] == pytest.approx([1, 1])
    together = directions(TABLES, "global", "l2")
    assert sum(t.square().sum() for t in together).item() == pytest.approx(1)
    assert together[1][0, 0].item() == pytest.approx(6 / math.sqrt(129))
    assert directions(TABLES, "row", "linf")[0].tolist() == [[1, 1], [0, 0], [0, -1]]


def test_directions_do_not_depend_on_the_scale_of_the_loss():
    """Cornac's AMR takes the gradient as it is; caoymg's port divides by at least epsilon."""
    for scale in (1e-12, 1e-3, 1e12):
        scaled = directions([scale * t for t in TABLES], "row", "l2")
        for mine, other in zip(scaled, directions(TABLES, "row", "l2")):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_does_not_move(bad, norm):
    gradient = torch.tensor([[bad, 1.0], [3.0, 4.0]])
    (move,) = directions([gradient], "row", norm)
    assert move[0].tolist() == [0, 0] and move[1].norm() > 0
    assert directions([gradient], "table", norm)[0].abs().sum() == 0
    assert gradient[0, 1] == 1.0  # the gradient itself is not written


def test_rows_below_the_gate_do_not_move():
    gradient = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [0.0, 0.0]])
    (move,) = directions([gradient], "row", "l2", min_gradient=0.6)  # the median of 1, 2, 4 is 2
    assert move[:, 0].tolist() == [0, 1, 1, 0]


def test_projections():
    moves = [torch.tensor([[3.0, 4.0], [0.3, 0.4]])]
    ball = project(moves, "row", "l2", "ball")[0]
    assert ball.tolist() == [pytest.approx([0.6, 0.8]), pytest.approx([0.3, 0.4])]
    assert project(moves, "row", "l2", "box")[0].tolist() == [[1, 1], pytest.approx([0.3, 0.4])]
    assert project(moves, "row", "linf", "ball")[0].tolist()[0] == [1, 1]
    assert project(moves, "row", "l2", "none")[0] is moves[0]
    whole = project(moves, "table", "l2", "ball")[0]
    assert whole.norm().item() == pytest.approx(1)
    two = project([moves[0], moves[0]], "global", "l2", "ball")
    assert sum(t.square().sum() for t in two).item() == pytest.approx(1)


def test_the_seed_s_projection_never_fires_below_four_steps():
    """Three steps of 0.3 stay within a radius of 1, a fourth does not."""
    step, moves = [torch.tensor([[1.0, 0.0]])], None
    for expected in (0.3, 0.6, 0.9, 1.0):
        moves = ascend(moves, step, 0.3, "row", "l2", "ball")
        assert moves[0][0, 0].item() == pytest.approx(expected)
    (long,) = ascend(None, step, 1.25, "row", "l2", "ball")
    assert long[0, 0].item() == 1.0


def test_the_box_reaches_further_than_the_ball():
    """MSAP: steps of row norm epsilon / 4 in a box of half-width epsilon pass 2 epsilon soon."""
    steps = [torch.full((1, 16), 0.25)]  # of length 1
    box = ball = None
    for _ in range(16):
        box = ascend(box, steps, 0.25, "row", "l2", "box")
        ball = ascend(ball, steps, 0.25, "row", "l2", "ball")
    assert box[0].norm().item() == pytest.approx(4.0)  # sqrt(D)
    assert ball[0].norm().item() == pytest.approx(1.0)


@pytest.mark.parametrize("scope", ["row", "sample", "table", "global"])
def test_random_starts_lie_in_the_ball_and_fill_it(scope):
    torch.manual_seed(0)
    shapes = [torch.empty(400, 8), torch.empty(100, 3, 8)]
    moves = random_start(shapes, scope, "l2")
    assert all(n.max() <= 1 for n in lengths(moves, scope))
    # Uniform in [-a, a] has variance a^2 / 3, so the mean square of a unit is 1/3.
    for norm in lengths(moves, scope):
        assert norm.square().mean().item() == pytest.approx(1 / 3, rel=0.1)
    for move in random_start(shapes, scope, "linf"):
        assert 0.99 < move.abs().max() <= 1


def test_given_axes_take_the_place_of_the_preset_s():
    assert recipe_of("pgd", {"epsilon": 2.0, "norm": None}).rate == 0.3
    assert recipe_of("pgd", {"epsilon": 2.0, "step_size": 0.5}).rate == 0.25
    assert recipe_of("apr", {"steps": 5}).rate == 0.5
    assert recipe_of("apr", {"keep_clean": False}) != PRESETS["apr"]
    assert recipe_of("fast", {}).rate == 1.25
