"""The learning rate as a function of a player's own steps or of the epochs."""

import math

import pytest
import torch

from recbole_adv import Technique
from recbole_adv.errors import ConfigError
from recbole_adv.technique.lr_schedule import LrSchedule, rate_factor
from recbole_adv.technique.planned_steps import planned_steps

ONE = {"epochs": 1, "eval_step": 0}


class Rates(Technique):
    """Notes the rates of the optimizer at each step that was not left out."""

    concerns = "all"

    def __init__(self):
        self.seen = []

    def after_step(self, turn, outcome):
        self.seen.append([group["lr"] for group in turn.optimizer.param_groups])


class Note(Technique):
    """Keeps the first parameter before each step, and its gradient."""

    def __init__(self):
        self.seen = []

    def edit_gradients(self, turn):
        weight = turn.parameters[0]
        self.seen.append((weight.detach().clone(), weight.grad.clone()))


def rates(run, player="min"):
    return [seen[0] for seen in run.trainer.techniques[player]["rates"].seen]


# --- the function -------------------------------------------------------------------------------


def test_cosine_by_hand():
    def factor(s):
        return rate_factor("cosine", s, warmup=4, total=12, min_ratio=0.1)

    assert [factor(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4) == 1.0
    assert factor(8) == pytest.approx(0.1 + 0.9 * 0.5)  # half-way: cos(pi / 2) = 0
    assert factor(6) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert factor(12) == pytest.approx(0.1)
    assert factor(17) == factor(1000) == factor(12)  # torch's would heat up again


def test_cosine_is_that_of_transformers():
    """get_cosine_schedule_with_warmup, half a cycle, after its warm-up, which begins at 0."""
    warmup, total = 7, 50
    for s in range(warmup, total):
        progress = float(s - warmup) / float(max(1, total - warmup))
        theirs = max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))
        assert rate_factor("cosine", s, warmup=warmup, total=total) == pytest.approx(theirs)


def test_cosine_is_torchs_until_its_end():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=9)
    for s in range(10):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            2.0 * rate_factor("cosine", s, total=9), abs=1e-12
        )
        optimizer.step()
        torchs.step()
    assert optimizer.param_groups[0]["lr"] > 0 == rate_factor("cosine", 10, total=9)


@pytest.mark.parametrize(
    "kind, arguments, expected",
    [
        ("constant", {"warmup": 2}, [0.5, 1, 1, 1, 1, 1, 1]),
        ("linear", {"total": 4}, [1, 0.75, 0.5, 0.25, 0, 0, 0]),
        ("linear", {"total": 4, "min_ratio": 0.5}, [1, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5]),
        ("step", {"step_size": 2, "gamma": 0.1}, [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001]),
        ("step", {"step_size": 2, "warmup": 1}, [1, 1, 1, 0.5, 0.5, 0.25, 0.25]),
        ("step", {"gamma": 0.1, "min_ratio": 0.05}, [1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.05]),
        ("inverse_sqrt", {"warmup": 1}, [1, 1, 2**-0.5, 3**-0.5, 0.5, 5**-0.5, 6**-0.5]),
        ("inverse_sqrt", {"warmup": 4}, [0.25, 0.5, 0.75, 1, 1, 0.8**0.5, (4 / 6) ** 0.5]),
        ("plateau", {"reductions": 2}, [0.25] * 7),
        ("plateau", {"reductions": 2, "warmup": 2, "min_ratio": 0.4}, [0.2] + [0.4] * 6),
    ],
)
def test_shapes_by_hand(kind, arguments, expected):
    factors = [rate_factor(kind, s, **arguments) for s in range(7)]
    assert factors == pytest.approx(expected)


# --- in training --------------------------------------------------------------------------------


def test_each_step_has_its_rate(tiny):
    run = tiny(
        "BPR",
        techniques=["lr_schedule", Rates],
        lr_schedule_warmup=3,
        lr_schedule_min_ratio=0.2,
        epochs=3,
        eval_step=0,
    )
    run.fit(saved=False)
    n = 3 * len(run.train)
    expected = [rate_factor("cosine", s, warmup=3, total=n, min_ratio=0.2) for s in range(n)]
    assert rates(run) == pytest.approx([0.01 * factor for factor in expected])
    figures = run.trainer.techniques.figures()
    assert figures["min/lr_schedule_learning_rate"] == pytest.approx(0.01 * expected[-1])


def test_a_step_moves_by_its_rate(tiny):
    """SGD on one batch: the update of the second step is half the gradient's."""
    settings = {"learner": "sgd", "learning_rate": 1.0, "train_batch_size": 10**6, "epochs": 2}
    settings |= {"lr_schedule_kind": "step", "lr_schedule_step_size": 1, "eval_step": 0}
    run = tiny("BPR", techniques=["lr_schedule", Note], **settings)
    run.fit(saved=False)
    (first, gradient), (second, later) = run.trainer.techniques["min"]["note"].seen
    torch.testing.assert_close(second, first - gradient)
    torch.testing.assert_close(run.trainer.players[0].parameters[0], second - 0.5 * later)


def test_by_epoch(tiny):
    run = tiny(
        "BPR",
        techniques=["lr_schedule", Rates],
        lr_schedule_kind="linear",
        lr_schedule_unit="epoch",
        lr_schedule_warmup=1,
        epochs=3,
        eval_step=0,
    )
    run.fit(saved=False)
    n = len(run.train)
    assert rates(run) == pytest.approx([0.01] * n + [0.01] * n + [0.005] * n)


def test_plateau_waits_for_the_score_and_a_smaller_one_may_be_better(tiny):
    keys = {"lr_schedule_kind": "plateau", "lr_schedule_patience": 1, "lr_schedule_gamma": 0.1}
    run = tiny("BPR", techniques=["lr_schedule"], epochs=5, **keys)
    own = run.trainer.techniques["min"]["lr_schedule"]
    own.attach(run.trainer, run.trainer.players[0])
    factors = []
    for epoch, score in enumerate([0.5, 0.6, 0.6, 0.5, 0.7, 0.7, 0.7, 0.7, 0.7]):
        own.after_validation(epoch, score)
        factors.append(own.factor(epoch))
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001])
    state, other = own.state_dict(), LrSchedule(kind="plateau", patience=1)
    other.load_state_dict(state)
    assert other.state_dict() == state and other.reductions == 3
    run.trainer.valid_metric_bigger = False
    own.best = None
    for epoch, score in enumerate([0.7, 0.6, 0.5]):
        own.after_validation(epoch, score)
    assert own.reductions == 3


def test_groups_keep_their_ratio_and_a_new_optimizer_its_place(tiny):
    """LLPAUC's doubled rates; IRM's optimizer that is made anew when the penalty sets in."""
    run = tiny("LLPAUC", techniques=["lr_schedule", Rates], **ONE)
    run.fit(saved=False)
    different = set()
    for player in run.trainer.players:
        seen = run.trainer.techniques[player.name]["rates"].seen
        base = [g["initial_lr"] for g in run.trainer._turns()[player.name].optimizer.param_groups]
        for s, now in enumerate(seen):
            factor = rate_factor("cosine", s, total=len(seen))
            assert now == pytest.approx([factor * rate for rate in base])
        different |= set(base)
    assert different == {0.01, 0.02}
    keys = {"n_environments": 2, "penalty_start": 1, "lr_schedule_kind": "linear"}
    irm = tiny("IRM", techniques=["lr_schedule", Rates], epochs=2, eval_step=0, **keys)
    first = irm.trainer.optimizer
    irm.fit(saved=False)
    assert irm.trainer.optimizer is not first
    n = 2 * len(irm.train)
    assert rates(irm) == pytest.approx([0.01 * (1 - s / n) for s in range(n)])


def test_who_lowers_the_base_is_respected(tiny):
    run = tiny("BPR", techniques=["lr_schedule", Rates], lr_schedule_kind="linear", epochs=2)
    run.fit(saved=False)
    n = 2 * len(run.train)
    for group in run.trainer.optimizer.param_groups:
        group["lr"] *= 0.5
        group["initial_lr"] *= 0.5
    own = run.trainer.techniques["min"]["lr_schedule"]
    turn = run.trainer._turns()["min"]
    turn.steps = n // 2
    own.wrap_step(lambda: None, turn)()
    assert run.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.005 * 0.5)


@pytest.mark.parametrize(
    "model, settings, epochs",
    [
        ("BPR", {}, 2),
        ("BPR", {"gradient_accumulation_batches": 3}, 2),
        ("BPR", {"gradient_accumulation_batches": 100}, 2),
        ("EIIL", {"max_start_epoch": 1, "max_interval": 3, "max_steps": 2}, 3),
        ("EIIL", {"max_start_epoch": 0, "max_interval": 2, "max_budget": 3}, 2),
        ("EIIL", {"max_start_epoch": 1, "max_unit": "epoch", "max_steps": 2, "max_interval": 2}, 4),
        ("CKE", {}, 2),
        ("KTUP", {"train_rec_step": 1, "train_kg_step": 2}, 3),
        ("MKR", {"kge_interval": 2, "low_layers_num": 1}, 3),
        ("RecVAE", {"train_neg_sample_args": None, "n_enc_epochs": 2}, 2),
    ],
)
def test_the_end_is_the_last_step(model, settings, epochs, tiny, settings_of):
    """The steps that are planned are those that are taken, for every trainer of RecBole's."""
    given = settings_of("CKE") if model in ("KTUP", "MKR") else {}
    given.pop("kg_embedding_size", None)
    techniques = ["gradient_accumulation"] if "gradient_accumulation_batches" in settings else []
    given |= {"train_batch_size": 100, "eval_step": 0, **settings, "epochs": epochs}
    run = tiny(model, **{**given, "techniques": ["lr_schedule", *techniques]})
    run.fit(saved=False)
    for player in run.trainer.players:
        taken = run.trainer.loop.steps_taken[player.name]
        assert planned_steps(run.trainer, player) == taken > 0, player.name
        assert run.trainer.techniques[player.name]["lr_schedule"].total == taken


@pytest.mark.parametrize(
    "keys, sentence",
    [
        ({"lr_schedule_kind": "inverse_sqrt"}, "falls as the root of lr_schedule_warmup"),
        ({"lr_schedule_kind": "cosin"}, "lr_schedule_kind must be one of constant, cosine"),
        ({"lr_schedule_kind": "plateau", "eval_step": 0}, "follows the validation score, got eval"),
        (
            {"lr_schedule_warmup": 10, "lr_schedule_total": 10},
            "after 10 steps of player 'min', got",
        ),
        ({"lr_schedule_warmup": 9999}, "lr_schedule_warmup must end before the schedule does"),
        ({"lr_schedule_warmup": 2, "lr_schedule_unit": "epoch"}, "after 2 epochs of player 'min'"),
    ],
)
def test_what_cannot_be_is_refused(keys, sentence, tiny):
    with pytest.raises(ConfigError, match=sentence):
        tiny("BPR", **{"techniques": ["lr_schedule"], **keys}).fit(saved=False)
