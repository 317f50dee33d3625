"""Our samplers against RecBole's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.sampler import KGSampler, RepeatableSampler, Sampler
from scipy.stats import chi2_contingency

from recbole_adv.errors import DataError
from recbole_adv.loader.sampler import TensorKGSampler, TensorSampler, draw_of, tensor_samplers

PHASES = ["train", "valid", "test"]
SETTINGS = [("uniform", 1.0), ("popularity", 1.0), ("popularity", 0.5)]


@pytest.fixture
def parts(tiny):
    """Datasets of the three parts of a tiny data set."""
    run = tiny("BPR")
    return [loader._dataset for loader in (run.train, run.valid, run.test)]


def same_distribution(one, other, n_items):
    """Two-sample chi-square test per row of [rows, draws]; 1 of 100,000 equal ones would fail."""
    for a, b in zip(one, other):
        counts = np.stack([np.bincount(x, minlength=n_items) for x in (a, b)])
        counts = counts[:, counts.sum(0) > 0]
        assert counts.shape[1] == 1 or chi2_contingency(counts).pvalue > 1e-5


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("distribution, alpha", SETTINGS)
def test_draws_as_recboles(distribution, alpha, phase, parts):
    np.random.seed(0)
    torch.manual_seed(0)
    drawn = []
    users = np.array([1, 5, 9, 30])
    for cls in (Sampler, TensorSampler):
        sampler = cls(PHASES, parts, distribution, alpha).set_phase(phase)
        tiles = sampler.sample_by_user_ids(users, users, 3_000)
        assert tiles.dtype == torch.int64 and tiles.shape == (4 * 3_000,)
        drawn.append(tiles.view(-1, 4).t().numpy())  # the k-th of user i stands at 4 k + i
    same_distribution(*drawn, parts[0].item_num)


def test_used_ids_are_recboles(parts):
    stock, ours = (cls(PHASES, parts) for cls in (Sampler, TensorSampler))
    for phase in PHASES:
        sets, used = stock.set_phase(phase).used_ids, ours.set_phase(phase).used_ids
        assert len(used) == len(sets)
        assert [used[user] for user in range(len(sets))] == list(sets)
        some = np.array([3, 1])
        assert list(used[some]) == [used[3], used[1]]


@pytest.mark.parametrize("distribution, alpha", SETTINGS)
def test_tails_as_recboles(distribution, alpha, tiny):
    np.random.seed(0)
    torch.manual_seed(0)
    dataset = tiny("CKE").dataset
    heads = np.unique(dataset.head_entities)[:4]
    stock, ours = (cls(dataset, distribution, alpha) for cls in (KGSampler, TensorKGSampler))
    one, other = (
        sampler.sample_by_entity_ids(heads, 3_000).view(-1, 4).t().numpy()
        for sampler in (stock, ours)
    )
    same_distribution(one, other, dataset.entity_num)
    for row, head in zip(other, heads):
        assert not set(row) & stock.used_ids[head]


@pytest.mark.parametrize("distribution, alpha", SETTINGS)
def test_other_items_as_recboles(distribution, alpha, parts, tiny):
    np.random.seed(0)
    torch.manual_seed(0)
    dataset = tiny("BPR").dataset
    sampler = RepeatableSampler(PHASES, dataset, distribution, alpha).set_phase("train")
    items = np.array([1, 7, 12])
    stock = sampler.sample_by_user_ids(items, items, 3_000).view(-1, 3).t().numpy()
    own = torch.from_numpy(items)
    ours = draw_of(sampler, torch.device("cpu"))(own, own, 3_000).numpy()
    assert not (ours == items[:, None]).any()
    same_distribution(stock, ours, dataset.item_num)


def test_ours_are_built_only_where_wanted(tiny):
    from recbole.data import utils

    stock = (utils.Sampler, utils.KGSampler)
    with pytest.raises(KeyError), tensor_samplers():
        assert (utils.Sampler, utils.KGSampler) == (TensorSampler, TensorKGSampler)
        raise KeyError
    assert (utils.Sampler, utils.KGSampler) == stock == (Sampler, KGSampler)
    assert type(tiny("BPR").train._sampler) is Sampler
    run = tiny("CKE", train_loader="tensor")
    assert type(run.train.general_dataloader._sampler) is TensorSampler
    assert type(run.train.kg_dataloader._sampler) is TensorKGSampler


def test_ranking_of_all_items_is_the_same_with_either(tiny):
    """It masks what ``used_ids`` name."""
    results = []
    for kind in ("recbole", "tensor"):
        run = tiny("BPR", train_loader=kind)
        results.append(run.trainer.evaluate(run.test, load_best_model=False))
    assert results[0] == results[1]


@pytest.mark.parametrize("distribution", ["uni", "pop"])
def test_evaluation_on_sampled_items(distribution, tiny):
    """RecBole's evaluation loader draws by our sampler: never an item that the user has."""
    mode = {"mode": f"{distribution}20"}
    run = tiny("BPR", train_loader="tensor", eval_args=mode, epochs=1)
    used = Sampler(PHASES, [x._dataset for x in (run.train, run.valid, run.test)])
    sets = used.set_phase("test").used_ids
    for batch, _, _, positive_item in run.test:
        user, item = batch["user_id"].numpy(), batch["item_id"].numpy()
        assert len(user) == 21 * len(positive_item)
        has = [i in sets[u] for u, i in zip(user, item)]
        assert sum(has) == len(positive_item)
    run.fit(saved=False)
    assert 0 <= run.trainer.evaluate(run.test, load_best_model=False)["recall@10"] <= 1


@pytest.fixture
def full():
    """8 items. Of six users with half of them u3 has six in train, one in valid, and the last in extra."""
    folder = Path("data/full")
    folder.mkdir(parents=True)
    parts = {
        "train": [(u, (u + k) % 8) for u in range(6) for k in range(6 if u == 3 else 2)],
        "valid": [(u, (u + 6) % 8) for u in range(6)],
        "test": [(u, (u + 5) % 8) for u in range(6) if u != 3],
        "extra": [(u, (u + 7) % 8) for u in range(6)],
    }
    for name, rows in parts.items():
        text = "user_id:token\titem_id:token\n" + "".join(f"u{u}\ti{i}\n" for u, i in rows)
        (folder / f"full.{name}.inter").write_text(text)
    return {"data_path": "data", "load_col": None, "topk": [2], "valid_metric": "MRR@2"}


FULL = {
    "uni3": "user 'u3' has rows with all 8 items in train and valid and test together.* mode: full",
    "pop3": "'u3' has every item that can be drawn by popularity",
}


@pytest.mark.parametrize("mode", FULL)
@pytest.mark.parametrize("names", ["train valid test extra", "train valid extra"])
def test_a_user_without_negatives_is_refused_before_the_training(names, mode, full, tiny):
    """As RecBole refuses him, be it for a further test; a ranking of all items draws nothing."""
    keys = {**full, "benchmark_filename": names.split(), "train_loader": "tensor"}
    with pytest.raises(DataError, match=FULL[mode]):
        tiny("BPR", "full", **keys, eval_args={"mode": mode})
    with pytest.raises(DataError, match="interacted with all items"):
        tiny("BPR", "full", **{**keys, "train_loader": "recbole"}, eval_args={"mode": mode})
    tiny("BPR", "full", **keys)
    keys["benchmark_filename"] = ["train", "valid", "test"]
    tiny("BPR", "full", **keys, eval_args={"mode": mode})


def test_a_head_of_every_entity_is_no_user(tiny):
    dataset = tiny("CKE").dataset
    sampler = TensorKGSampler(dataset)
    sampler.hid_list, sampler.tid_list = np.full(64, 3), np.arange(1, 65)
    name = next(t for t, i in dataset.field2token_id["head_id"].items() if i == 3)
    assert sampler.sample_by_entity_ids(np.array([3]), 5).tolist() == [65] * 5
    sampler.hid_list, sampler.tid_list = np.full(65, 3), np.arange(1, 66)
    sampler.set_distribution("uniform")
    with pytest.raises(DataError, match=f"entity '{name}' is the head of triples with all 65"):
        sampler.sample_by_entity_ids(np.array([3]), 5)
