"""The losses of single rows, read out of a model that only gives their mean."""

import pytest
import torch
from recbole.model.general_recommender import BPR
from torch import nn
from torch.nn import functional as F

from recbole_adv.errors import ConfigError

SETTINGS = {"n_environments": 2, "epochs": 1, "eval_step": 0}


def batch_of(run):
    """A training batch with its row index, and the model ready to train on it."""
    run.model.train()
    return run.batch()


def test_three_negatives_of_a_pair_are_one_row(tiny):
    sampling = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 3}}
    run = tiny("GroupDRO", **{**SETTINGS, **sampling})
    batch = batch_of(run)
    net, n = run.model.backbone, len(batch["item_id"]) // 3
    with torch.no_grad():
        _, rows = run.model.rows(batch)
        user = net.user_embedding.weight[batch["user_id"][:n]]
        positive = (user * net.item_embedding.weight[batch["item_id"][:n]]).sum(dim=1)
        negatives = net.item_embedding.weight[batch["neg_item_id"].reshape(3, n)]
        difference = positive - (user * negatives).sum(dim=2)  # [3, n]
    assert rows.loss.shape == rows.gradient.shape == rows.index.shape == (n,)
    torch.testing.assert_close(rows.loss, F.softplus(-difference).mean(dim=0))
    slope = -(difference * torch.sigmoid(-difference)).mean(dim=0)
    torch.testing.assert_close(rows.gradient, slope, rtol=1e-4, atol=1e-8)
    assert torch.equal(rows.index, batch["inter_idx"][:n])
    assert rows.loss.std() > 0


def test_a_positive_and_its_two_negatives_are_one_row(tiny):
    sampling = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 2}}
    settings = {**SETTINGS, "dropout_prob": 0.0, **sampling}
    run = tiny("GroupDRO", backbone="NeuMF", **settings)
    batch = batch_of(run)
    n = len(batch["item_id"]) // 3
    with torch.no_grad():
        _, rows = run.model.rows(batch)
        logit = run.model.backbone.forward(batch["user_id"], batch["item_id"]).reshape(3, n)
    expected = (F.softplus(-logit[0]) + F.softplus(logit[1]) + F.softplus(logit[2])) / 3
    torch.testing.assert_close(rows.loss, expected)
    assert torch.equal(rows.index, batch["inter_idx"][:n])


class Changed(BPR):
    """A backbone with a loss module of its own choice over pairs of rows."""

    def logits(self, interaction):
        user = self.user_embedding(interaction[self.USER_ID])
        return (user * self.item_embedding(interaction[self.ITEM_ID])).sum(dim=-1)


class WeightedBCE(Changed):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))

    def calculate_loss(self, interaction):
        logit = self.logits(interaction)
        return self.loss(logit, torch.ones_like(logit))


class WeighsItself(Changed):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.loss = nn.BCEWithLogitsLoss(reduction="none")

    def calculate_loss(self, interaction):
        logit = self.logits(interaction)
        return (self.loss(logit, torch.ones_like(logit)) * logit.detach().exp()).mean()


class Smoothed(Changed):
    """At the start all scores are alike, and smoothing does not show in the value."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.2)

    def calculate_loss(self, interaction):
        user = self.user_embedding(interaction[self.USER_ID])
        return self.loss(user @ self.item_embedding.weight.t(), interaction[self.ITEM_ID])


class Doubled(BPR):
    def calculate_loss(self, interaction):
        return 2 * super().calculate_loss(interaction)


class LeavesOut(BPR):
    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction).detach() + self.user_embedding.weight.sum()


class Silent(Changed):
    """Has a loss module and does not call it."""

    def calculate_loss(self, interaction):
        return F.softplus(-self.logits(interaction)).mean()


@pytest.mark.parametrize("model", ["GroupDRO", "EIIL"])
@pytest.mark.parametrize(
    "backbone, words",
    [
        (WeightedBCE, "WeightedBCE weighs or changes its BCEWithLogitsLoss"),
        (WeighsItself, "WeighsItself has its BCEWithLogitsLoss return"),
        (Smoothed, "Smoothed weighs or changes its CrossEntropyLoss"),
        (Doubled, "Doubled multiplies by 2 the value of its BPRLoss"),
        (LeavesOut, "LeavesOut leaves out the value of its BPRLoss"),
        (Silent, "Silent called no loss module with the"),
    ],
)
def test_a_backbone_that_would_be_misread_is_refused(backbone, words, model, tiny):
    run = tiny(model, backbone=backbone.__name__, **SETTINGS)
    with pytest.raises(ConfigError, match=f"backbone {words}.*choose another backbone"):
        run.fit(saved=False)


@pytest.mark.parametrize(
    "backbone, words",
    [
        ("EASE", "backbone EASE.*choose a backbone such as BPR"),
        ("MultiVAE", "backbone MultiVAE has none of the loss modules.*such as BPR"),
        ("Pop", "backbone Pop.*choose a backbone such as BPR"),
        ("IRM", "backbone must be a model that scores by itself, got IRM; write BPR"),
        ("BRP", "backbone 'BRP' cannot be used: there is no model called 'BRP'; did you mean BPR"),
    ],
)
def test_a_backbone_without_rows_is_refused_at_construction(backbone, words, tiny):
    sampling = {"train_neg_sample_args": None} if backbone == "MultiVAE" else {}
    with pytest.raises(ConfigError, match=words):
        tiny("EIIL", backbone=backbone, **{**SETTINGS, **sampling})
