"""What acts on gradients, steps and weights, in whole runs: neutral, resumed, over skipped steps."""

import copy

import pytest
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data import create_dataset, data_preparation
from recbole.model.general_recommender import BPR
from recbole.utils import get_model, get_trainer, init_seed
from torch import nn

from recbole_adv import checkpoint, run_recbole_adv

NEUTRAL = {
    "ema": {"ema_decay": 0.0},
    "lr_schedule": {"lr_schedule_kind": "constant"},
    "clip_norm": {"clip_norm_max_norm": float("inf")},
    "clip_value": {"clip_value_max_value": float("inf")},
    "agc": {"agc_threshold": float("inf")},
    "clippy": {"clippy_absolute_threshold": 1e9, "clippy_embeddings": "rows"},
    "gradient_noise": {"gradient_noise_eta": 0.0, "gradient_noise_embeddings": True},
    "gradient_accumulation": {"gradient_accumulation_batches": 1},
}
ACTIVE = {
    "ema": {"ema_decay": 0.9},
    "lr_schedule": {"lr_schedule_warmup": 3, "lr_schedule_total": 12},
    "clip_norm": {"clip_norm_max_norm": 0.01},
    "clip_value": {"clip_value_max_value": 1e-3},
    "agc": {"agc_threshold": 0.01},
    "clippy": {
        "clippy_absolute_threshold": 1e-3,
        "clippy_embeddings": "rows",
        "clippy_clip_state": True,
    },
    "gradient_noise": {"gradient_noise_embeddings": True},
    "gradient_centralization": {"gradient_centralization_embeddings": True},
    "gradient_accumulation": {"gradient_accumulation_batches": 2},
}
EVERY_PLAYER = list(ACTIVE)
GAME = {"backbone": "NeuMF", "dropout_prob": 0.2, "max_start_epoch": 0, "penalty_start": 0}
VAE = {"train_neg_sample_args": None, "n_enc_epochs": 1}


def together(of):
    """All of them at once, in the order of the table, and their keys."""
    keys = {key: value for keys in of.values() for key, value in keys.items()}
    return {"techniques": list(of), **keys}


# --- neutral ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock():
    """``stock(model, settings)``: a run of RecBole's own classes, kept for the next test."""
    kept = {}

    def run(model, settings):
        if model not in kept:
            given = copy.deepcopy(settings)
            config = RecBoleConfig(model=model, dataset="checkerboard", config_dict=given)
            init_seed(config["seed"], config["reproducibility"])
            train, valid, test = data_preparation(config, create_dataset(config))
            init_seed(config["seed"], config["reproducibility"])
            net = get_model(model)(config, train._dataset)
            trainer = get_trainer(config["MODEL_TYPE"], model)(config, net)
            best, result = trainer.fit(train, valid, verbose=False)
            last = {name: value.clone() for name, value in net.state_dict().items()}
            tested = {name: float(value) for name, value in trainer.evaluate(test).items()}
            kept[model] = (trainer.train_loss_dict, best, dict(result), last, tested)
        return kept[model]

    return run


def assert_stock(run, stock):
    losses, best, result, last, tested = stock
    trainer = run.trainer
    assert trainer.train_loss_dict == losses
    assert trainer.best_valid_score == best
    assert trainer.best_valid_result == {name: float(value) for name, value in result.items()}
    for name, value in run.model.state_dict().items():
        assert value.equal(last[name]), name
    assert trainer.evaluate(run.test) == tested


@pytest.mark.parametrize("name", [*NEUTRAL, "together"])
def test_neutral_equals_stock(name, stock, tiny, settings_of):
    """SASRec: dropout, LayerNorm, attention, a softmax over all items."""
    settings = settings_of("SASRec")
    keys = together(NEUTRAL) if name == "together" else {"techniques": [name], **NEUTRAL[name]}
    run = tiny("SASRec", **settings, **keys)
    run.fit()
    assert_stock(run, stock("SASRec", settings))
    assert list(run.trainer.techniques["min"]) == keys["techniques"]


@pytest.mark.parametrize("model", ["CKE", "RecVAE"])
def test_neutral_equals_stock_in_special_trainers(model, stock, tiny, settings_of):
    settings = settings_of(model, **(VAE if model == "RecVAE" else {}))
    run = tiny(model, **settings, **together(NEUTRAL))
    run.fit()
    assert_stock(run, stock(model, settings))


@pytest.mark.parametrize("game_update", ["shared_graph", "separate_forward"])
def test_neutral_changes_nothing_in_a_game(game_update, tiny):
    runs = []
    for keys in ({}, together(NEUTRAL)):
        run = tiny("EIIL", game_update=game_update, **GAME, **keys)
        run.fit()
        runs.append(run)
    plain, neutral = runs
    assert list(neutral.trainer.techniques["max"]) == [
        "lr_schedule", "clip_norm", "clip_value", "agc", "clippy", "gradient_accumulation"
    ]  # fmt: skip
    assert plain.trainer.train_loss_dict == neutral.trainer.train_loss_dict
    for one, other in zip(plain.model.parameters(), neutral.model.parameters()):
        assert one.equal(other)


# --- exact resume -------------------------------------------------------------------------------


def same(first, second, path=""):
    """Two trees of tensors and numbers are equal bit for bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first.keys() - {"config"}:
            same(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for index, pair in enumerate(zip(first, second)):
            same(*pair, f"{path}/{index}")
    elif isinstance(first, torch.Tensor):
        assert first.equal(second), path
    elif hasattr(first, "tobytes"):
        assert first.tobytes() == second.tobytes(), path
    else:
        assert first == second or first != first, path


@pytest.mark.parametrize(
    "model, settings",
    [
        ("EIIL", {**GAME, "game_update": "shared_graph", "max_techniques": EVERY_PLAYER}),
        ("EIIL", {**GAME, "game_update": "separate_forward"}),
        ("CKE", {}),
        ("RecVAE", VAE),
    ],
)
def test_two_epochs_are_one_and_one(model, settings, settings_of):
    given = settings_of(model, **{**settings, **together(ACTIVE), "epochs": 2})
    whole = run_recbole_adv(model, "checkerboard", config_dict=given)
    half = run_recbole_adv(model, "checkerboard", config_dict={**given, "epochs": 1})
    rest = run_recbole_adv(resume=half["run_dir"], config_dict={"epochs": 2})
    for key in ("best_valid_score", "best_valid_result", "test_result"):
        assert rest[key] == whole[key]
    states = [checkpoint.load(f"{run['run_dir']}/last.pth") for run in (whole, rest)]
    same(*states)
    # The averaged weights are what a reader of the file gets, the raw ones are what goes on.
    raw, kept = states[0]["recbole_adv"]["training_weights"], states[0]["state_dict"]
    shadows = states[0]["recbole_adv"]["techniques"]["min"]["ema"]["shadows"]
    assert all(kept[name].equal(value) for name, value in shadows.items())
    assert not all(kept[name].equal(raw[name]) for name in shadows)


def test_plateau_resumes(settings_of):
    keys = {"techniques": ["lr_schedule"], "lr_schedule_kind": "plateau", "lr_schedule_patience": 0}
    given = settings_of("BPR", epochs=6, learning_rate=0.3, **keys)
    whole = run_recbole_adv("BPR", "checkerboard", config_dict=given)
    half = run_recbole_adv("BPR", "checkerboard", config_dict={**given, "epochs": 3})
    rest = run_recbole_adv(resume=half["run_dir"], config_dict={"epochs": 6})
    states = [checkpoint.load(f"{run['run_dir']}/last.pth") for run in (whole, rest)]
    same(*states)
    assert states[0]["recbole_adv"]["techniques"]["min"]["lr_schedule"]["reductions"] > 0


# --- a step that a GradScaler leaves out --------------------------------------------------------


class Overflow(BPR):
    """The loss is finite, but 65536 times its gradient is not, in the second batch."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.extra = nn.Parameter(torch.zeros(2, 2))
        self.seen = []

    def note(self):
        self.seen.append(self.user_embedding.weight.detach().clone())

    def calculate_loss(self, interaction):
        self.note()
        steep = 3e37 if len(self.seen) == 2 else 1.0
        return super().calculate_loss(interaction) + steep * self.extra[0, 0]


def test_a_step_that_is_left_out_counts_nowhere(tiny):
    keys = together(ACTIVE) | {"lr_schedule_kind": "linear", "lr_schedule_warmup": 0}
    keys["techniques"] = [name for name in keys["techniques"] if name != "gradient_accumulation"]
    keys |= {"enable_amp": True, "enable_scaler": True, "monitor_interval": 0}
    run = tiny(Overflow, train_batch_size=200, epochs=1, eval_step=0, **keys)
    trainer, moved = run.trainer, run.model.seen
    run.fit(saved=False)
    run.model.note()
    n = len(run.train)
    assert n >= 4 and trainer.loop.steps_taken["min"] == n - 1
    assert trainer.scalers["min"].get_scale() == 32768
    stayed = [first.equal(second) for first, second in zip(moved, moved[1:])]
    assert stayed == [number == 1 for number in range(n)]
    own = trainer.techniques["min"]
    assert own["ema"].updates == n - 1
    line = trainer.report._line
    # The last step is step n - 2 of the player, counted from 0, of the 12 of the schedule.
    assert line["min/lr_schedule_factor"] == pytest.approx(1 - (n - 2) / 12)
    for figure in ("clip_norm_total_norm", "clip_value_largest", "clippy_factor_min"):
        value = line[f"min/{figure}"]
        assert 0 < value < 1e6, figure
    assert own["clippy"].largest_ever.isfinite()
    assert all(p.isfinite().all() for p in run.model.parameters())
