"""Clipping by norm and by value, dense and sparse; gradients without their mean."""

import pytest
import torch
from recbole.model.general_recommender import BPR
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from recbole_adv import Technique
from recbole_adv.errors import ConfigError, TrainingError
from recbole_adv.technique.clip_norm import ClipNorm, clip_total_norm_
from recbole_adv.technique.gradient_centralization import centralize_

ONE = {"epochs": 1, "eval_step": 0}
SGD = {"learner": "sgd", "learning_rate": 0.5}


class See(Technique):
    """Keeps a dense copy of every gradient, by the name of its parameter."""

    concerns = "all"

    def __init__(self):
        self.seen = []

    def attach(self, trainer, player):
        self.names = {id(p): name for name, p in trainer.model.named_parameters()}

    def edit_gradients(self, turn):
        self.seen.append(
            {
                self.names[id(p)]: p.grad.to_dense().clone()
                for p in turn.parameters
                if p.grad is not None
            }
        )


class SeeAfter(See):
    """The same, behind the technique that is looked at."""


def gradients_around(tiny, model, technique, **settings):
    """Gradients of the first step before and after a technique."""
    run = tiny(model, techniques=[See, technique, SeeAfter], **{**SGD, **ONE, **settings})
    run.fit(saved=False)
    named = run.trainer.techniques["min"]
    return named["see"].seen[0], named["see_after"].seen[0], run


def parameters(*gradients):
    made = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros(torch.as_tensor(gradient).shape))
        parameter.grad = torch.tensor(gradient)
        made.append(parameter)
    return made


# --- the total norm -----------------------------------------------------------------------------


def test_total_norm_by_hand():
    """(3, 4) and 12: the norm is 13; to 6.5 it is halved."""
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])]
    assert clip_total_norm_(gradients, 6.5, 2.0).item() == 13
    torch.testing.assert_close(gradients[0], torch.tensor([1.5, 2.0]))
    torch.testing.assert_close(gradients[1], torch.tensor([[6.0]]))
    assert clip_total_norm_(gradients, 6.6, 2.0).item() == pytest.approx(6.5)
    assert gradients[1].item() == pytest.approx(6.0)  # not clipped
    assert clip_total_norm_([torch.tensor([3.0, -4.0])], 1.0, torch.inf).item() == 4


@pytest.mark.parametrize("norm_type", [1.0, 2.0, torch.inf])
def test_own_branch_equals_torch(norm_type):
    torch.manual_seed(0)
    ours = [torch.randn(5, 3), torch.randn(7)]
    theirs = parameters(*(gradient.tolist() for gradient in ours))
    total = clip_grad_norm_(theirs, 0.7, norm_type)
    assert clip_total_norm_(ours, 0.7, norm_type) == total
    for gradient, parameter in zip(ours, theirs):
        torch.testing.assert_close(gradient, parameter.grad)


def test_sparse_gradients_are_clipped_like_dense_ones(tiny, sparse_bpr):
    """Rows that occur twice in a batch count once, with their sum."""
    for technique, keys in (
        ("clip_norm", {"clip_norm_max_norm": 0.01}),
        ("clip_value", {"clip_value_max_value": 1e-4}),
        ("agc", {"agc_threshold": 0.001}),
        ("gradient_centralization", {"gradient_centralization_embeddings": True}),
    ):
        before, after, _ = gradients_around(tiny, BPR, technique, **keys)
        sparse_before, sparse_after, run = gradients_around(tiny, sparse_bpr, technique, **keys)
        assert run.model.user_embedding.weight.grad.is_sparse
        for name in after:
            torch.testing.assert_close(sparse_before[name], before[name], msg=technique)
            torch.testing.assert_close(sparse_after[name], after[name], msg=technique)
        assert any(not after[name].equal(before[name]) for name in after)


def test_the_norm_and_the_share_of_clipped_steps_are_logged(tiny):
    before, after, run = gradients_around(tiny, "BPR", "clip_norm", clip_norm_max_norm=1e-3)
    seen = run.trainer.techniques["min"]["see"].seen
    norms = [torch.cat([g.flatten() for g in step.values()]).norm().item() for step in seen]
    figures = run.trainer.report._line
    assert figures["min/clip_norm_total_norm"] == pytest.approx(sum(norms) / len(norms))
    assert figures["min/clip_norm_clipped"] == 1.0
    total = torch.cat([g.flatten() for g in after.values()]).norm()
    assert total.item() == pytest.approx(1e-3, rel=1e-2)
    _, _, loose = gradients_around(tiny, "BPR", "clip_norm", clip_norm_max_norm=1e3)
    assert loose.trainer.report._line["min/clip_norm_clipped"] == 0.0


def test_players_are_clipped_by_themselves(tiny):
    """The adversary's norm does not shorten the recommender's gradient, nor the reverse."""
    keys = {"clip_norm_max_norm": 1e-3, "max_clip_norm_max_norm": 1e-5, "max_start_epoch": 0}
    run = tiny("EIIL", techniques=["clip_norm", See], **keys, **SGD, **ONE)
    run.fit(saved=False)
    for player, bound in (("min", 1e-3), ("max", 1e-5)):
        for step in run.trainer.techniques[player]["see"].seen:
            norm = torch.cat([g.flatten() for g in step.values()]).norm().item()
            assert norm <= bound * 1.001
        assert norm == pytest.approx(bound, rel=0.2)


def test_a_gradient_that_is_not_finite_can_stop_the_run():
    (parameter,) = parameters([1.0, torch.nan])
    technique = ClipNorm(max_norm=1.0, error_if_nonfinite=True)
    with pytest.raises(TrainingError, match="total norm .* is non-finite"):
        technique._clip([parameter])
    parameter.grad = parameter.grad.to_sparse()
    with pytest.raises(TrainingError, match="the total norm of the gradients is nan"):
        technique._clip([parameter])


# --- by value -----------------------------------------------------------------------------------


def test_values_are_clamped_as_torch_does(tiny):
    before, after, run = gradients_around(tiny, "NeuMF", "clip_value", clip_value_max_value=1e-3)
    copies = parameters(*(gradient.tolist() for gradient in before.values()))
    clip_grad_value_(copies, 1e-3)
    assert [g.equal(copy.grad) for g, copy in zip(after.values(), copies)] == [True] * len(after)
    seen = run.trainer.techniques["min"]["see"].seen
    largest = [max(g.abs().max().item() for g in step.values()) for step in seen]
    figures = run.trainer.report._line
    assert figures["min/clip_value_largest"] == pytest.approx(sum(largest) / len(largest))
    share = sum(value > 1e-3 for value in largest) / len(largest)
    assert figures["min/clip_value_clipped"] == pytest.approx(share) and share > 0


# --- without the mean ---------------------------------------------------------------------------


def test_centralization_by_hand():
    gradient = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    assert centralize_(gradient).tolist() == [[-2, -1, 3], [-1, -1, 2]]
    kernel = torch.arange(8.0).reshape(2, 2, 1, 2)  # outputs 0..3 and 4..7: means 1.5 and 5.5
    torch.testing.assert_close(
        centralize_(kernel.clone()).flatten(1), torch.tensor([[-1.5, -0.5, 0.5, 1.5]] * 2)
    )


def test_matrices_are_centred_tables_and_vectors_are_not(tiny):
    before, after, _ = gradients_around(tiny, "NeuMF", "gradient_centralization")
    for name, gradient in after.items():
        if "embedding" in name or name.endswith("bias"):
            assert gradient.equal(before[name]), name
        else:
            torch.testing.assert_close(gradient.mean(1), torch.zeros(len(gradient)))
            assert not gradient.equal(before[name])


def test_names_can_be_excluded(tiny):
    keys = {"gradient_centralization_exclude": "^mlp_layers"}
    before, after, _ = gradients_around(tiny, "NeuMF", "gradient_centralization", **keys)
    changed = {name for name in after if not after[name].equal(before[name])}
    assert changed == {"predict_layer.weight"}


@pytest.mark.parametrize(
    "technique, keys, sentence",
    [
        (
            "gradient_centralization",
            {},
            "has nothing to act on in BPR, player 'min': all of user_embedding.weight, "
            "item_embedding.weight are excluded; write gradient_centralization_embeddings: True",
        ),
        ("agc", {"agc_exclude": "["}, "agc_exclude must be a regular expression, got '\\['"),
        ("agc", {"agc_exclude": "bias"}, "'bias' matches no parameter of BPR; they are user_emb"),
        ("agc", {"agc_exclude": "weight"}, "agc has nothing to act on in BPR"),
        ("agc", {"agc_exclude_head": True}, "finds no nn.Linear among the parameters of player"),
        ("gradient_noise", {"gradient_noise_exclude": "x"}, "'x' matches no parameter"),
        ("clippy", {}, "clippy has nothing to act on in BPR.* write clippy_embeddings: rows"),
    ],
)
def test_nothing_to_act_on_is_refused(technique, keys, sentence, tiny):
    with pytest.raises(ConfigError, match=sentence):
        tiny("BPR", techniques=[technique], **keys, **ONE).fit(saved=False)
