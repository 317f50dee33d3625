"""Virtual adversarial training: divergences by hand, the direction, the gradient."""

import math

import pytest
import torch
from recbole.model.general_recommender import BPR, NeuMF
from torch.nn.functional import normalize

from recbole_adv.errors import ConfigError
from recbole_adv.technique.attack.consistency import bernoulli_divergence, softmax_divergence
from recbole_adv.technique.attack.functional import loss_at

PAIRS = {"distribution": "uniform", "sample_num": 1}


def test_bernoulli_by_hand():
    """p = 1/2 to q = 3/4, and nothing moved: (log(1/2 / 3/4) / 2 + log(1/2 / 1/4) / 2 + 0) / 2."""
    before, after = torch.tensor([0.0, 2.0]), torch.tensor([math.log(3.0), 2.0])
    expected = (0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2
    assert bernoulli_divergence(before, after).item() == pytest.approx(expected, rel=1e-6)
    large = torch.tensor([200.0, -200.0])
    assert bernoulli_divergence(large, -large).item() == pytest.approx(200.0)


def test_softmax_by_hand():
    before = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])
    after = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    expected = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert softmax_divergence(before, after).item() == pytest.approx(expected, rel=1e-6)


CASES = {
    "BPR": {},
    "LightGCN": {},
    "NeuMF": {"dropout_prob": 0.3},
    "DeepFM": {"dropout_prob": 0.3},
    "SASRec": {"hidden_dropout_prob": 0.3},
}


@pytest.mark.parametrize("model", CASES)
def test_gradient_and_direction(model, attacked):
    settings = {"preset": "vat", "epsilon": 0.5, "weight": 2.0}
    run = attacked(model, settings, **CASES[model])
    clean = run.plain()
    say = run.attack.predictions
    before = run.again(lambda: say(run.batch)).detach()

    def divergence(batch):
        return say.divergence(before, say(batch))

    def at(deltas):
        return run.again(lambda: loss_at(run.model, deltas, divergence, run.batch)).item()

    put, gradients = run.puts()
    place = run.audited(run.batch)
    deltas = {}
    for table, rows, delta in zip(place.tables, place.rows, put[-1]):
        whole = torch.zeros_like(table.parameter.detach())
        deltas[table.name] = delta if rows is None else whole.index_copy(0, rows, delta)
    # The gradient of the step, by autograd; the divergence has none at the weights themselves.
    extra = run.plain(loss=lambda batch: loss_at(run.model, deltas, divergence, batch))
    assert set(deltas) <= set(extra)
    for name, gradient in gradients.items():
        expected = clean[name] + 2.0 * extra[name] if name in extra else clean[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)
        assert name not in deltas or (gradient - clean[name]).norm() > 1e-3 * clean[name].norm()
    assert at({name: 0 * delta for name, delta in deltas.items()}) == pytest.approx(0, abs=1e-6)
    # One power iteration finds more than chance does.
    found = at(deltas)
    assert run.attack.figures()["loss"] == pytest.approx(found, rel=1e-3)
    torch.manual_seed(0)
    for _ in range(10):
        lengths = {name: delta.norm(dim=1, keepdim=True) for name, delta in deltas.items()}
        chance = {n: k * normalize(torch.randn_like(deltas[n]), dim=1) for n, k in lengths.items()}
        assert at(chance) < found


def test_more_power_iterations_do_not_make_it_smaller(attacked):
    found = []
    for steps in (1, 4):
        run = attacked("BPR", {"preset": "vat", "epsilon": 0.3, "steps": steps})
        run.gradients()
        found.append(run.attack.figures()["loss"])
    assert found[1] > 0.95 * found[0] > 0


class Raw(NeuMF):
    """Says scores, not probabilities, of single items."""

    def predict(self, interaction):
        return 5 + super().predict(interaction)


class Mute(BPR):
    """Cannot predict."""

    def predict(self, interaction):
        raise NotImplementedError("not here")


class Detached(BPR):
    """Predicts without a gradient."""

    def predict(self, interaction):
        return super().predict(interaction).detach()


@pytest.mark.parametrize(
    "model, sentence",
    [
        (Raw, r"vat takes Raw.predict for a probability, and it is not in \[0, 1\]"),
        (
            Mute,
            r"predictions of Mute on training batches, which fail \(NotImplementedError: not he",
        ),
        (Detached, "vat follows the gradient of Detached's predictions, which have none"),
    ],
)
def test_predictions_that_cannot_be_used_are_refused(model, sentence, attacked):
    run = attacked(model, {"preset": "vat"})
    with pytest.raises(ConfigError, match=sentence):
        run.gradients()


def test_embeddings_that_a_model_keeps_do_not_hide_the_perturbation(attacked):
    """SGL's predict ranks from ``restore_user_e`` as long as it is there."""
    run = attacked("SGL", {"preset": "vat", "epsilon": 0.5}, type="ED")
    run.model.full_sort_predict(run.batch)
    assert run.model.restore_user_e is not None
    run.gradients()
    assert run.attack.figures()["loss"] > 0
    assert run.model.restore_user_e is None
