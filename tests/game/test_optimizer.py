"""Optimizers from RecBole's keys, for each player."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn, optim

from recbole_adv.errors import ConfigError
from recbole_adv.game.optimizer import (
    build_optimizer,
    check_learner,
    fused_argument,
    optimizer_for,
    optimizer_of,
)
from recbole_adv.game.player import Player

BASE = {"learner": "adam", "learning_rate": 0.001, "weight_decay": 0.0, "clip_grad_norm": None}


def weights():
    return [nn.Parameter(torch.ones(2))]


def test_max_keys_fall_back_to_the_plain_ones():
    config = {**BASE, "weight_decay": 0.1, "max_learner": None, "max_learning_rate": 0.5}
    high = optimizer_for(config, "max", weights())
    assert type(high) is optim.Adam
    assert (high.defaults["lr"], high.defaults["weight_decay"]) == (0.5, 0.1)
    assert optimizer_for(config, "min", weights()).defaults["lr"] == 0.001


def test_zero_is_a_value_not_a_gap():
    config = {**BASE, "weight_decay": 0.1, "max_learning_rate": 0, "max_weight_decay": 0.0}
    high = optimizer_for(config, "max", weights())
    assert (high.defaults["lr"], high.defaults["weight_decay"]) == (0, 0)


def test_arguments_of_the_optimizer_are_keys():
    config = {**BASE, "learner_betas": [0.5, 0.9], "learner_eps": 1e-6}
    assert optimizer_for(config, "min", weights()).defaults["betas"] == (0.5, 0.9)
    critic = {**config, "critic_learner": "rmsprop", "critic_learner_momentum": 0.3}
    found = optimizer_for(critic, "critic", weights())
    # eps of the plain key fits RMSprop too, betas do not and are left out.
    assert type(found) is optim.RMSprop
    assert (found.defaults["momentum"], found.defaults["eps"]) == (0.3, 1e-6)
    adagrad = {**BASE, "learner": "adagrad", "learner_initial_accumulator_value": 0.1}
    assert optimizer_for(adagrad, "min", weights()).defaults["initial_accumulator_value"] == 0.1


@pytest.mark.parametrize(
    "change, words",
    [
        ({"learner": "adma"}, "did you mean adam"),
        ({"learner": 3}, "learner must be one of"),
        ({"learner": "sgd", "learner_betas": [0.9, 0.99]}, "no argument 'betas'"),
        ({"learner_betas": [0.9, 2.0]}, "Invalid beta"),
        ({"learner": "sparse_adam", "weight_decay": 0.1}, "has no weight decay"),
        ({"clip_grad_norm": {"norm": 1}}, "max_norm"),
        ({"clip_grad_norm": {"norm_type": 2}}, "max_norm"),
    ],
)
def test_what_cannot_be_built_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        check_learner({**BASE, **change}, "min")


def test_unknown_learner_never_becomes_adam():
    with pytest.raises(ConfigError, match="sdg"):
        build_optimizer(weights(), "sdg", 0.1, 0.0)


@pytest.mark.parametrize("keys", [{"learner_fused": True}, {"learner_foreach": True}])
@pytest.mark.parametrize("model", ["BPR", "EIIL"])
def test_one_kernel_or_one_call_moves_as_the_loop_does(model, keys, tiny):
    """Within rounding; the argument reaches the first player's optimizer."""
    game = {"max_start_epoch": 0, "penalty_start": 0} if model == "EIIL" else {}
    settings = {"epochs": 1, "eval_step": 0, **game}
    plain = tiny(model, **settings)
    plain.fit(saved=False)
    run = tiny(model, **settings, **keys)
    run.fit(saved=False)
    (name,) = keys
    assert run.trainer.optimizer.param_groups[0][name.removeprefix("learner_")] is True
    for one, other in zip(plain.model.parameters(), run.model.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_both_at_once_are_one_sentence(tiny):
    with pytest.raises(ConfigError, match="cannot be built: `fused` and `foreach` cannot be"):
        tiny("BPR", learner_fused=True, learner_foreach=True)


def test_momentum_begins_at_nothing_where_a_scaler_skips_the_first_step():
    """torch's fused SGD keeps a buffer then that was never written; a step of 1 from 0 is -lr."""
    weight = nn.Parameter(torch.zeros(1000))
    player = Player("max", (weight,), None)
    config = {**BASE, "learner": "sgd", "learning_rate": 0.5, "learner_momentum": 0.9}
    scaler = torch.amp.GradScaler("cpu")
    optimizer = optimizer_of(config, player, first=False)
    for gradient in (torch.inf, 1.0):
        weight.grad = torch.full_like(weight, gradient) * scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
    assert weight.tolist() == [-0.5] * 1000


def test_one_kernel_of_sgd_with_momentum_is_refused_under_a_scaler():
    config = {**BASE, "learner": "sgd", "learner_momentum": 0.9, "learner_fused": True}
    check_learner(config, "min")
    with pytest.raises(ConfigError, match="learner_momentum: 0.9 .* write learner_fused: False"):
        check_learner({**config, "enable_scaler": True}, "min")


@pytest.mark.parametrize("learner, fits", [("adam", True), ("sgd", True), ("adagrad", False)])
def test_one_kernel_on_a_gpu_where_every_torch_has_it(learner, fits):
    on_gpu = SimpleNamespace(device=torch.device("cuda"), is_floating_point=lambda: True)
    assert fused_argument(learner, [on_gpu]) == ({"fused": True} if fits else {})
    assert fused_argument(learner, weights()) == {"fused": True}
    assert fused_argument("rmsprop", weights()) == {}
