"""Attacks on embedding tables, against directions and norms worked by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.general_recommender import BPR
from recbole.utils import InputType

from recbole_adv.model_state import random_state
from recbole_adv.robustness.tables import TableAttack, table_points

RANKED = {"topk": [5], "metrics": ["NDCG"], "valid_metric": "NDCG@5"}


class Linear(GeneralRecommender):
    """loss = mean of (3 e_u0 + 4 e_u1), so that each user's row has the gradient n_u / N (3, 4)."""

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.user_embedding = torch.nn.Embedding(self.n_users, 2)
        with torch.no_grad():
            self.user_embedding.weight.copy_(torch.tensor([1.2, 1.6]).expand(self.n_users, 2))

    def calculate_loss(self, interaction):
        return self.user_embedding(interaction[self.USER_ID]).mv(torch.tensor([3.0, 4.0])).mean()

    def full_sort_predict(self, interaction):
        user = self.user_embedding(interaction[self.USER_ID])
        return user @ torch.arange(2.0 * self.n_items).view(2, -1)


@pytest.fixture
def linear(tiny, as_trained):
    return as_trained(tiny(Linear, train_batch_size=100, **RANKED))


def test_directions_on_a_linear_model(linear):
    attack = TableAttack(linear, relative=False, steps=10)
    first = attack.clean_gradient(0)
    (fgsm,) = attack.moves("fgsm", 0.5, 0, first)
    (pgd,) = attack.moves("pgd", 0.5, 0, first)
    (box,) = attack.moves("box", 0.5, 0, first)
    assert fgsm[0].tolist() == pgd[0].tolist() == box[0].tolist() == [0, 0]  # padding
    rows = len(fgsm) - 1
    torch.testing.assert_close(fgsm[1:], torch.tensor([[0.6, 0.8]]).expand(rows, 2))
    # Ten steps of .25 along (.6, .8) end at (1.5, 2): in the ball (.6, .8), in the box (1, 1).
    torch.testing.assert_close(pgd[1:], torch.tensor([[0.6, 0.8]]).expand(rows, 2))
    torch.testing.assert_close(box[1:], torch.ones(rows, 2))


def test_one_step_of_pgd_is_fgsm(linear):
    attack = TableAttack(linear, relative=False, steps=1)
    first = attack.clean_gradient(0)
    torch.testing.assert_close(
        attack.moves("pgd", 2.0, 0, first), attack.moves("fgsm", 2.0, 0, first)
    )


def test_realised_norms_and_loss(linear):
    """Rows have the norm 2; epsilon .5 relative to it is 1; the box reaches sqrt(2) of it."""
    attack, numbers = TableAttack(linear, relative=True, steps=10), random_state()
    assert attack.radii(0.5) == [pytest.approx(1.0)]
    first = attack.clean_gradient(0)
    clean = attack.measure(None, 0.0, 0, numbers)
    assert clean["train_loss"] == pytest.approx(10.0)  # 3 * 1.2 + 4 * 1.6
    assert clean["delta_max"] == clean["relative_max"] == 0
    fgsm = attack.measure(attack.moves("fgsm", 0.5, 0, first), 0.5, 0, numbers)
    assert fgsm["train_loss"] == pytest.approx(15.0)  # + epsilon * ||(3, 4)||
    assert fgsm["delta_mean"] == fgsm["delta_max"] == pytest.approx(1.0)
    assert fgsm["relative_mean"] == fgsm["relative_max"] == pytest.approx(0.5)
    box = attack.measure(attack.moves("box", 0.5, 0, first), 0.5, 0, numbers)
    assert box["delta_max"] == pytest.approx(math.sqrt(2))  # sqrt(D) epsilon
    assert box["train_loss"] == pytest.approx(17.0)


def test_the_gradient_is_the_mean_over_the_rows_of_uneven_batches(tiny, as_trained):
    """Against one batch of all rows: the last of the small ones counts by its rows."""
    run = as_trained(tiny("BPR", train_batch_size=100, **RANKED))
    with run._batches(7) as batches:
        batches = list(batches)
    assert len({len(batch) for batch in batches}) == 2
    together = {name: torch.cat([b[name] for b in batches]) for name in batches[0].columns}
    loss = run.model.calculate_loss(type(batches[0])(together))
    tables = [run.model.user_embedding.weight, run.model.item_embedding.weight]
    expected = torch.autograd.grad(loss, tables)
    value, found = run.mean_gradient(tables, 7)
    assert value == pytest.approx(loss.item(), rel=1e-5)
    assert run.mean_loss(7) == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(found, list(expected), atol=1e-8, rtol=1e-4)
    assert all(p.grad is None for p in run.model.parameters())
    assert not torch.equal(run.mean_gradient(tables, 8)[1][0], found[0])  # other negatives


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "NeuMF", "SGL", "CKE"])
def test_attacks_raise_the_loss_and_stay_in_their_ball(model, tiny, as_trained):
    run = tiny(model, epochs=8, **RANKED)
    run.fit(saved=False)
    run = as_trained(run)
    attack, numbers = TableAttack(run, relative=False, steps=5), random_state()
    first, loss = attack.clean_gradient(0), {}
    for kind in ("random", "fgsm", "pgd", "box"):
        moves = attack.moves(kind, 0.1, 0, first)
        figures = attack.measure(moves, 0.1, 0, numbers)
        loss[kind] = figures["train_loss"]
        bound = math.sqrt(8) if kind == "box" else 1.0
        assert 0.09 < figures["delta_max"] <= 0.1 * bound + 1e-6
    assert attack.measure(None, 0.0, 0, numbers)["train_loss"] < loss["fgsm"]
    assert loss["random"] < loss["fgsm"] <= loss["pgd"] + 1e-4
    assert loss["pgd"] < loss["box"]


def test_nothing_of_the_test_is_read(linear):
    """Else a gradient, or a perturbation, would have seen what is evaluated."""
    linear.test_data = None
    attack = TableAttack(linear, relative=False, steps=3)
    assert len(attack.moves("pgd", 0.5, 0, attack.clean_gradient(0))) == 1


@pytest.mark.parametrize("model", ["BPR", "LightGCN"])
@pytest.mark.parametrize("where", ["evaluate", "loss"])
def test_the_model_comes_back_bit_for_bit_when_something_raises(
    model, where, tiny, as_trained, monkeypatch
):
    run = as_trained(tiny(model, **RANKED))
    attack = TableAttack(run, relative=False, steps=2)
    before, moves = run.digest(), attack.moves("random", 0.5, 0, [])

    def fail(*args, **kwargs):
        assert run.digest() != before  # inside, the weights are others
        raise RuntimeError("in between")

    target = (run.trainer, "evaluate") if where == "evaluate" else (run, "mean_loss")
    monkeypatch.setattr(*target, fail)
    with pytest.raises(RuntimeError, match="in between"):
        attack.measure(moves, 0.5, 0, random_state())
    assert run.digest() == before
    assert getattr(run.model, "restore_user_e", None) is None


def test_cached_embeddings_are_not_what_is_evaluated(tiny, as_trained):
    """LightGCN ranks from what it has propagated before, unless that is forgotten."""
    tiny_run = tiny("LightGCN", epochs=5, **RANKED)
    tiny_run.fit(saved=False)
    run = as_trained(tiny_run)
    attack, numbers = TableAttack(run, relative=False, steps=3), random_state()
    clean = attack.measure(None, 0.0, 0, numbers)
    moves = attack.moves("pgd", 3.0, 0, attack.clean_gradient(0))
    found = attack.measure(moves, 3.0, 0, numbers)
    assert found["ndcg@5"] != clean["ndcg@5"]
    other = copy.deepcopy(run.model)  # never evaluated before, with the perturbed weights
    with torch.no_grad():
        for table, move in zip(attack.tables, moves):
            other.get_parameter(table.name).add_(move, alpha=3.0)
    run.trainer.model = other
    assert run.trainer.evaluate(run.test_data, load_best_model=False)["ndcg@5"] == found["ndcg@5"]
    run.trainer.model = run.model
    assert attack.measure(None, 0.0, 0, numbers) == clean


def test_points_are_the_seeds_and_come_back(tiny, as_trained):
    run = as_trained(tiny("BPR", **RANKED))
    attack, before = TableAttack(run, relative=False, steps=2), run.digest()
    first = list(table_points(attack, ["random", "pgd"], [0.5], [0, 1]))
    assert run.digest() == before
    assert [(p.attack, p.seed) for p in first] == [
        *(("none", 0), ("random", 0), ("pgd", 0), ("none", 1), ("random", 1), ("pgd", 1))
    ]
    assert list(table_points(attack, ["random", "pgd"], [0.5], [0, 1])) == first
    assert first[1].figures != first[4].figures and first[2].figures != first[5].figures
    same = attack.moves("random", 0.1, 3, []), attack.moves("random", 2.0, 3, [])
    assert torch.equal(same[0][0], same[1][0])  # one noise, of growing length


class SparseBPR(BPR):
    """BPR whose tables have sparse gradients."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        for table in (self.user_embedding, self.item_embedding):
            table.sparse = True


def test_sparse_gradients_are_the_dense_ones(tiny, as_trained):
    found = []
    for model in (BPR, SparseBPR):
        run = as_trained(tiny(model, train_batch_size=100, **RANKED))
        found.append(TableAttack(run, relative=False, steps=2).clean_gradient(0))
    torch.testing.assert_close(found[0], found[1])
