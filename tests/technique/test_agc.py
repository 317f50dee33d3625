"""Adaptive gradient clipping against a loop over units, timm's formula and numbers by hand."""

import pytest
import torch

from recbole_adv import Technique
from recbole_adv.technique.agc import agc_factor, unit_norm


def timms(weight, gradient, clip_factor=0.01, eps=1e-3):
    """timm.utils.agc.adaptive_clip_grad for one parameter, written out from its formula."""

    def unitwise(x):
        if x.ndim <= 1:
            return x.norm(2.0)
        return x.norm(2.0, dim=tuple(range(1, x.ndim)), keepdim=True)

    max_norm = unitwise(weight).clamp_(min=eps).mul_(clip_factor)
    grad_norm = unitwise(gradient)
    clipped = gradient * (max_norm / grad_norm.clamp(min=1e-6))
    return torch.where(grad_norm < max_norm, gradient, clipped)


def test_by_hand():
    """Norms of weights 5 and 0 (counted as 0.1), lambda 0.2: bounds 1 and 0.02."""
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    gradient = torch.tensor([[0.0, 2.0], [0.0, 0.01]])
    factor = agc_factor(weight, gradient, threshold=0.2, eps=0.1)
    torch.testing.assert_close(factor, torch.tensor([[0.5], [1.0]]))
    torch.testing.assert_close(
        agc_factor(weight, 10 * gradient, 0.2, 0.1), torch.tensor([[0.05], [0.2]])
    )


@pytest.mark.parametrize("shape", [(), (7,), (6, 5), (4, 3, 2), (4, 3, 2, 2)])
def test_equals_timm_and_a_loop(shape):
    torch.manual_seed(0)
    for scale in (1e-4, 1e-2, 1.0):
        weight, gradient = torch.randn(shape), torch.randn(shape) * scale
        mine = gradient * agc_factor(weight, gradient, 0.01, 1e-3)
        torch.testing.assert_close(mine, timms(weight, gradient))
        if len(shape) > 1:
            for row in range(shape[0]):
                bound = 0.01 * max(weight[row].norm().item(), 1e-3)
                norm = gradient[row].norm().item()
                expected = gradient[row] * (bound / norm if norm > bound else 1)
                torch.testing.assert_close(mine[row], expected)
        else:
            assert unit_norm(weight).dim() == 0


def test_zero_and_nan():
    zero = torch.zeros(2, 2)
    assert agc_factor(zero, zero, 0.01, 1e-3).tolist() == [[1], [1]]
    nan = torch.tensor([[torch.nan, 0.0], [1.0, 0.0]])
    assert agc_factor(torch.ones(2, 2), nan, 0.01, 1e-3)[0].item() == 1  # the nan is not hidden


class Compare(Technique):
    """Keeps gradients before and after the other technique, which is named between."""

    def __init__(self, *, after=False):
        self.first: dict = {}

    def edit_gradients(self, turn):
        if not self.first:
            self.first = {id(p): p.grad.clone() for p in turn.parameters if p.grad is not None}


class CompareAfter(Compare):
    """The one behind."""


@pytest.mark.parametrize(
    "keys, untouched",
    [
        ({}, set()),
        ({"agc_exclude_head": True}, {"predict_layer.weight", "predict_layer.bias"}),
        ({"agc_exclude": "embedding"}, {"embedding"}),
        ({"agc_exclude_vectors": True}, {"bias"}),
    ],
)
def test_who_is_clipped(keys, untouched, tiny):
    """Everything is, at a threshold as small as this, but what is excluded and what is 0."""
    keys = {"agc_threshold": 1e-6, **keys, "epochs": 1, "eval_step": 0}
    run = tiny("NeuMF", techniques=[Compare, "agc", CompareAfter], **keys)
    run.fit(saved=False)
    named = run.trainer.techniques["min"]
    for name, parameter in run.model.named_parameters():
        before = named["compare"].first[id(parameter)]
        after = named["compare_after"].first[id(parameter)]
        excluded = any(word in name for word in untouched)
        assert before.equal(after) == (excluded or not before.any()), name
    assert 0 < run.trainer.report._line["min/agc_clipped"] <= 1
