"""Clippy around any optimizer: what is clipped, by how much, and what is left alone."""

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from recbole.model.general_recommender import BPR
from torch import nn, optim

from recbole_adv import Technique
from recbole_adv.errors import ConfigError
from recbole_adv.game.clippy_adagrad import load
from recbole_adv.game.optimizer import LEARNERS
from recbole_adv.technique.clippy import Clippy, largest_update
from recbole_adv.technique.step_load import load_of_step

ONE = {"epochs": 1, "eval_step": 0}
GOLDEN = json.loads((Path(__file__).parent / "golden" / "clippy_adagrad.json").read_text())


class Moves(Technique):
    """Keeps the weights before and after each step."""

    def __init__(self):
        self.seen = []

    def wrap_step(self, step, turn):
        def noted():
            before = [p.detach().clone() for p in turn.parameters]
            step()
            self.seen.append((before, [p.detach().clone() for p in turn.parameters]))

        return noted


class Box:
    """A module, its optimizer and Clippy, without a trainer around them."""

    def __init__(self, make, *weights, table=False, **keys):
        self.weights = [nn.Parameter(torch.tensor(w)) for w in weights]
        module = nn.ParameterList(self.weights)
        if table:
            module = nn.Embedding(*self.weights[0].shape)
            module.weight = self.weights[0]
        self.optimizer = make(self.weights)
        self.clippy = Clippy(**keys)
        self.logger = logging.getLogger("box")
        player = SimpleNamespace(name="min", parameters=tuple(self.weights))
        self.clippy.attach(SimpleNamespace(model=module, logger=self.logger), player)
        self.turn = SimpleNamespace(parameters=self.weights, optimizer=self.optimizer)

    def step(self, *gradients):
        for weight, gradient in zip(self.weights, gradients):
            given = torch.as_tensor(gradient, dtype=weight.dtype)
            weight.grad = given if given.is_sparse else given.clone()
        self.clippy.wrap_step(self.optimizer.step, self.turn)()
        self.clippy.after_step(self.turn, None)
        return [weight.tolist() for weight in self.weights]


def sgd(**keys):
    return lambda weights: optim.SGD(weights, lr=1.0, **keys)


def test_by_hand():
    """w = (1, 2), b = (0.6, 1.1) at lambda 0.5 and 0.1; an update of (-1, 1) fits 0.6 times."""
    box = Box(sgd(), [1.0, 2.0], [4.0], relative_threshold=0.5, absolute_threshold=0.1)
    first, second = box.step([1.0, -1.0], [1.0])
    assert first == pytest.approx([0.4, 2.6])
    assert second == [3.0]  # fits its bound of 2.1
    figures = box.clippy.figures()
    assert figures["factor_min"] == pytest.approx(0.6)
    assert figures["factor_mean"] == pytest.approx((0.6 + 1) / 2)
    assert figures["clipped"] == 1.0
    assert box.clippy.figures() == {}


def test_zero_gradients_write_nothing():
    box = Box(sgd(), [1.0, 0.0], absolute_threshold=0.0)
    assert box.step([0.0, 0.0]) == [[1.0, 0.0]]
    assert box.clippy.figures() == {"factor_mean": 1.0, "clipped": 0.0, "factor_min": 1.0}
    assert box.step([1.0, 1.0]) == [[1.0, 0.0]]  # a zero weight holds its tensor at absolute 0


def test_a_great_spike_is_shortened_precisely():
    """1e8 past a weight of 0.1: w' - w has lost the weight, the result has not."""
    (after,) = Box(sgd(), [0.1]).step([1e8])
    assert after == pytest.approx([0.1 - (0.5 * 0.1 + 0.01)], rel=1e-6)


def test_what_is_not_finite_is_not_hidden():
    (after,) = Box(sgd(), [1.0, 1.0]).step([torch.inf, 1.0])
    assert after[0] != after[0] and after[1] == 1.0
    (after,) = Box(sgd(), [1.0, 1.0]).step([torch.nan, 0.25])
    assert after[0] != after[0] and after[1] == 0.75


def test_official_thresholds():
    (after,) = Box(sgd(), [1.0], variant="official").step([1.0])
    assert after == pytest.approx([0.9 - 1e-7])
    (after,) = Box(sgd(), [1.0], variant="official", absolute_threshold=0.2).step([1.0])
    assert after == pytest.approx([0.7])


def test_around_torchs_adagrad_it_is_algorithm_1():
    """The paper's order of the accumulator, from the official code; eps lies elsewhere in the root."""
    (case,) = [c for c in GOLDEN["cases"] if c["name"] == "dense_paper_algorithm1_lr1.0"]
    weights = [variable["init"] for variable in case["variables"]]
    box = Box(lambda w: optim.Adagrad(w, lr=1.0, initial_accumulator_value=0.1), *weights)
    for step in case["steps"]:
        after = box.step(*(torch.tensor(gradient) for gradient in step["grads"]))
        for mine, other in zip(after, step["params"]):
            torch.testing.assert_close(
                torch.tensor(mine), torch.tensor(other), rtol=2e-5, atol=1e-6
            )


# --- any optimizer ------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", [name for name in LEARNERS if name != "sparse_adam"])
def test_no_weight_moves_beyond_its_bound(learner, tiny):
    """At a learning rate far too large; the optimizer's kind and state are its own."""
    keys = {"clippy_embeddings": "rows", "learner": learner, "learning_rate": 1.0}
    run = tiny("NeuMF", techniques=[Moves, "clippy"], weight_decay=0.01, **keys, **ONE)
    run.fit(saved=False)
    assert type(run.trainer.optimizer) is LEARNERS[learner]
    moved = 0.0
    for before, after in run.trainer.techniques["min"]["moves"].seen:
        for start, now in zip(before, after):
            assert ((now - start).abs() <= (0.5 * start.abs() + 0.01) * (1 + 1e-5)).all()
            moved = max(moved, (now - start).abs().max().item())
    assert moved > 0.01


def test_the_direction_is_kept(tiny):
    """The first step is that of the unclipped run, times one factor for each tensor or row."""
    keys = {"clippy_embeddings": "rows", "learning_rate": 0.5, **ONE}
    updates = []
    for techniques in ([Moves], [Moves, "clippy"]):
        run = tiny("NeuMF", techniques=techniques, **keys)
        run.fit(saved=False)
        before, after = run.trainer.techniques["min"]["moves"].seen[0]
        updates.append([now - start for start, now in zip(before, after)])
    for (name, _), long, short in zip(run.model.named_parameters(), *updates):
        by_row = "embedding" in name
        factor = (short * long).sum(-1) / (long * long).sum(-1) if by_row else None
        if by_row:
            factor = factor.nan_to_num(1.0)[:, None]
            assert ((factor > 0) & (factor <= 1.0001)).all() and len(factor.unique()) > 5
        else:
            factor = (short * long).sum() / (long * long).sum()
            assert 0 < factor < 1
        torch.testing.assert_close(short, factor * long, rtol=1e-3, atol=1e-6)


def test_tables_are_left_alone_unless_asked_for(tiny):
    keys = {"learning_rate": 0.5, **ONE}
    steps = []
    for techniques in ([Moves], [Moves, "clippy"]):
        run = tiny("NeuMF", techniques=techniques, clippy_exclude="bias$", **keys)
        run.fit(saved=False)
        steps.append(run.trainer.techniques["min"]["moves"].seen[0][1])
    for (name, _), one, other in zip(run.model.named_parameters(), *steps):
        assert one.equal(other) == ("embedding" in name or name.endswith("bias")), name


def test_both_players_are_bounded(tiny):
    keys = {"max_start_epoch": 0, "learning_rate": 0.5, "clippy_embeddings": "rows"}
    run = tiny("EIIL", techniques=["clippy"], max_clippy_relative_threshold=0.0, **keys, **ONE)
    start = {name: p.detach().clone() for name, p in run.model.env_generator.named_parameters()}
    run.fit(saved=False)
    n = run.trainer.loop.steps_taken["max"]
    for name, p in run.model.env_generator.named_parameters():
        assert (p - start[name]).abs().max() <= n * 0.01 * 1.001
    for player in ("min", "max"):
        assert run.trainer.report._line[f"{player}/clippy_factor_min"] < 1


# --- by row and sparse --------------------------------------------------------------------------


def test_rows_by_hand():
    weights = [[1.0, 1.0], [1.0, 1.0], [0.0, 2.0]]
    box = Box(sgd(), weights, table=True, embeddings="rows", absolute_threshold=0.1)
    ((short, long, zero),) = box.step([[0.5, 0.5], [6.0, 3.0], [0.2, 0.0]])
    assert short == [0.5, 0.5]
    assert long == pytest.approx([1 - 0.6, 1 - 0.3])
    assert zero == pytest.approx([-0.1, 2.0])
    assert box.clippy.figures()["factor_mean"] == pytest.approx((1 + 0.1 + 0.5) / 3)
    one = Box(sgd(), weights, table=True, embeddings="tensor", absolute_threshold=0.1)
    ((short, _, _),) = one.step([[0.5, 0.5], [6.0, 3.0], [0.2, 0.0]])
    assert short == pytest.approx([0.95, 0.95])


@pytest.mark.parametrize("embeddings", ["rows", "tensor"])
@pytest.mark.parametrize("learner", ["sgd", "adagrad", "clippy_adagrad"])
def test_sparse_tables_move_like_dense_ones(learner, embeddings, tiny, sparse_bpr):
    keys = {"clippy_embeddings": embeddings, "learner": learner, "learning_rate": 20.0, **ONE}
    weights = []
    for model in (BPR, sparse_bpr):
        run = tiny(model, techniques=["clippy"], **keys)
        run.fit(saved=False)
        # Under its own Clippy no tensor exceeds the same bound, hence no row.
        own = learner == "clippy_adagrad"
        assert (run.trainer.report._line["min/clippy_factor_min"] < 0.999) != own
        weights.append(list(run.model.parameters()))
    for one, other in zip(*weights):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_rows_without_a_gradient_that_momentum_moves_are_bounded_too():
    def row(i, value):
        return torch.sparse_coo_tensor(
            [[i]], torch.tensor([[value, value]]), (2, 2), check_invariants=True
        )

    keys = {"table": True, "embeddings": "rows", "absolute_threshold": 0.1}
    box = Box(sgd(momentum=0.9), [[1.0, 1.0], [1.0, 1.0]], **keys)
    box.step(row(0, 2.0))
    ((first, second),) = box.step(row(1, 0.1))
    assert first == pytest.approx([0.4 - 0.3, 0.4 - 0.3])  # by momentum 1.8, bound 0.3
    assert second == pytest.approx([0.9, 0.9])
    with pytest.raises(ConfigError, match="clippy_clip_state cannot follow the momentum of sparse"):
        follow = Box(sgd(momentum=0.9), [[1.0, 1.0], [1.0, 1.0]], **keys, clip_state=True)
        follow.step(row(0, 2.0))
        follow.step(row(0, 2.0))


@pytest.mark.parametrize("by_row", [True, False])
def test_large_tables_in_blocks_are_as_small_ones_at_once(by_row):
    torch.manual_seed(0)
    start = torch.randn(40_000, 16) * 0.01
    now = start + torch.randn(40_000, 16) * 0.002
    now[17] += 1.0
    for relative, absolute in ((0.5, 0.005), (0.5, 0.0), (0.0, 0.005)):
        bound = relative * start.abs() + absolute
        blocks, furthest = load_of_step(start, now, relative, absolute, by_row)
        once = load(now - start, bound, by_row)
        over = once > 1
        moved = (now - start).abs()
        assert over.any() and furthest.max() == moved.max()
        if by_row:  # exactly where it is more than the absolute threshold
            assert (furthest >= moved.amax(1, keepdim=True)).all()
            assert ((furthest == moved.amax(1, keepdim=True)) | (furthest <= absolute)).all()
        torch.testing.assert_close(blocks[over], once[over])
        assert (blocks[~over] <= 1).all()
    loose, _ = load_of_step(start, now, 0.5, 2.0, by_row)
    assert ((loose >= load(now - start, 0.5 * start.abs() + 2, by_row)) & (loose < 1)).all()
    now[30_000, 3] = torch.nan
    filled, furthest = load_of_step(start, now, 0.5, 2.0, by_row)
    assert filled.isnan().sum() == 1 and furthest.isnan().sum() == 1


# --- the optimizer's state ----------------------------------------------------------------------


def test_state_follows_the_weights_by_hand():
    """After a spike of 100 the state is what made the shortened step."""
    box = Box(sgd(momentum=0.9), [1.0], clip_state=True)
    box.step([0.25])
    box.step([100.0])
    momentum = box.optimizer.state[box.weights[0]]["momentum_buffer"].item()
    assert momentum == pytest.approx(0.5 * 0.75 + 0.01, rel=1e-5)  # what it moved, at rate 1
    # Adagrad: squares, so the square of the factor; that is the official clipped accumulator.
    box = Box(lambda w: optim.Adagrad(w, lr=1.0), [1.0], clip_state=True)
    box.step([100.0])
    total = box.optimizer.state[box.weights[0]]["sum"].item()
    assert total == pytest.approx((0.51 * 100) ** 2, rel=1e-5)
    box.step([1.0])
    rest = 0.49 - 1 / math.hypot(51, 1)  # not clipped
    assert box.weights[0].item() == pytest.approx(rest, rel=1e-5)
    # Adam begins from no state at all.
    box = Box(lambda w: optim.Adam(w, lr=1.0), [1.0], clip_state=True)
    box.step([100.0])
    state = box.optimizer.state[box.weights[0]]
    assert state["exp_avg"].item() == pytest.approx(0.51 * 10, rel=1e-5)
    assert state["exp_avg_sq"].item() == pytest.approx(0.51**2 * 10, rel=1e-5)
    plain = Box(lambda w: optim.Adam(w, lr=1.0), [1.0])
    plain.step([100.0])
    assert plain.optimizer.state[plain.weights[0]]["exp_avg"].item() == pytest.approx(10)


def test_a_spike_does_not_stay_in_the_momentum():
    """The steps after a spike of 1000 times the gradient that still go its way at the bound."""
    clipped = {}
    for clip_state in (False, True):
        box = Box(
            lambda w: optim.SGD(w, lr=0.01, momentum=0.9),
            [[0.5] * 20],
            clip_state=clip_state,
            absolute_threshold=0.05,
        )
        torch.manual_seed(0)
        shares = []
        for step in range(80):
            gradient = torch.randn(1, 20) * 0.1
            box.step(gradient * (1000 if step == 20 else 1))
            shares.append(box.clippy.figures()["clipped"])
        assert not any(shares[:20]) and shares[20]
        clipped[clip_state] = sum(shares[21:])
    assert clipped[True] < clipped[False] / 2 and clipped[False] > 10


# --- a run in which it cannot act ---------------------------------------------------------------


def test_the_largest_update_of_an_optimizer():
    weights = [nn.Parameter(torch.zeros(1))]
    bound = largest_update(optim.Adam(weights, lr=1.0))
    assert bound == pytest.approx(7.27, abs=0.005)
    # Reached after the averages have forgotten that they began at 0.
    late = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = optim.Adam([late], lr=1.0, eps=0.0)
    seen = []
    for step in range(6000):
        from_end = max(0, 6000 - step)
        late.grad = torch.tensor([max(1e-12, (0.9 / 0.999) ** from_end)], dtype=torch.float64)
        before = late.item()
        optimizer.step()
        seen.append(abs(late.item() - before))
    assert 0.99 * bound < max(seen) <= bound
    assert largest_update(optim.Adagrad(weights, lr=0.5)) == 0.5
    assert largest_update(optim.RMSprop(weights, lr=0.5)) == pytest.approx(5.0)
    assert largest_update(optim.SGD(weights, lr=0.5)) == math.inf
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1, "initial_lr": 0.4}]
    assert largest_update(optim.Adagrad(groups, lr=1.0)) == 0.4


def test_a_run_in_which_it_never_acts_says_so(tiny, caplog):
    """RecBole's Adam at 0.001 under the paper's thresholds: known at the first step."""
    keys = {"learning_rate": 0.001, "clippy_embeddings": "rows", **ONE}
    run = tiny("BPR", techniques=["clippy"], **keys)
    run.trainer.logger = logging.getLogger("run")
    with caplog.at_level(logging.WARNING):
        run.fit(saved=False)
    first, last = [r.getMessage() for r in caplog.records if "clippy" in r.getMessage()]
    assert first == (
        "clippy cannot act on player min: Adam at a learning rate of 0.001 moves no weight by more "
        "than 0.0073, and clippy_absolute_threshold 0.01 alone allows that; write "
        "clippy_absolute_threshold: 0.002 or less"
    )
    assert last.startswith("clippy never acted on player min: no update filled more than 0.")
    assert run.trainer.report._line["min/clippy_factor_min"] == 1.0


def test_one_in_which_it_acts_says_nothing(tiny, caplog):
    keys = {"clippy_embeddings": "rows", "clippy_absolute_threshold": 1e-4, **ONE}
    run = tiny("BPR", techniques=["clippy"], **keys)
    run.trainer.logger = logging.getLogger("run")
    with caplog.at_level(logging.WARNING):
        run.fit(saved=False)
    assert not [r for r in caplog.records if "clippy" in r.getMessage()]
    assert run.trainer.report._line["min/clippy_clipped"] > 0
    assert run.trainer.techniques["min"]["clippy"].state_dict()["largest_ever"] > 1
