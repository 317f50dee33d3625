"""AWP: the authors' step by an independent computation, worked numbers, weights of two gradients."""

import copy

import pytest
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import nn

from recbole_adv.errors import ConfigError

ONE_STEP = {"epochs": 1, "train_batch_size": 10**6, "eval_step": 0}
SGD = {"learner": "sgd", "learning_rate": 1.0}


class Toy(GeneralRecommender):
    """Half the squared length of a matrix, a table and a bias, whose gradients are they themselves."""

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.table = nn.Embedding.from_pretrained(torch.tensor([[6.0, 8.0]]), freeze=False)
        self.matrix = nn.Parameter(torch.tensor([[3.0], [4.0]]))
        self.bias = nn.Parameter(torch.tensor([2.0]))
        self.seen = []

    def values(self):
        return [p.flatten().tolist() for p in (self.table.weight, self.matrix, self.bias)]

    def calculate_loss(self, interaction):
        self.seen.append(self.values())
        return sum(p.square().sum() for p in self.parameters()) / 2


@pytest.mark.parametrize(
    "settings, there",
    [
        # e = gamma ||w|| g / ||g|| = 0.1 w, for matrices only
        ({}, [[6.6, 8.8], [3.3, 4.4], [2.0]]),
        ({"awp_scope": "embeddings"}, [[6.6, 8.8], [3.0, 4.0], [2.0]]),
        ({"awp_scope": "dense"}, [[6.0, 8.0], [3.3, 4.4], [2.0]]),
    ],
)
def test_each_matrix_moves_in_proportion_to_its_norm(tiny, settings, there):
    run = tiny(Toy, techniques=["awp"], awp_gamma=0.1, **settings, **SGD, **ONE_STEP)
    run.fit(saved=False)
    start, second = run.model.seen
    for values, expected in zip(second, there):
        assert values == pytest.approx(expected)
    for values, old, gradient in zip(run.model.values(), start, there):  # w - (w + e)
        assert values == pytest.approx([w - g for w, g in zip(old, gradient)], abs=1e-6)


def test_the_two_gradients_are_weighed(tiny):
    """w - rate (w + weight (w + e)), rate 0.5, weight 0.4, e = 0.1 w: w (1 - 0.5 (1 + 0.44))."""
    given = {"awp_gamma": 0.1, "awp_weight": 0.4, "awp_keep_clean": True}
    sgd = {"learner": "sgd", "learning_rate": 0.5}
    run = tiny(Toy, techniques=["awp"], **given, **sgd, **ONE_STEP)
    run.fit(saved=False)
    assert run.model.matrix.flatten().tolist() == pytest.approx([3 * 0.28, 4 * 0.28])
    assert run.model.bias.item() == pytest.approx(2 * (1 - 0.5 * 1.4))
    alone = tiny(Toy, techniques=["awp"], **{**given, "awp_keep_clean": False}, **sgd, **ONE_STEP)
    alone.fit(saved=False)
    assert alone.model.matrix.flatten().tolist() == pytest.approx([3 * 0.78, 4 * 0.78])


@pytest.mark.parametrize("model", ["LightGCN", "NeuMF"])
def test_step_of_the_official_code(tiny, model):
    """A copy of the model takes an SGD step uphill; its difference, scaled to gamma ||w||, is added;
    the gradient is taken there (csdongxian/AWP, utils_awp.py).

    The rate of that step, officially 0.01, drops out; here 10 keeps the digits of the difference.
    """
    gamma = 0.05
    given = {"awp_gamma": gamma, "dropout_prob": 0.0}
    run = tiny(model, techniques=["awp"], **given, **SGD, **ONE_STEP)
    batch = run.batch()
    run.model.train()
    start = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    proxy = copy.deepcopy(run.model)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=10.0)
    optimizer.zero_grad()
    (-proxy.calculate_loss(batch)).backward()
    optimizer.step()
    with torch.no_grad():
        for name, p in proxy.named_parameters():
            difference, old = p - start[name], start[name]
            if p.dim() > 1:
                p.copy_(old + gamma * old.norm() / (difference.norm() + 1e-20) * difference)
            else:
                p.copy_(old)
    proxy.zero_grad()
    proxy.calculate_loss(batch).backward()
    run.trainer.loop.engine.run(run.trainer._turns()["min"], batch)
    for (name, mine), there in zip(run.model.named_parameters(), proxy.parameters()):
        step = start[name] - mine.detach()
        torch.testing.assert_close(step, there.grad, rtol=1e-4, atol=1e-6)


def test_what_has_no_matrix_is_refused(tiny):
    class Vector(Toy):
        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            self.bias = nn.Parameter(torch.ones(2))
            self.table.weight.requires_grad_(False)
            self.matrix.requires_grad_(False)

    with pytest.raises(ConfigError, match="awp has nothing to act on in Vector.*bias are excluded"):
        tiny(Vector, techniques=["awp"]).fit(saved=False)
