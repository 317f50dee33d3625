"""Noise on gradients: its variance, its own stream of random numbers."""

import math

import pytest
import torch

from recbole_adv import Technique
from recbole_adv.technique.gradient_noise import noise_deviation

ONE = {"epochs": 1, "eval_step": 0}


class See(Technique):
    """Keeps a copy of every gradient of every step."""

    def __init__(self):
        self.seen = []

    def edit_gradients(self, turn):
        self.seen.append([p.grad.to_dense().clone() for p in turn.parameters])


class SeeAfter(See):
    """The same, behind the noise."""


def noise_of(tiny, model="NeuMF", **keys):
    """The noise of each step on each parameter, the gradients before it, and the run."""
    run = tiny(model, techniques=[See, "gradient_noise", SeeAfter], **{**ONE, **keys})
    run.fit(saved=False)
    named = run.trainer.techniques["min"]
    before, after = named["see"].seen, named["see_after"].seen
    noise = [[y - x for x, y in zip(*step)] for step in zip(before, after)]
    return noise, before, run


def test_deviation_by_hand():
    assert noise_deviation(0, 0.09, 0.55) == pytest.approx(0.3)
    assert noise_deviation(3, 1.0, 1.0) == pytest.approx(0.5)
    assert noise_deviation(99, 0.3, 0.55) == pytest.approx(math.sqrt(0.3 * 100**-0.55))


def test_variance_falls_as_in_the_paper(tiny):
    """Of the numbers of dense layers, at large eta: within five standard errors."""
    keys = {"gradient_noise_eta": 4.0, "mlp_hidden_size": [64, 16]}
    noise, _, run = noise_of(tiny, **keys)
    tables = [name for name, _ in run.model.named_parameters()].index(
        "mlp_layers.mlp_layers.1.weight"
    )
    assert len(noise) >= 4
    for step, of_step in enumerate(noise):
        numbers = torch.cat([n.flatten() for n in of_step[tables:]]) / noise_deviation(
            step, 4, 0.55
        )
        n = numbers.numel()
        assert n > 1600
        assert abs(numbers.mean().item()) < 5 / math.sqrt(n)
        assert abs(numbers.var().item() - 1) < 5 * math.sqrt(2 / n)
    last = run.trainer.report._line["min/gradient_noise_deviation"]
    assert last == pytest.approx(noise_deviation(len(noise) - 1, 4, 0.55))


@pytest.mark.parametrize("sparse", [False, True])
def test_tables_get_noise_where_they_have_a_gradient(sparse, tiny, sparse_bpr):
    keys = {"gradient_noise_embeddings": True, "learner": "sgd", "train_batch_size": 16}
    model = sparse_bpr if sparse else "BPR"
    noise, before, _ = noise_of(tiny, model, gradient_noise_eta=1.0, **keys)
    for of_step, gradients in zip(noise, before):
        for one, gradient in zip(of_step, gradients):
            touched = (gradient != 0).any(1)
            assert (one[touched] != 0).all() and not one[~touched].any()
            assert 0 < touched.sum() < len(touched)


def test_excluded_parameters_get_none(tiny):
    noise, _, run = noise_of(tiny, gradient_noise_exclude="bias")
    names = [name for name, _ in run.model.named_parameters()]
    quiet = {name for name, one in zip(names, noise[0]) if not one.any()}
    assert quiet == {name for name in names if "bias" in name or "embedding" in name}


def test_the_rest_of_the_run_draws_the_same_numbers(tiny):
    """With dropout and sampled negatives: at eta 0 nothing differs to the last bit."""
    keys = {"dropout_prob": 0.3, "epochs": 2}
    plain = tiny("NeuMF", **keys).fit(saved=False)
    quiet = tiny("NeuMF", techniques=["gradient_noise"], gradient_noise_eta=0.0, **keys)
    quiet.fit(saved=False)
    assert plain.train_loss_dict == quiet.trainer.train_loss_dict
    loud = tiny("NeuMF", techniques=["gradient_noise"], **keys)
    state = torch.get_rng_state()
    loud.trainer._attach_techniques()
    assert torch.get_rng_state().equal(state)
    assert loud.fit(saved=False).train_loss_dict != plain.train_loss_dict


def test_players_have_different_noise(tiny):
    both = {"techniques": ["gradient_noise"], "max_techniques": ["gradient_noise"]}
    keys = {"gradient_noise_embeddings": True, "max_start_epoch": 0}
    run = tiny("EIIL", **keys, **both, **ONE)
    run.fit(saved=False)
    states = [run.trainer.techniques[p]["gradient_noise"].state_dict() for p in ("min", "max")]
    first = []
    for player in ("min", "max"):
        own = run.trainer.techniques[player]["gradient_noise"]
        own.attach(run.trainer, next(p for p in run.trainer.players if p.name == player))
        first.append(torch.empty(8).normal_(generator=own.generator))
    assert not first[0].equal(first[1])
    assert not states[0]["generator"].equal(states[1]["generator"])
