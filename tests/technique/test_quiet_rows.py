"""Rows without a gradient: how far a step moves them, and Clippy that does not look at them."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn, optim

from recbole_adv.game.clippy_adagrad import ClippyAdagrad
from recbole_adv.technique.agc import agc_factor, clip_units_
from recbole_adv.technique.clippy import Clippy
from recbole_adv.technique.quiet_rows import QuietRows

ROWS, WIDTH = 60, 4


def gradient_of(step: int) -> torch.Tensor:
    """A few rows each step, of very different lengths, one of them a spike."""
    generator = torch.Generator().manual_seed(step)
    gradient = torch.zeros(ROWS, WIDTH)
    rows = torch.randint(0, ROWS, (5,), generator=generator)
    gradient[rows] = torch.randn(5, WIDTH, generator=generator) * 10.0 ** (step % 4 - 3)
    return gradient


MAKERS = {
    "adam": lambda w: optim.Adam([w], lr=0.01),
    "adam, other betas": lambda w: optim.Adam([w], lr=0.01, betas=(0.95, 0.6), amsgrad=True),
    "adamw, fused": lambda w: optim.AdamW([w], lr=0.01, weight_decay=0.0, fused=True),
    "adagrad": lambda w: optim.Adagrad([w], lr=0.05),
    "rmsprop": lambda w: optim.RMSprop([w], lr=0.01),
    "sgd": lambda w: optim.SGD([w], lr=0.05),
    "clippy_adagrad": lambda w: ClippyAdagrad([w], lr=0.05),
}


@pytest.mark.parametrize("limit", [0.0, 0.003, math.inf])
@pytest.mark.parametrize("learner", MAKERS)
def test_the_bounds_hold_and_are_not_idle(learner, limit):
    """In float64, step by step, with a rate that changes; they are nearly met."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(ROWS, WIDTH, dtype=torch.float64))
    optimizer, quiet = MAKERS[learner](weight), QuietRows()
    nearest, kinds = 0.0, set()
    for step in range(60):
        weight.grad = gradient_of(step).double() if step % 10 else torch.zeros_like(weight)
        optimizer.param_groups[0]["lr"] *= 1.5 if step % 7 == 3 else 0.9
        still = (weight.grad == 0).all(1)
        bounds, before = quiet.bounds(weight, optimizer, limit), weight.detach().clone()
        kinds.add(type(bounds))
        bounds = torch.as_tensor(bounds).expand(ROWS)
        assert bounds.isfinite().all()
        optimizer.step()
        moved = (weight.detach() - before).abs().amax(1)
        assert (moved[still] <= bounds[still] + 1e-15).all()
        if bounds[still].any():
            some = still & (bounds > 0)
            nearest = max(nearest, (moved[some] / bounds[some]).max().item())
        quiet.moved(weight, optimizer, (~still).nonzero().squeeze(1), moved[~still])
    by_row = learner.startswith("adam") and limit < math.inf
    assert kinds == ({torch.Tensor, float} if by_row else {float})
    if learner.startswith("adam"):
        assert nearest > (0.7 if "betas" in learner else 0.9)


def test_nothing_is_known_of_a_step_that_was_not_seen():
    weight = nn.Parameter(torch.randn(ROWS, WIDTH))
    optimizer, quiet = MAKERS["adam"](weight), QuietRows()
    assert quiet.bounds(weight, optimizer, 1.0) == 0  # averages of 0 move nothing

    def step():
        weight.grad = gradient_of(1)
        optimizer.step()

    moved = torch.full((ROWS,), 0.01)
    step()
    quiet.moved(weight, optimizer, None, moved)
    assert 0 < quiet.bounds(weight, optimizer, 1.0) < 0.01
    # A scaler left it out: the averages are the same.
    quiet.moved(weight, optimizer, None, 0 * moved)
    assert 0 < quiet.bounds(weight, optimizer, 1.0) < 0.01
    step()
    assert quiet.bounds(weight, optimizer, 1.0) == math.inf
    quiet.moved(weight, optimizer, None, moved)
    assert quiet.bounds(weight, optimizer, 1.0) == math.inf  # it was none of the steps asked about
    step()
    quiet.moved(weight, optimizer, None, torch.where(torch.arange(ROWS) == 3, math.nan, moved))
    bounds = quiet.bounds(weight, optimizer, 1.0)
    assert (~(bounds <= 1e30)).nonzero().tolist() == [[3]]
    for keys in ({"weight_decay": 0.1}, {"eps": 0.0}, {"betas": (0.9, 0.0)}):
        assert quiet.bounds(weight, optim.Adam([weight], **keys), 1.0) == math.inf
    sgd = optim.SGD([weight], lr=1.0, momentum=0.9)
    assert quiet.bounds(weight, sgd, 1.0) == math.inf
    assert quiet.other_rows(weight, sgd, 1.0) is None


def test_rows_with_gradient_or_far_to_go():
    weight = nn.Parameter(torch.zeros(9, 2))
    optimizer, quiet = optim.Adam([weight], lr=0.1, betas=(0.9, 0.9)), QuietRows()
    weight.grad = torch.zeros(9, 2)
    assert quiet.other_rows(weight, optimizer, 0.05).tolist() == []
    weight.grad[1, 1], weight.grad[4, 0] = -1.0, torch.nan
    rows = quiet.other_rows(weight, optimizer, 0.05)
    assert rows.tolist() == [1, 4]
    optimizer.step()
    quiet.moved(weight, optimizer, rows, torch.tensor([0.1, torch.nan]))
    weight.grad = torch.zeros(9, 2)
    weight.grad[7, 0] = 1e-3
    rows = quiet.other_rows(weight, optimizer, 0.04)
    assert rows.tolist() == [1, 4, 7]  # by hand: 1 goes on by 0.1 * sqrt(0.9 / 1.9) = 0.069
    optimizer.step()
    quiet.moved(weight, optimizer, rows, torch.tensor([0.01, 0.0, 0.1]))
    weight.grad = torch.zeros(9, 2)
    assert quiet.other_rows(weight, optimizer, 0.05).tolist() == [7]
    assert quiet.other_rows(weight, optimizer, 1.0).tolist() == []
    weight.grad[:5] = 1.0
    assert quiet.other_rows(weight, optimizer, 0.05) is None


@pytest.mark.parametrize("clip_state", [False, True])
@pytest.mark.parametrize("learner", MAKERS)
def test_clippy_is_the_same_as_with_a_look_at_every_row(learner, clip_state, monkeypatch):
    """Bit for bit, in a run in which it acts in some steps, also on rows that only Adam moves."""

    def run():
        torch.manual_seed(0)
        table = nn.Embedding(ROWS, WIDTH)
        optimizer = MAKERS[learner](table.weight)
        clippy = Clippy(embeddings="rows", absolute_threshold=0.012, clip_state=clip_state)
        player = SimpleNamespace(name="min", parameters=(table.weight,))
        trainer = SimpleNamespace(model=table, logger=logging.getLogger("quiet"))
        clippy.attach(trainer, player)
        turn = SimpleNamespace(parameters=[table.weight], optimizer=optimizer)
        figures = []
        for step in range(120):
            table.weight.grad = gradient_of(step)
            optimizer.param_groups[0]["lr"] *= 1.5 if step % 7 == 3 else 0.94
            clippy.wrap_step(optimizer.step, turn)()
            clippy.after_step(turn, None)
            figures.append(clippy.figures())
        return table.weight.detach(), optimizer.state[table.weight], figures

    looked_at = []
    real = QuietRows.other_rows

    def noted(*arguments):
        looked_at.append(real(*arguments))
        return looked_at[-1]

    monkeypatch.setattr(QuietRows, "other_rows", noted)
    weight, state, figures = run()
    seldom = sum(rows is not None for rows in looked_at)
    monkeypatch.setattr(QuietRows, "other_rows", lambda *arguments: None)
    monkeypatch.setattr(QuietRows, "moved", lambda *arguments: None)
    full_weight, full_state, full_figures = run()
    assert weight.equal(full_weight)
    for name, value in state.items():
        assert torch.as_tensor(value).equal(torch.as_tensor(full_state[name])), name
    clipped = [figure["clipped"] for figure in full_figures]
    assert [figure["clipped"] for figure in figures] == clipped
    for name in ("factor_mean", "factor_min"):
        theirs = pytest.approx([figure[name] for figure in full_figures])
        assert [figure[name] for figure in figures] == theirs
    assert 0 < seldom
    if learner in ("adam", "adamw, fused"):
        assert 0 < sum(clipped) < 120 and seldom < 120


@pytest.mark.parametrize("shape", [(), (5,), (8, 3), (6, 2, 3)])
def test_units_that_are_too_short_need_no_bound(shape):
    """The gradient and the count are those of the factor that every unit has."""
    torch.manual_seed(0)
    for scale in (0.0, 1e-5, 0.01, 1.0):
        weight, gradient = torch.randn(shape) * 0.1, torch.randn(shape) * scale
        if len(shape) > 1:
            weight[0], gradient[1], gradient[2] = 0.0, 0.0, torch.nan
        factor = agc_factor(weight, gradient, 0.01, 1e-3)
        expected = gradient * factor
        assert clip_units_(weight, gradient, 0.01, 1e-3) == (factor < 1).sum()
        torch.testing.assert_close(gradient, expected, equal_nan=True, rtol=0, atol=0)
