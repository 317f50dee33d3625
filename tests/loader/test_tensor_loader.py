"""Batches of the tensor loader: what RecBole's loader makes, in distribution and in form."""

import numpy as np
import pytest
import torch
from recbole.utils import KGDataLoaderState
from scipy.stats import chi2, chi2_contingency, chisquare

from recbole_adv.loader.device_rows import DeviceColumns
from recbole_adv.loader.tensor_loader import TensorLoader


def drawn(n=1, **more):
    return {"train_neg_sample_args": {"distribution": "uniform", "sample_num": n, **more}}


POPULAR = {"distribution": "popularity", "alpha": 0.5}
SEQUENTIAL_BPR = {**drawn(2), "loss_type": "BPR"}
CASES = [
    ("BPR", {}),
    ("BPR", drawn(3)),
    ("BPR", drawn(2, **POPULAR)),
    ("BPR", drawn(2, dynamic=True, candidate_num=3)),
    ("BPR", {"train_neg_sample_args": None}),
    ("BPR", {**drawn(2), "train_negatives": "static"}),
    ("BPR", {"train_negatives": "in_batch", "train_positives": "user_uniform"}),
    ("NeuMF", drawn(2)),
    ("DeepFM", drawn(1)),
    ("DeepFM", drawn(2, dynamic=True, candidate_num=2)),
    ("SASRec", {}),
    ("SASRec", SEQUENTIAL_BPR),
    ("SASRec", {**SEQUENTIAL_BPR, **drawn(1, **POPULAR)}),
    ("CKE", {}),
    ("CKE", drawn(2)),
    ("MultiVAE", {"train_neg_sample_args": None, "train_batch_size": 40}),
]


def loader_of(tiny, model="BPR", kind="tensor", mode=KGDataLoaderState.RSKG, **settings):
    """The loader that a trainer reads, and the run."""
    run = tiny(model, **{"train_batch_size": 200, **settings, "train_loader": kind})
    loader = run.trainer._before_fit(run.train)
    if hasattr(loader, "set_mode"):
        loader.set_mode(mode)
    return loader, run


@pytest.mark.parametrize("model, settings", CASES)
def test_batches_have_recboles_form(model, settings, tiny):
    """Length, columns, shapes and types of all batches of an epoch, the last one too."""
    forms = []
    for kind in ("recbole", "tensor"):
        loader, _ = loader_of(tiny, model, kind, **settings)
        batches = list(loader)
        shapes = [{k: (v.shape, v.dtype) for k, v in b.interaction.items()} for b in batches]
        forms.append((len(loader), shapes))
        assert len(batches) == len(loader) > 1
        inner = getattr(loader, "general_dataloader", loader)
        assert isinstance(inner, TensorLoader) == (kind == "tensor")
    assert forms[0] == forms[1]


@pytest.mark.parametrize(
    "model, settings, tiles, labelled",
    [
        ("BPR", {}, 1, False),
        ("BPR", drawn(3), 3, False),
        ("NeuMF", drawn(2), 3, True),
        ("DeepFM", drawn(1), 2, True),
        ("SASRec", {}, 1, False),
        ("SASRec", SEQUENTIAL_BPR, 2, False),
        ("CKE", {}, 1, False),
    ],
)
def test_each_row_once_with_its_own_columns(model, settings, tiles, labelled, tiny):
    """``inter_idx`` names the training row of every row; a tile below has the same one."""
    environments = {"n_environments": 2, "generator": "table"}
    loader, run = loader_of(tiny, "EIIL", backbone=model, **environments, **settings)
    rows = run.train._dataset.inter_feat
    users, items = (getattr(run.train._dataset, f"{name}_feat") for name in ("user", "item"))
    orders = []
    for _ in range(2):
        seen = []
        for batch in loader:
            index = batch["inter_idx"]
            n = len(index) // tiles
            assert torch.equal(index, index[:n].repeat(tiles)) and len(index) == n * tiles
            for name in rows.columns:
                expected = rows[name][index]
                if name == "label":
                    continue
                some = slice(0, n) if labelled and name == "item_id" else slice(None)
                assert torch.equal(batch[name][some], expected[some]), name
            if labelled:
                assert batch["label"].tolist() == [1.0] * n + [0.0] * (n * (tiles - 1))
            for features, field in ((users, "user_id"), (items, "item_id")):
                for name in features.columns if features is not None else ():
                    assert torch.equal(batch[name], features[name][batch[field]]), name
                    if field == "item_id" and not labelled:
                        negative = features[name][batch["neg_item_id"]]
                        assert torch.equal(batch[f"neg_{name}"], negative), name
            seen.append(index[:n])
        orders.append(torch.cat(seen))
        assert torch.equal(orders[-1].sort().values, torch.arange(len(rows)))
    assert not torch.equal(*orders) and not torch.equal(orders[0], torch.arange(len(rows)))


def counts_of(loader, epochs, n_users, n_items):
    """How often each user and negative item came together, [U, I], and the users' positives."""
    pairs = np.zeros((n_users, n_items), dtype=np.int64)
    users = np.zeros(n_users, dtype=np.int64)
    for _ in range(epochs):
        for batch in loader:
            np.add.at(pairs, (batch["user_id"].numpy(), batch["neg_item_id"].numpy()), 1)
            users += np.bincount(batch["user_id"], minlength=n_users)
    return pairs, users


@pytest.mark.parametrize("settings", [drawn(1), drawn(2), drawn(1, **POPULAR)])
def test_same_distribution_as_recboles(settings, tiny):
    """Chi-square by item, and by item for the users one at a time; never a positive."""
    counts = []
    for kind in ("recbole", "tensor"):
        loader, run = loader_of(tiny, kind=kind, **settings)
        dataset = run.train._dataset
        pairs, users = counts_of(loader, 40, dataset.user_num, dataset.item_num)
        counts.append((pairs, users))
        rows = dataset.inter_feat
        assert pairs[rows["user_id"], rows["item_id"]].sum() == 0 and pairs[:, 0].sum() == 0
    (stock, stock_users), (ours, our_users) = counts
    assert (stock_users == our_users).all()  # every row once an epoch
    by_item = np.stack([stock.sum(0), ours.sum(0)])
    assert chi2_contingency(by_item[:, by_item.sum(0) > 0]).pvalue > 1e-4
    statistic, freedom = 0.0, 0
    for user in np.flatnonzero(stock.sum(1)):
        both = np.stack([stock[user], ours[user]])
        both = both[:, both.sum(0) > 0]
        if both.shape[1] > 1:
            result = chi2_contingency(both, correction=False)
            statistic, freedom = statistic + result.statistic, freedom + result.dof
    assert freedom > 100 and statistic < chi2.ppf(1 - 1e-4, freedom)


def test_dynamic_negatives_are_the_best_of_the_candidates(tiny):
    """The best of M uniform draws of n items has rank k from below with (k^M - (k-1)^M) / n^M."""
    m, epochs = 3, 60
    loader, run = loader_of(tiny, **drawn(2, dynamic=True, candidate_num=m))
    rows, user = run.train._dataset.inter_feat, 7
    with torch.no_grad():
        scores = run.model.user_embedding.weight[user] @ run.model.item_embedding.weight.t()
    has = set(rows["item_id"][rows["user_id"] == user].tolist())
    free = [i for i in scores.argsort().tolist() if i and i not in has]
    batches = [batch for _ in range(epochs) for batch in loader]
    drawn_items = torch.cat([b["neg_item_id"][b["user_id"] == user] for b in batches])
    assert run.model.training
    rank = torch.tensor([free.index(i) for i in drawn_items.tolist()])
    n = len(free)
    edges = [0, n // 2, 3 * n // 4, 7 * n // 8, n]
    share = np.diff([(edge / n) ** m for edge in edges])
    count = np.histogram(rank, edges)[0]
    assert count.sum() == len(drawn_items) > 500
    assert chisquare(count, share * count.sum()).pvalue > 1e-4


def test_candidates_are_scored_with_their_own_features(tiny):
    loader, run = loader_of(tiny, "DeepFM", **drawn(1, dynamic=True, candidate_num=4))
    features, scored, predict = run.train._dataset.item_feat, [], run.model.predict

    def spy(batch):
        assert not run.model.training and not torch.is_grad_enabled()
        scored.append(batch)
        return predict(batch)

    run.model.predict = spy
    batch = next(iter(loader))
    assert run.model.training
    (candidates,) = scored
    for name in features.columns:
        assert torch.equal(candidates[name], features[name][candidates["item_id"]])
    n = len(candidates) // 4
    run.model.eval()
    best = predict(candidates).view(4, n).argmax(0)
    chosen = candidates["item_id"].view(4, n)[best, torch.arange(n)]
    assert torch.equal(batch["item_id"][n:], chosen)


@pytest.mark.parametrize("mode", [KGDataLoaderState.KG, KGDataLoaderState.RSKG])
def test_triples(mode, tiny):
    loader, run = loader_of(tiny, "CKE", mode=mode, train_batch_size=100)
    dataset = run.train._dataset
    head, relation, tail = (
        dataset.kg_feat[f].tolist() for f in ("head_id", "relation_id", "tail_id")
    )
    triples, tails = sorted(zip(head, relation, tail)), {}
    for h, t in zip(head, tail):
        tails.setdefault(h, set()).add(t)
    seen = []
    for batch in loader:
        columns = [batch[f].tolist() for f in ("head_id", "relation_id", "tail_id", "neg_tail_id")]
        for h, r, t, negative in zip(*columns):
            assert 1 <= negative < dataset.entity_num and negative not in tails[h]
            seen.append((h, r, t))
    if mode == KGDataLoaderState.KG:
        assert sorted(seen) == triples  # each once
    else:
        assert set(seen) <= set(triples) and "user_id" in batch.columns


def test_whole_users(tiny):
    loader, run = loader_of(tiny, "MultiVAE", train_neg_sample_args=None, train_batch_size=64)
    users = torch.cat([batch["user_id"] for batch in loader])
    assert torch.equal(users.sort().values, torch.arange(run.train._dataset.user_num))


def test_user_uniform_positives(tiny):
    """Each user as often as any other, with his own rows, each as often as any other of his."""
    loader, run = loader_of(tiny, train_positives="user_uniform")
    rows = run.train._dataset.inter_feat
    pairs = torch.stack([rows["user_id"], rows["item_id"]], 1).tolist()
    users, own = torch.zeros(run.train._dataset.user_num), []
    for _ in range(20):
        for batch in loader:
            users += torch.bincount(batch["user_id"], minlength=len(users))
            own += zip(batch["user_id"].tolist(), batch["item_id"].tolist(), batch["timestamp"])
    present = rows["user_id"].unique()
    assert users[present].max() - users[present].min() <= 20 and users.sum() == 20 * len(rows)
    assert {(u, i) for u, i, _ in own} <= set(map(tuple, pairs))
    times = {(u, i): t for (u, i), t in zip(pairs, rows["timestamp"].tolist())}
    assert all(times[u, i] == t for u, i, t in own)
    items = [i for u, i, _ in own if u == int(present[0])]
    assert chisquare(np.unique(items, return_counts=True)[1]).pvalue > 1e-4


def test_static_negatives_stay(tiny):
    epochs = []
    for _ in range(2):
        loader, _ = loader_of(tiny, **drawn(2), train_negatives="static")
        for _ in range(2):
            found = {}
            for batch in loader:
                n = len(batch) // 2
                columns = (batch[f][:n].tolist() for f in ("user_id", "item_id"))
                for k, pair in enumerate(zip(*columns)):
                    found[pair] = (int(batch["neg_item_id"][k]), int(batch["neg_item_id"][n + k]))
            epochs.append(found)
    assert all(epoch == epochs[0] for epoch in epochs)


def test_in_batch_negatives_are_items_of_the_batch(tiny):
    loader, run = loader_of(tiny, train_negatives="in_batch")
    rows = run.train._dataset.inter_feat
    has = set(zip(rows["user_id"].tolist(), rows["item_id"].tolist()))
    for batch in loader:
        assert set(batch["neg_item_id"].tolist()) <= set(batch["item_id"].tolist())
        assert not set(zip(batch["user_id"].tolist(), batch["neg_item_id"].tolist())) & has


def test_without_shuffling_the_order_is_that_of_the_rows(tiny):
    loader, run = loader_of(tiny, shuffle=False)
    users = torch.cat([batch["user_id"] for batch in loader])
    assert torch.equal(users, run.train._dataset.inter_feat["user_id"])


def test_the_seed_is_all(tiny):
    def epochs(seed):
        loader, _ = loader_of(tiny, **drawn(2), seed=seed)
        torch.manual_seed(seed)
        return [torch.cat([torch.stack([b["item_id"], b["neg_item_id"]]) for b in loader], 1)
                for _ in range(2)]  # fmt: skip

    one, same, other = epochs(1), epochs(1), epochs(2)
    assert all(torch.equal(a, b) for a, b in zip(one, same))
    assert not torch.equal(one[0], other[0]) and not torch.equal(*one)


def test_two_readings_at_a_time(tiny):
    """A player with data of its own reads the loader while another does."""
    loader, run = loader_of(tiny)
    n = len(run.train._dataset.inter_feat)
    readings = [iter(loader), iter(loader)]
    seen = [[], []]
    for _ in range(len(loader)):
        for reading, found in zip(readings, seen):
            found.append(next(reading)["user_id"])
    orders = [torch.cat(found) for found in seen]
    assert len(orders[0]) == len(orders[1]) == n and not torch.equal(*orders)
    assert torch.equal(orders[0].sort().values, orders[1].sort().values)


def test_it_reads_like_the_loader_it_stands_for(tiny):
    loader, run = loader_of(tiny, **drawn(2))
    for name in ("_dataset", "dataset", "_sampler", "shuffle", "step", "_batch_size", "times"):
        assert getattr(loader, name) is getattr(run.train, name), name
    assert loader.batch_size == run.train.batch_size == 100
    assert loader.generator is not run.train.generator
    with pytest.raises(AttributeError, match="colour"):
        _ = loader.colour


def test_what_is_written_to_the_rows_is_read_in_the_next_epoch(tiny):
    loader, run = loader_of(tiny)
    rows = run.train._dataset.inter_feat
    rows["group"] = rows["user_id"] % 3
    assert all(torch.equal(b["group"], b["user_id"] % 3) for b in loader)
    rows["group"] = rows["user_id"] % 2
    assert all(torch.equal(b["group"], b["user_id"] % 2) for b in loader)


def test_copies_on_a_device_follow_the_source():
    """Where the device is another one, a tensor is copied once, and again when it was written to."""
    columns, source = DeviceColumns(torch.device("meta")), torch.zeros(3)
    first = columns.of({"a": source})["a"]
    assert first.device.type == "meta" and columns.of({"a": source})["a"] is first
    source[0] = 1
    second = columns.of({"a": source})["a"]
    assert second is not first and columns.of({"a": source.clone()})["a"] is not second
    assert columns.of({}) == {}
