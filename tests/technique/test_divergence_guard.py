"""Divergences brought about in real training: what is taken back, what goes on, when it gives up."""

import copy
import dataclasses
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed

from recbole_adv import Technique, run_recbole_adv
from recbole_adv.errors import ConfigError, TrainingError
from recbole_adv.technique.loss_watch import LossWatch
from recbole_adv.trainer.snapshot import copied

MODES = ["shared_graph", "separate_forward"]
EIIL = {
    "backbone": "NeuMF",  # dropout: the random numbers matter
    "dropout_prob": 0.3,
    "mf_embedding_size": 8,
    "mlp_embedding_size": 8,
    "max_start_epoch": 0,
    "penalty_schedule": "constant",
    "selection_start_epoch": 0,
    "max_interval": 2,
    "max_learner": "rmsprop",
}
GAMES = [("BPR", {})] + [("EIIL", {**EIIL, "game_update": mode}) for mode in MODES]
QUICK = {
    "divergence_guard_min_losses": 5,
    "divergence_guard_recovery": 3,
    "divergence_guard_patience": 6,
    "divergence_guard_interval": 10,
    "divergence_guard_rate_factor": 1.0,
}
NAN = math.nan


class Fault(Technique):
    """Spoils one step: ``rate`` multiplies the learning rates, ``gradient`` is added to a gradient."""

    def __init__(self, *, step: int = -1, rate: float = 1.0, gradient: float = 0.0):
        self.step, self.rate, self.gradient = step, rate, gradient

    def edit_gradients(self, turn):
        if turn.steps != self.step:
            return
        self.step = -1
        for group in turn.optimizer.param_groups:
            group["lr"] *= self.rate
        next(p for p in turn.parameters if p.grad is not None).grad.add_(self.gradient)


FAULTS = {
    "explosion": {"fault_rate": 1e4},
    "nan_gradient": {"fault_gradient": NAN},
    "nan_loss": {},
}


def built(tiny, model, techniques, **settings):
    """A tiny run before its first batch, and 60 of its batches."""
    given = {"train_batch_size": 64, "eval_step": 0, **QUICK, **settings}
    run = tiny(model, techniques=techniques, **given)
    run.trainer._before_fit(run.train)
    run.model.train()
    for technique in run.trainer.techniques.all():
        technique.before_epoch(0)
    batches = []
    while len(batches) < 60:
        batches += list(run.train)
    return run, batches[:60]


def play(run, batches):
    """Train on these batches, as one epoch."""
    trainer = run.trainer
    return trainer.loop.run(batches, 0, trainer._turns(), trainer._joint(), False, False)


def poison(run, bad):
    """The losses of the first player are nan on one batch, in either mode."""
    trainer, model = run.trainer, run.model
    first = trainer.players[0]

    def loss(batch):
        return spoiled(first.loss(batch), batch)

    def spoiled(value, batch):
        if batch is not bad:
            return value
        return tuple(NAN * v for v in value) if isinstance(value, tuple) else NAN * value

    trainer.players = (dataclasses.replace(first, loss=loss), *trainer.players[1:])
    joint = getattr(model, "calculate_joint", None)
    if joint is not None:

        def joint_loss(batch):
            least, most = joint(batch)
            return spoiled(least, batch), most

        model.calculate_joint = joint_loss


def same(first, second, path=""):
    """Two trees of data are equal to the last bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            same(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for index, (one, other) in enumerate(zip(first, second)):
            same(one, other, f"{path}/{index}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    elif hasattr(first, "tobytes"):
        assert first.tobytes() == second.tobytes(), path
    else:
        assert first == second or first != first, f"{path}: {first} != {second}"


def state_of(run, without=("divergence_guard", "fault")):
    """All that training changes, but the place in the data and what counts the events."""
    state = run.trainer.snapshot()
    del state["counters"], state["loop"]["progress"]
    for named in state["techniques"].values():
        for name in without:
            named.pop(name, None)
    return state


# --- rolling back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("model, settings", GAMES)
def test_goes_on_as_if_it_had_never_diverged(model, settings, fault, tiny):
    """Training on 60 batches that breaks at the 32nd equals one on those that are left of them."""
    techniques = [Fault, "divergence_guard", "ema", "lr_schedule"]
    settings = {**settings, "lr_schedule_kind": "inverse_sqrt", "lr_schedule_warmup": 5}
    if fault == "explosion":  # the schedule would set the rate right again
        techniques.remove("lr_schedule")
    run, batches = built(tiny, model, techniques, fault_step=31, **settings, **FAULTS[fault])
    if fault == "nan_loss":
        poison(run, batches[31])
    seen = []
    restore = run.trainer.restore

    def noted(snapshot):
        restore(snapshot)
        seen.append((run.trainer.loop.steps_taken["min"], run.trainer.loop.batch_count))

    run.trainer.restore = noted
    rest = []
    batches_of = iter(batches)

    class Batches:
        def __len__(self):
            return len(batches)

        def __iter__(self):
            for batch in batches_of:
                if seen:
                    rest.append(batch)
                yield batch

    play(run, Batches())
    ((back_at, count),) = seen
    assert back_at == count == 20  # taken at 20, good at 26; that of 30 was too young
    guard = run.trainer.techniques["min"]["divergence_guard"]
    assert guard.totals["rollback"] == 1 and len(rest) > 15
    clean, same_batches = built(tiny, model, [*techniques[1:]], **settings)
    same([dict(b.interaction) for b in batches], [dict(b.interaction) for b in same_batches])
    play(clean, same_batches[:back_at] + same_batches[60 - len(rest) :])
    assert clean.trainer.techniques["min"]["divergence_guard"].totals["rollback"] == 0
    same(state_of(run), state_of(clean))
    assert all(p.isfinite().all() for p in run.model.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_an_adversary_that_is_nan_takes_all_back(mode, tiny):
    """Its weights turn to nan at its eighth step; the first player's loss need not show it."""
    run, batches = built(
        tiny, "EIIL", ["divergence_guard"], max_techniques=[Fault], fault_step=7,
        fault_gradient=NAN, penalty_weight=0.0, **{**EIIL, "game_update": mode},
    )  # fmt: skip
    play(run, batches)
    assert run.trainer.techniques["min"]["divergence_guard"].totals["rollback"] == 1
    assert all(p.isfinite().all() for p in run.model.parameters())
    assert run.trainer.loop.turns_taken["max"] > 8


def test_a_snapshot_is_not_taken_of_weights_that_are_nan(tiny):
    """No batch looks at the padding row, so no loss shows it."""
    run, batches = built(tiny, "BPR", [PoisonPadding, "divergence_guard"])
    play(run, batches)
    guard = run.trainer.techniques["min"]["divergence_guard"]
    assert guard.diagnoses == ["a weight was nan or inf at step 30"]
    assert run.model.user_embedding.weight.isfinite().all()


def test_all_rates_are_lowered_and_stay_so(tiny):
    techniques = [Fault, "divergence_guard", "lr_schedule"]
    settings = {**EIIL, "divergence_guard_rate_factor": 0.25, "lr_schedule_kind": "constant"}
    settings |= {"max_learning_rate": 0.002, "fault_gradient": NAN, "fault_step": 31}
    run, batches = built(tiny, "EIIL", techniques, **settings)
    play(run, batches)
    trainer = run.trainer
    assert trainer.learning_rates() == {"optimizer": [0.0025], "optimizer_max": [0.0005]}
    assert trainer.optimizer.param_groups[0]["initial_lr"] == 0.0025
    assert trainer.rate_factor == 0.25
    trainer._renew_first()  # as where a penalty switches
    assert trainer.optimizer.param_groups[0]["lr"] == 0.0025


def test_two_rollbacks_to_one_snapshot_lower_the_rates_twice(tiny):
    run, _ = built(tiny, "BPR", ["divergence_guard"])
    snapshot = run.trainer.snapshot()
    for factor in (0.5, 0.25):
        run.trainer.restore(snapshot)
        run.trainer.set_rate_factor(factor)
    assert run.trainer.learning_rates() == {"optimizer": [0.01 * 0.25]}


def test_waiting_gradients_are_dropped(tiny):
    """Of three batches for a step, the second is spoiled: the third begins a new step."""
    techniques = ["gradient_accumulation", "divergence_guard"]
    settings = {"gradient_accumulation_batches": 3, "divergence_guard_interval": 6}
    run, batches = built(tiny, "BPR", techniques, **settings)
    poison(run, batches[31])
    play(run, batches)
    clean, batches = built(tiny, "BPR", techniques, **settings)
    # 30 batches are ten steps; the snapshot of batch 24 is good, that of 30 too young.
    play(clean, batches[:24] + batches[32:])
    same(state_of(run), state_of(clean))


def test_a_loss_that_a_scaler_would_skip_for_ever_is_seen(tiny):
    amp = {"enable_amp": True, "enable_scaler": True, "amp_dtype": "bfloat16"}
    run, batches = built(tiny, "BPR", ["divergence_guard"], **amp)
    poison(run, batches[31])
    play(run, batches)
    assert run.trainer.techniques["min"]["divergence_guard"].totals["rollback"] == 1
    clean, batches = built(tiny, "BPR", ["divergence_guard"], **amp)
    play(clean, batches[:20] + batches[32:])
    same(state_of(run), state_of(clean))


def test_two_optimizers_of_one_model_go_back(tiny):
    run = tiny("RecVAE", train_neg_sample_args=None, train_batch_size=64, eval_step=0, epochs=1)
    run.fit(saved=False)
    snapshot = run.trainer.snapshot()
    before = copied(snapshot["optimizers"], torch.device("cpu"))
    assert set(before) == {"optimizer_encoder", "optimizer_decoder"}
    run.trainer.epochs = 2
    run.trainer.start_epoch = 1
    run.fit(saved=False)
    run.trainer.restore(snapshot)
    same(run.trainer.snapshot()["optimizers"], before)


# --- a collapsed score ----------------------------------------------------------------------------


class PoisonPadding(Technique):
    """A weight that no batch reads turns to nan."""

    def __init__(self):
        self.done = False

    def after_step(self, turn, outcome):
        if turn.steps == 25 and not self.done:
            self.done = True
            with torch.no_grad():
                turn.parameters[0][0] = NAN


class Reverse(Technique):
    """Turns the ranking round at the end of an epoch; no loss of this epoch shows it."""

    def __init__(self, *, epoch: int):
        self.epoch, self.now = epoch, -1

    def attach(self, trainer, player):
        self.model = trainer.model

    def before_epoch(self, epoch):
        self.now = epoch

    def after_step(self, turn, outcome):
        if self.now == self.epoch and turn.steps == 80:
            with torch.no_grad():
                self.model.item_embedding.weight.neg_()


def test_a_collapsed_score_goes_back_to_the_last_sound_validation(tiny, caplog):
    settings = {"epochs": 4, "learning_rate": 0.05, "reverse_epoch": 3, "embedding_size": 16}
    settings |= {"train_batch_size": 50, "divergence_guard_rate_factor": 0.1}
    run = tiny("BPR", techniques=[Reverse, "divergence_guard"], **settings)
    assert len(run.train) == 20
    with caplog.at_level(logging.INFO):
        run.fit()
    scores = [json.loads(line)["valid_score"] for line in open(metrics_of(run))]
    assert scores[3] < 0.2 * max(scores)
    three = tiny("BPR", techniques=["divergence_guard"], **{**settings, "epochs": 3})
    three.fit()
    same(run.model.state_dict(), three.model.state_dict())
    assert run.trainer.learning_rates() == {"optimizer": [pytest.approx(0.005)]}
    assert "MRR@10 was" in caplog.text and "back at step 60 of player 'min'" in caplog.text


def metrics_of(run):
    return Path(run.config["run_dir"], "metrics.jsonl")


# --- giving up ------------------------------------------------------------------------------------


class AlwaysNan(Technique):
    """Every loss is nan."""

    def wrap_loss(self, loss, turn):
        return lambda batch: NAN * loss(batch)


def test_gives_up_with_a_diagnosis(tiny):
    keys = {"divergence_guard_max_rollbacks": 2, "divergence_guard_rate_factor": 0.5}
    run, batches = built(tiny, "BPR", [AlwaysNan, "divergence_guard"], **keys)
    with pytest.raises(TrainingError) as error:
        play(run, batches)
    said = "the loss of player 'min' was nan at step"
    assert str(error.value) == (
        "training diverged after 2 rollbacks, of which divergence_guard_max_rollbacks allows 2: "
        f"{said} 1; {said} 2; {said} 3; the learning rates were 0.0025 (optimizer) at last; start "
        "with lower ones, or clip gradients"
    )


def test_every_event_is_logged_and_counted(tiny, caplog):
    run, batches = built(tiny, "BPR", [Fault, "divergence_guard"], fault_step=31, fault_rate=1e4)
    with caplog.at_level(logging.INFO):
        play(run, batches)
    figures = run.trainer.techniques.figures()
    counted = {k.removeprefix("min/divergence_guard_"): v for k, v in figures.items() if v}
    assert counted == {"suspect": 1, "full": 1, "rollback": 1, "rate_factor": 1.0}
    lines = [r.getMessage() for r in caplog.records if "divergence_guard" in r.getMessage()]
    assert len(lines) == 2
    assert "above its band, which ends at" in lines[0]
    assert "back at step 20 of player 'min' with the learning rates 0.01 (optimizer)" in lines[1]
    assert lines[1].endswith("rollback 1 of 3")
    assert not run.trainer.techniques.figures()["min/divergence_guard_full"]  # of a new epoch


# --- snapshots ------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", ["adam", "adagrad", "rmsprop", "sgd"])
def test_a_snapshot_is_taken_back_to_the_last_bit_any_number_of_times(learner, tiny):
    settings = {**EIIL, "learner": learner, "max_learner": learner}
    run, batches = built(tiny, "EIIL", ["ema", "lr_schedule"], lr_schedule_total=99, **settings)
    play(run, batches[:20])
    snapshot = run.trainer.snapshot()
    kept = copied({k: v for k, v in snapshot.items() if k != "counters"}, torch.device("cpu"))
    play(run, batches[20:40])
    after = state_of(run)
    for _ in range(2):
        run.trainer.restore(snapshot)
        same(run.trainer.snapshot() | {"counters": None}, kept | {"counters": None})
        play(run, batches[20:40])
        same(state_of(run), after)
    same({k: v for k, v in snapshot.items() if k != "counters"}, kept)  # nobody trains on it


def test_counters_of_the_model_go_back(tiny):
    """MultiVAE's annealing counts its forward passes in a plain attribute."""
    run = tiny("MultiVAE", train_neg_sample_args=None, train_batch_size=32, epochs=1, eval_step=0)
    snapshot = run.trainer.snapshot()
    run.fit(saved=False)
    assert run.model.update > 0
    run.trainer.restore(snapshot)
    assert run.model.update == 0


# --- it changes nothing ---------------------------------------------------------------------------


def test_a_guard_that_never_acts_equals_stock(tiny, settings_of):
    settings = settings_of("NeuMF", epochs=3, dropout_prob=0.2)
    config = RecBoleConfig("NeuMF", "checkerboard", config_dict=copy.deepcopy(settings))
    init_seed(config["seed"], config["reproducibility"])
    train, valid, _ = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    stock = get_model("NeuMF")(config, train._dataset)
    trainer = Trainer(config, stock)
    best = trainer.fit(train, valid, verbose=False)
    run = tiny("NeuMF", techniques=["divergence_guard"], divergence_guard_interval=3, **settings)
    run.fit()
    assert run.trainer.train_loss_dict == trainer.train_loss_dict
    assert run.trainer.best_valid_score == best[0]
    same(run.model.state_dict(), stock.state_dict())
    assert "rate_factor" not in run.trainer.optimizer.param_groups[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_guard_that_never_acts_leaves_a_game_alone(mode, tiny):
    settings = {**EIIL, "game_update": mode, "epochs": 3, "max_start_epoch": 1, "eval_step": 1}
    plain = tiny("EIIL", **settings)
    plain.fit()
    guarded = tiny("EIIL", techniques=["divergence_guard"], **settings)
    guarded.fit()
    same(plain.model.state_dict(), guarded.model.state_dict())
    assert plain.trainer.train_loss_dict == guarded.trainer.train_loss_dict


def test_the_detectors_start_anew_where_the_objective_changes(tiny, monkeypatch):
    """A penalty that jumps to 10000 times its weight is no divergence; the detectors alone call it one."""
    settings = {"n_environments": 2, "penalty_schedule": "step", "penalty_initial": 1.0}
    settings |= {"penalty_weight": 1e4, "penalty_start": 2, "penalty_reset_optimizer": False}
    settings |= {"penalty_rescale": False, "penalty_estimator": "plain", "learning_rate": 1e-5}
    settings |= {"train_batch_size": 32, "epochs": 4, "eval_step": 0, **QUICK}
    run = tiny("IRM", techniques=["divergence_guard"], **settings)
    run.fit(saved=False)
    assert run.trainer.techniques["min"]["divergence_guard"].totals["full"] == 0
    losses = run.trainer.train_loss_dict
    assert losses[2] > 3 * losses[1]
    monkeypatch.setattr(LossWatch, "forget", lambda self: None)
    run = tiny("IRM", techniques=["divergence_guard"], **settings)
    with pytest.raises(TrainingError, match="left its band at step 61 "):
        run.fit(saved=False)


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model, settings", GAMES)
def test_four_epochs_are_two_and_two(model, settings, tiny):
    """With a rollback in the first half, whose lower rates stay."""
    techniques = [Fault, "divergence_guard", "ema", "lr_schedule"]
    given = {**settings, **QUICK, "fault_step": 25, "fault_gradient": NAN, "train_batch_size": 64}
    given |= {
        "divergence_guard_rate_factor": 0.5,
        "lr_schedule_total": 70,
        "techniques": techniques,
    }
    whole = tiny(model, epochs=4, run_dir="whole", **given)
    whole.fit()
    half = tiny(model, epochs=2, run_dir="half", **given)
    half.fit()
    assert half.trainer.rate_factor == 0.5
    rest = tiny(model, epochs=4, run_dir="rest", **{**given, "fault_step": -1})
    rest.trainer.resume_checkpoint(half.trainer.last_file)
    rest.fit()
    states = [run.trainer._state(3) for run in (whole, rest)]
    for state in states:
        del state["config"], state["recbole_adv"]["random"]["python"]
    same(*states)
    assert states[0]["recbole_adv"]["techniques"]["min"]["divergence_guard"]["totals"]["full"] == 1


# --- mistakes -------------------------------------------------------------------------------------


def test_refuses_an_adversary_and_a_short_window(tiny):
    run = tiny("EIIL", max_techniques=["divergence_guard"])
    with pytest.raises(ConfigError, match="write it into techniques"):
        run.fit(saved=False)
    keys = {"divergence_guard_window": 20}
    with pytest.raises(ConfigError, match="min_losses must not exceed .*, got 30 and 20; write 20"):
        tiny("BPR", techniques=["divergence_guard"], **keys)


def test_from_the_configuration_to_the_report(settings_of):
    keys = {"techniques": ["divergence_guard", "ema"], "divergence_guard_patience": 10}
    done = run_recbole_adv("BPR", "checkerboard", config_dict=settings_of("BPR", **keys))
    lines = Path(done["run_dir"], "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["min/divergence_guard_rollback"] for line in lines] == [0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_losses_on_a_gpu_are_read_in_blocks(tiny):
    run, batches = built(tiny, "BPR", ["divergence_guard"], use_gpu=True, divergence_guard_block=8)
    batches = [batch.to("cuda") for batch in batches]
    poison(run, batches[31])
    play(run, batches)
    guard = run.trainer.techniques["min"]["divergence_guard"]
    assert guard.totals["rollback"] == 1
    assert all(p.isfinite().all() for p in run.model.parameters())
    for value in guard.snapshots.good["model"].values():
        assert value.device.type == "cpu"
