"""With one player and nothing added, results equal RecBole's own, bit for bit."""

import copy

import pytest
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

from recbole_adv import Config
from recbole_adv.trainer import AdvTrainer

pytestmark = pytest.mark.contract

MODELS = ["BPR", "LightGCN", "SASRec", "DeepFM", "CKE"]


def stock_run(model, settings):
    """RecBole's own run: its Config, its trainer, no class of ours."""
    config = RecBoleConfig(model=model, dataset="checkerboard", config_dict=copy.deepcopy(settings))
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    net = get_model(model)(config, train._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, net)
    assert not isinstance(trainer, AdvTrainer)
    best = trainer.fit(train, valid, verbose=False)
    last = {name: weight.clone() for name, weight in net.state_dict().items()}
    return last, trainer, best, trainer.evaluate(test)


def assert_equal_runs(tiny_run, stock):
    last, trainer, best, result = stock
    ours = tiny_run.trainer
    assert ours.train_loss_dict == trainer.train_loss_dict
    weights = {k.removeprefix("backbone."): v for k, v in tiny_run.model.state_dict().items()}
    for name, weight in last.items():
        assert torch.equal(weight, weights[name]), name
    assert ours.best_valid_score == best[0]
    assert {k: float(v) for k, v in best[1].items()} == ours.best_valid_result
    assert ours.evaluate(tiny_run.test) == {name: float(v) for name, v in result.items()}


@pytest.mark.parametrize("model", MODELS)
def test_equals_stock(model, tiny, settings_of):
    settings = settings_of(model, epochs=3, weight_decay=1e-4)
    stock = stock_run(model, settings)
    run = tiny(model, **settings)
    run.fit()
    assert_equal_runs(run, stock)


def test_equals_stock_with_clipping_and_sgd(tiny, settings_of):
    settings = settings_of(
        "BPR", learner="sgd", clip_grad_norm={"max_norm": 0.05}, learning_rate=1.0
    )
    stock = stock_run("BPR", settings)
    run = tiny("BPR", **settings)
    run.fit()
    assert_equal_runs(run, stock)


@pytest.mark.parametrize("model", ["RecVAE", "MultiVAE", "CFKG"])
def test_special_trainers_equal_stock(model, tiny, settings_of):
    settings = settings_of("CKE", epochs=2, train_batch_size=64)
    settings.pop("kg_embedding_size")
    settings |= {"train_neg_sample_args": None} if "VAE" in model else {}
    stock = stock_run(model, settings)
    run = tiny(model, **settings)
    run.fit()
    assert_equal_runs(run, stock)


@pytest.mark.parametrize("game_update", ["shared_graph", "separate_forward"])
@pytest.mark.parametrize("model", ["BPR", "LightGCN", "SASRec", "DeepFM", "CKE"])
def test_inert_adversary_equals_stock(model, game_update, tiny, settings_of):
    """An adversary that cannot move, and that the min player does not mind, changes nothing: not the
    dropout masks either (SASRec, DeepFM)."""
    settings = settings_of(model, epochs=2)
    stock = stock_run(model, settings)
    adversary = {
        "backbone": model,
        "max_learning_rate": 0,
        "penalty_weight": 0,
        "max_interval": 1,
        "max_start_epoch": 0,
        "selection_start_epoch": 0,
        "game_update": game_update,
        "check_gradients": True,
        "monitor_interval": 2,
    }
    run = tiny("EIIL", **settings, **adversary)
    run.fit()
    assert run.trainer.loop.turns_taken["max"] == run.trainer.loop.turns_taken["min"] > 0
    assert_equal_runs(run, stock)


def test_config_equals_stock(settings_of):
    """Our Config resolves RecBole's keys to RecBole's values."""
    settings = settings_of("SASRec")
    stock = RecBoleConfig("SASRec", "checkerboard", config_dict=copy.deepcopy(settings))
    ours = Config("SASRec", "checkerboard", config_dict=settings)
    different = {"checkpoint_dir", "run_dir", "model_source", "device", "gpu_id"}
    for key, value in stock.final_config_dict.items():
        if key not in different:
            assert ours[key] == value, key
