"""Two wrong ports of attacks, by what would show them (adversarial models 1.4, 2.4 and 8.5).

Cornac's AMR adds the gradient as it is: no norm, no epsilon. ASASRec perturbs the rows of the targets
alone, so that the items of the sequences stay where they are.
"""

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import BPR
from torch import nn

from recbole_adv.technique.attack import ball

APR = {"preset": "apr", "start_epoch": 0}


class VisualBPR(BPR):
    """AMR's model: an item is its own vector plus a projection of its features."""

    scale = 1.0

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.feature = nn.Embedding(self.n_items, 5)
        self.projection = nn.Linear(5, self.embedding_size, bias=False)

    def get_item_embedding(self, item):
        return self.item_embedding(item) + self.projection(self.feature(item))

    def calculate_loss(self, interaction):
        return self.scale * super().calculate_loss(interaction)


class LouderVisualBPR(VisualBPR):
    """The same loss, a thousand times as large."""

    scale = 1000.0


TRIPLES = Interaction(
    {
        "user_id": torch.tensor([1, 4]),
        "item_id": torch.tensor([2, 5]),
        "neg_item_id": torch.tensor([3, 6]),
    }
)


def moved_features(attacked, model, epsilon, weights=None):
    run = attacked(model, {**APR, "targets": ["^feature"], "epsilon": epsilon}, double=True)
    if weights is not None:
        run.model.load_state_dict(weights)
    run.gradients(TRIPLES)
    return run, run.deltas()["feature.weight"]


def assert_amr(attacked):
    """delta_i = -eps W^T p_u / |.|, delta_j = +eps W^T p_u / |.|; nothing else moves."""
    run, delta = moved_features(attacked, VisualBPR, 0.1)
    assert list(run.tables()) == ["feature.weight"]
    pull = run.model.user_embedding.weight[TRIPLES["user_id"]] @ run.model.projection.weight
    pull = nn.functional.normalize(pull).detach()
    expected = torch.zeros_like(delta)
    expected[TRIPLES["item_id"]], expected[TRIPLES["neg_item_id"]] = -0.1 * pull, 0.1 * pull
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-9)
    weights = run.model.state_dict()
    for model, epsilon in ((VisualBPR, 0.3), (LouderVisualBPR, 0.1)):
        _, other = moved_features(attacked, model, epsilon, weights)
        torch.testing.assert_close(other, delta * (epsilon / 0.1), rtol=0, atol=1e-9)


def test_amr_moves_features_by_epsilon_whatever_the_size_of_the_loss(attacked):
    assert_amr(attacked)


def test_amr_without_norm_and_epsilon_is_noticed(attacked, monkeypatch):
    monkeypatch.setattr(ball, "directions", lambda gradients, *_: [g.clone() for g in gradients])
    with pytest.raises(AssertionError):
        assert_amr(attacked)


def assert_sequences_move(attacked):
    """Every item that a batch reads moves by epsilon: in a sequence, as a target, as a negative."""
    pairwise = {"loss_type": "BPR", "train_batch_size": 8, "hidden_dropout_prob": 0.0}
    pairwise |= {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
    run = attacked("SASRec", {**APR, "epsilon": 0.2}, **pairwise, attn_dropout_prob=0.0)
    batch = run.batch
    run.gradients(batch)
    norms = run.deltas()["item_embedding.weight"].norm(dim=1)
    read = batch["item_id_list"].flatten().tolist()
    targets = set(batch["item_id"].tolist()) | set(batch["neg_item_id"].tolist())
    history = set(read) - targets - {0}
    assert len(history) > 3
    for rows in (history, targets):
        found = norms[sorted(rows)]
        torch.testing.assert_close(found, torch.full_like(found, 0.2), rtol=0, atol=1e-5)
    assert norms.count_nonzero() == len(history | targets)


def test_the_items_of_sequences_are_perturbed_too(attacked):
    assert_sequences_move(attacked)


def test_targets_alone_as_in_asasrec_are_noticed(attacked, monkeypatch):
    real = ball.directions

    def of_targets(gradients, *arguments):
        moves = real(gradients, *arguments)
        moves[0][::2] = 0.0  # rows that are no targets stay
        return moves

    monkeypatch.setattr(ball, "directions", of_targets)
    with pytest.raises(AssertionError):
        assert_sequences_move(attacked)
