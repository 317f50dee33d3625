"""Adagrad with Clippy against the official TensorFlow code and against numbers by hand."""

import json
from pathlib import Path

import pytest
import torch
from recbole.model.general_recommender import BPR
from torch import nn

from recbole_adv import Config, checkpoint, run_recbole_adv
from recbole_adv.errors import ConfigError
from recbole_adv.game.clippy_adagrad import ClippyAdagrad, clipping_factor, load

GOLDEN = json.loads((Path(__file__).parent / "golden" / "clippy_adagrad.json").read_text())
# Those at which two recomputations of all 27 cases agreed with the official code.
EXACT = {"float32": (5e-6, 1e-7, 1e-5), "float64": (1e-12, 0.0, 1e-12)}


def tensors_of(case):
    dtype = getattr(torch, case["dtype"])
    return [nn.Parameter(torch.tensor(v["init"], dtype=dtype)) for v in case["variables"]]


def fill_gradients(parameters, gradients):
    for parameter, gradient in zip(parameters, gradients):
        if isinstance(gradient, dict):
            index = torch.tensor(gradient["indices"])[None]
            values = torch.tensor(gradient["values"], dtype=parameter.dtype)
            parameter.grad = torch.sparse_coo_tensor(
                index, values, parameter.shape, check_invariants=True
            )
        else:
            parameter.grad = torch.tensor(gradient, dtype=parameter.dtype)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_equals_the_official_code(case):
    arguments = {**case["arguments"]}
    arguments["lr"], arguments["eps"] = arguments.pop("learning_rate"), arguments.pop("epsilon")
    parameters = tensors_of(case)
    optimizer = ClippyAdagrad(parameters, **arguments)
    rtol, atol, of_factor = EXACT[case["dtype"]]
    clipped = 0
    for step in case["steps"]:
        fill_gradients(parameters, step["grads"])
        optimizer.param_groups[0]["lr"] = step["lr"]
        optimizer.step()
        for number, parameter in enumerate(parameters):
            state = optimizer.state[parameter]
            for mine, name in ((parameter.detach(), "params"), (state["sum"], "accumulators")):
                other = torch.tensor(step[name][number], dtype=parameter.dtype)
                torch.testing.assert_close(mine, other, rtol=rtol, atol=atol)
            factor = step["clipping_factors"][number]
            assert state["clipping_factor"].item() == pytest.approx(factor, rel=of_factor, abs=0)
            clipped += factor < 1
    assert clipped > 10


def test_load_by_hand():
    update = torch.tensor([[0.0, -2.0], [3.0, 0.0]])
    bound = torch.tensor([[1.0, 1.0], [6.0, 0.0]])
    assert load(update, bound).item() == 2.0
    assert load(update, bound, by_row=True).tolist() == [[2.0], [0.5]]
    assert clipping_factor(load(update, bound, by_row=True)).tolist() == [[0.5], [1.0]]


def test_load_at_the_ends():
    zero, one = torch.zeros(2), torch.ones(2)
    assert clipping_factor(load(zero, zero)).item() == 1  # nothing moves: 0/0 is no limit
    assert clipping_factor(load(one, zero)).item() == 0
    assert clipping_factor(load(torch.tensor([torch.inf, 0]), one)).item() == 0
    assert clipping_factor(load(torch.tensor([torch.nan, 0]), one)).isnan()
    assert load(torch.zeros(0, 4), torch.zeros(0, 4)).item() == 0


def one_step(w, g, **arguments):
    """Weight, accumulator and factor after one step, in float64."""
    parameter = nn.Parameter(torch.tensor(w, dtype=torch.float64))
    parameter.grad = torch.tensor(g, dtype=torch.float64)
    optimizer = ClippyAdagrad([parameter], **{"lr": 1.0, "eps": 0.0, **arguments})
    optimizer.step()
    state = optimizer.state[parameter]
    return parameter.tolist(), state["sum"].tolist(), state["clipping_factor"].item()


def test_steps_by_hand():
    """G = 4, g = 2, w = 1: the update is 2 / 2 = 1, its bound 0.5 + 0.01."""
    w, accumulator, factor = one_step([1.0], [2.0], initial_accumulator_value=4.0)
    assert (w, accumulator, factor) == ([pytest.approx(0.49)], [8.0], pytest.approx(0.51))
    # The paper's order: G = 8 first.
    w, accumulator, factor = one_step(
        [1.0], [2.0], initial_accumulator_value=4.0, use_standard_accumulator_update=True
    )
    assert factor == pytest.approx(0.51 / (2 / 8**0.5)) and w == [pytest.approx(0.49)]
    # What the accumulator sees is clipped: 4 + (0.51 * 2)^2.
    _, accumulator, _ = one_step(
        [1.0], [2.0], initial_accumulator_value=4.0, clip_accumulator_update=True
    )
    assert accumulator == [pytest.approx(4 + 1.02**2)]
    # One factor for both: the zero weight holds back its neighbour.
    w, _, factor = one_step([1.0, 0.0], [2.0, 2.0], initial_accumulator_value=4.0)
    assert factor == pytest.approx(0.01) and w == [pytest.approx(0.99), pytest.approx(-0.01)]
    # Decay is not clipped and comes before the bound: w = 0.9, bound 0.46.
    w, _, factor = one_step([1.0], [20.0], lr=0.2, weight_decay=0.5, initial_accumulator_value=4)
    assert factor == pytest.approx(0.46 / 2.0) and w == [pytest.approx(0.9 - 0.46)]


def test_a_gradient_that_is_not_finite_is_not_hidden():
    w, _, factor = one_step([1.0, 1.0], [torch.inf, 1.0])
    assert factor == 0 and w[0] != w[0] and w[1] == 1.0
    w, _, _ = one_step([1.0, 1.0], [torch.nan, 1.0])
    assert all(x != x for x in w)


def test_a_zero_gradient_moves_nothing():
    assert one_step([1.0], [0.0], absolute_threshold=0.0) == ([1.0], [0.1], 1.0)


def test_without_bounds_it_is_adagrad(tiny):
    """torch adds eps outside of the root, so not to the last bit."""
    keys = {"learner_initial_accumulator_value": 0.1, "epochs": 1, "eval_step": 0}
    plain = tiny("NeuMF", learner="adagrad", **keys).fit(saved=False)
    free = {"learner_absolute_threshold": 1e9, "learner_use_standard_accumulator_update": True}
    ours = tiny("NeuMF", learner="clippy_adagrad", **keys, **free).fit(saved=False)
    assert isinstance(ours.optimizer, ClippyAdagrad)
    for mine, other in zip(ours.model.parameters(), plain.model.parameters()):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_sparse_gradients_give_what_dense_ones_give(tiny, sparse_bpr):
    """By row, as untouched rows neither move nor bound the others where the gradient is dense."""
    keys = {"learner": "clippy_adagrad", "learning_rate": 20.0, "epochs": 1, "eval_step": 0}
    dense = tiny(BPR, **keys).fit(saved=False)
    sparse = tiny(sparse_bpr, **keys).fit(saved=False)
    assert next(sparse.model.parameters()).grad.is_sparse
    for mine, other in zip(sparse.model.parameters(), dense.model.parameters()):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)
    factors = [sparse.optimizer.state[p]["clipping_factor"] for p in sparse.model.parameters()]
    assert all(factor < 1 for factor in factors)


def test_as_the_learner_of_both_players(settings_of):
    """From the configuration to the checkpoint and back, exactly."""
    given = settings_of(
        "EIIL",
        learner="clippy_adagrad",
        max_learner_absolute_threshold=1e-3,
        learner_clip_accumulator_update=True,
        max_start_epoch=0,
        epochs=3,
    )
    whole = run_recbole_adv("EIIL", "checkerboard", config_dict=given)
    half = run_recbole_adv("EIIL", "checkerboard", config_dict={**given, "epochs": 2})
    rest = run_recbole_adv(resume=half["run_dir"], config_dict={"epochs": 3})
    files = [checkpoint.load(f"{done['run_dir']}/last.pth") for done in (whole, rest)]
    for name, weight in files[0]["state_dict"].items():
        assert weight.equal(files[1]["state_dict"][name]), name
    groups = {
        name: optimizer["state"]["param_groups"][0]
        for name, optimizer in files[0]["recbole_adv"]["optimizers"].items()
    }
    assert len(groups) == 2
    thresholds = {group["absolute_threshold"] for group in groups.values()}
    assert thresholds == {1e-2, 1e-3}
    assert all(group["clip_accumulator_update"] for group in groups.values())


@pytest.mark.parametrize(
    "keys, sentence",
    [
        ({"learner_absolute_threshold": -1.0}, "absolute_threshold must be a number >= 0, got -1"),
        (
            {
                "learner_clip_accumulator_update": True,
                "learner_use_standard_accumulator_update": True,
            },
            "makes grow first; choose one of them",
        ),
        ({"learner_absolute_treshold": 1.0}, "did you mean .*absolute_threshold"),
        ({"learner_betas": [0.9, 0.99]}, "has no argument 'betas'"),
    ],
)
def test_what_it_has_not_is_refused(keys, sentence, settings_of):
    with pytest.raises(ConfigError, match=sentence):
        given = settings_of("BPR", learner="clippy_adagrad", **keys)
        Config("BPR", "checkerboard", config_dict=given)
