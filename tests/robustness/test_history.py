"""Corrupted histories: what is replaced, and HotFlip against the loss itself."""

from __future__ import annotations

import pytest
import torch

from recbole_adv.errors import ConfigError
from recbole_adv.robustness.history import HistoryAttack, history_points, nearest_items

SETTINGS = {
    **{"topk": [5], "metrics": ["NDCG"], "valid_metric": "NDCG@5", "epochs": 3},
    **{"eval_args": {"order": "TO", "split": {"LS": "valid_and_test"}, "mode": "full"}},
}


@pytest.fixture
def attack_on(tiny, as_trained):
    def made(model, **settings):
        run = tiny(model, **{**SETTINGS, **settings})
        run.fit(saved=False)
        return HistoryAttack(as_trained(run))

    return made


def test_nearest_items_by_cosine():
    table = torch.tensor([[9.0, 9.0], [1.0, 0.0], [5.0, 1.0], [0.0, 2.0], [-1.0, 0.0]])
    nearest = nearest_items(table, 2)
    assert nearest[1].tolist() == [2, 3]  # cosines .98, 0, -1; padding is nobody's
    assert nearest[3][0] == 2 and nearest[4][0] == 3
    assert nearest_items(table, 9)[1].tolist() == [2, 3, 4, 0]


@pytest.mark.parametrize("kind", ["random", "similar", "gradient"])
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_what_is_replaced(kind, share, attack_on):
    attack = attack_on("SASRec")
    new, old = attack.corrupted(kind, share, 3), attack.history
    place = torch.arange(old.shape[1]) < attack.length.unsqueeze(1)
    assert torch.equal(new[~place], old[~place]) and (old[~place] == 0).all()
    n_replaced = (new != old).sum(1)
    assert n_replaced.tolist() == [int(n * share + 0.5) for n in attack.length.tolist()]
    changed = new[new != old]
    assert changed.min() >= 1 and changed.max() < attack.n_items
    assert not ((new == attack.target.unsqueeze(1)) & (new != old)).any()
    assert torch.equal(attack.corrupted(kind, share, 3), new)
    if kind != "gradient":
        other = attack.corrupted(kind, share, 4)
        assert not torch.equal(other, new)
        both = attack.corrupted("random", share, 3), attack.corrupted("similar", share, 3)
        assert torch.equal(both[0] != old, both[1] != old)  # the same places


def test_random_items_are_uniform_over_all_that_may_be_put_there(attack_on):
    attack = attack_on("SASRec")
    attack.n_items, n = 6, 40_000
    attack.history = torch.full((n, 1), 2)
    attack.length, attack.target = torch.ones(n, dtype=torch.long), torch.full((n,), 4)
    drawn = attack.corrupted("random", 1.0, 0).flatten()
    count = torch.bincount(drawn, minlength=6)
    assert count[[0, 2, 4]].tolist() == [0, 0, 0]
    assert (count[[1, 3, 5]] - n / 3).abs().max() < 4 * (n * 2 / 9) ** 0.5
    attack.target[:] = 2  # already there: four others are left
    count = torch.bincount(attack.corrupted("random", 1.0, 0).flatten(), minlength=6)
    assert count[2] == 0 and (count[[1, 3, 4, 5]] - n / 4).abs().max() < 4 * (n * 3 / 16) ** 0.5


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_hotflip_is_the_first_order_change_of_the_loss(model, attack_on):
    """Every item at every place of a row, by moving the embedding that is looked up a little."""
    attack = attack_on(model)
    net = attack.run.model.double().eval()
    dataset = attack.run.test_data._dataset
    row = int(attack.length.argmax())
    batch = dataset[[row]]
    with torch.no_grad():
        label = net.full_sort_predict(batch).view(-1)[1:].argmax().view(1) + 1
    gain, item = attack.flips_of(batch)
    table, history = net.item_embedding.weight.detach(), batch[attack.field][0]
    target = int(batch[dataset.iid_field])
    shift = {}

    def shifted(module, args, output):
        if args[0].shape == batch[attack.field].shape:
            output = output.clone()
            output[0, shift["place"]] += shift["by"]
        return output

    def loss_at(place, by):
        shift.update(place=place, by=by)
        with torch.no_grad():
            return attack.loss(batch, label).item()

    handle = net.item_embedding.register_forward_hook(shifted)
    small = 1e-5
    for place in range(int(batch[dataset.item_list_length_field])):
        best = {}
        for v in range(1, attack.n_items):
            if v not in (target, int(history[place])):
                step = small * (table[v] - table[history[place]])
                best[v] = (loss_at(place, step) - loss_at(place, -step)) / (2 * small)
        top = max(best, key=best.get)
        assert gain[0, place].item() == pytest.approx(best[top], rel=1e-4, abs=1e-7)
        assert item[0, place].item() == top
    handle.remove()


def test_the_data_come_back(attack_on, monkeypatch):
    attack = attack_on("SASRec")
    rows, before = attack.rows, attack.history.clone()

    def fail(*args, **kwargs):
        assert not torch.equal(rows[attack.field], before)
        raise RuntimeError("in between")

    monkeypatch.setattr(attack.run.trainer, "evaluate", fail)
    with pytest.raises(RuntimeError, match="in between"):
        attack.measure(attack.corrupted("random", 1.0, 0), _numbers())
    assert torch.equal(rows[attack.field], before)


def _numbers():
    from recbole_adv.model_state import random_state

    return random_state()


def test_worse_items_cost_more(attack_on):
    """On a trained model: HotFlip raises the loss of its own choice more than chance does."""
    attack = attack_on("SASRec", epochs=10)
    net, dataset = attack.run.model.eval(), attack.run.test_data._dataset
    batch = dataset[list(range(len(attack.history)))]
    with torch.no_grad():
        label = net.full_sort_predict(batch).view(len(batch), -1)[:, 1:].argmax(1) + 1
        loss = {}
        for kind in ("random", "similar", "gradient"):
            with attack.replaced(attack.corrupted(kind, 0.4, 0)):
                loss[kind] = attack.loss(dataset[list(range(len(batch)))], label).item()
        clean = attack.loss(batch, label).item()
    assert clean < loss["random"] < loss["gradient"]
    assert loss["similar"] < loss["random"]


def test_points(attack_on):
    attack = attack_on("GRU4Rec")
    before = attack.run.digest()
    kinds, shares = ["random", "gradient"], [0.5]
    points = list(history_points(attack.run, kinds, shares, [0, 1], _numbers()))
    assert [p.attack for p in points] == ["none", "random", "gradient"] * 2
    assert points[0].figures == points[3].figures and points[2].figures == points[5].figures
    assert points[0].figures["replaced"] == 0 and points[1].figures["replaced"] > 0.4
    assert attack.run.digest() == before


def test_a_history_that_is_not_looked_up_item_by_item_is_refused(attack_on):
    """SRGNN looks up the nodes of a graph."""
    attack = attack_on("SRGNN", MAX_ITEM_LIST_LENGTH=5, train_neg_sample_args=None, epochs=1)
    with pytest.raises(ConfigError, match="SRGNN does not look its history up item by item"):
        attack.corrupted("gradient", 0.5, 0)
    assert attack.corrupted("similar", 0.5, 0).shape == attack.history.shape
