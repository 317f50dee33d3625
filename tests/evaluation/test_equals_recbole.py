"""The same numbers as RecBole's evaluation, in chunks of any size."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from recbole.evaluator import metrics as recbole_metrics
from recbole.evaluator.collector import DataStruct

from recbole_adv.evaluation import ranking
from recbole_adv.evaluation.evaluation import evaluation_of
from recbole_adv.evaluation.metrics import POPULARITY, Metrics

EVERY = ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP", "GAUC", "ShannonEntropy"]
EVERY += ["AveragePopularity", "GiniIndex", "ItemCoverage", "TailPercentage"]


def both(tiny, model, **keys):
    """RecBole's result and ours, of the same trained model."""
    run = tiny(model, **keys)
    trainer = run.fit(saved=False)
    assert trainer.evaluation is None
    stock = trainer.evaluate(run.test, load_best_model=False)
    run.config.final_config_dict["eval_memory_mb"] = 1
    trainer.evaluation = evaluation_of(run.config)
    return run, stock, trainer.evaluate(run.test, load_best_model=False)


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "LightGCN", "SASRec", "MultiVAE", "EASE"])
def test_every_metric_is_recboles(model, tiny):
    """NeuMF has no method for all items; SASRec's rows are steps; EASE is not trained by steps."""
    keys = {"mlp_hidden_size": [16]} if model == "MultiVAE" else {}
    run, stock, ours = both(tiny, model, metrics=EVERY, topk=[3, 10], valid_metric="MRR@3", **keys)
    assert ours == stock
    assert len(ours) == 2 * (len(EVERY) - 1) + 1


def test_lists_of_a_model_with_a_knowledge_graph(tiny):
    """RecBole's collector does not find the data in the loader of such a model."""
    run, stock, ours = both(tiny, "CKE", metrics=["NDCG", "GAUC"], valid_metric="NDCG@10")
    assert ours == stock
    run = tiny("CKE", popularity_metrics=True, epochs=1)
    result = run.fit(saved=False).evaluate(run.test, load_best_model=False)
    assert 0 < result["itemcoverage@10"] <= 1


@pytest.mark.parametrize("mode", ["uni20", "pop20"])
def test_sampled_candidates_are_ranked_as_recbole_does(mode, tiny):
    """The candidates are drawn anew each time, from the same random numbers."""
    keys = {"eval_args": {"mode": mode}, "metrics": ["Recall", "NDCG"], "valid_metric": "NDCG@10"}
    run = tiny("BPR", **keys)
    trainer = run.fit(saved=False)
    np.random.seed(5)
    stock = trainer.evaluate(run.test, load_best_model=False)
    run.config.final_config_dict["popularity_metrics"] = True
    trainer.evaluation = evaluation_of(run.config)
    np.random.seed(5)
    ours = trainer.evaluate(run.test, load_best_model=False)
    assert {name: ours[name] for name in stock} == stock
    assert {name.split("@")[0] for name in set(ours) - set(stock)} == set(POPULARITY)


@pytest.mark.parametrize("model", ["BPR", "NeuMF"])
def test_never_more_scores_than_the_memory_allows(model, tiny, monkeypatch):
    """The chunks are as large as they may be, and their number does not change the result."""
    run, _, ours = both(tiny, model, metrics=["NDCG"], valid_metric="NDCG@10")
    seen, pieces = [], []
    of_chunk, of_piece = ranking.Scorer.full, run.model.predict

    def full(self, rows):
        scores = of_chunk(self, rows)
        seen.append(tuple(scores.shape))
        return scores

    def predict(interaction):
        pieces.append(len(interaction))
        return of_piece(interaction)

    n_items, n_users = run.dataset.item_num, len(run.test.uid_list)
    monkeypatch.setattr(ranking.Scorer, "full", full)
    monkeypatch.setattr(run.model, "predict", predict)
    # A pretended size of scores makes a chunk of 3 users of 1 MB.
    monkeypatch.setattr(ranking, "_BYTES_OF_A_SCORE", 2**20 // (3 * n_items))
    run.trainer.test_batch_size = 7  # less than the 61 items: 9 calls for a user
    assert run.trainer.evaluate(run.test, load_best_model=False) == ours
    assert sum(rows for rows, _ in seen) == n_users
    assert {rows for rows, _ in seen[:-1]} == {3}
    assert {columns for _, columns in seen} == {n_items}
    assert set(pieces) == ({7, 5} if model == "NeuMF" else set())
    assert sum(pieces) == (n_users * n_items if model == "NeuMF" else 0)
    run.trainer.test_batch_size, pieces[:] = 2 * n_items + 1, []
    assert run.trainer.evaluate(run.test, load_best_model=False) == ours
    assert not pieces or set(pieces) <= {n_items, 2 * n_items}


def test_a_user_has_a_chunk_even_where_it_needs_more_than_the_memory():
    class Loader:
        step = 5
        _dataset = type("Dataset", (), {"item_num": 10**6})

    assert ranking.rows_at_once(None, Loader, False) == 5
    assert ranking.rows_at_once(1, Loader, False) == 1
    assert ranking.rows_at_once(100, Loader, False) == 13  # 100 MB / (8 bytes x 10^6)
    assert ranking.rows_at_once(100, Loader, True) == 1


@pytest.mark.parametrize("tail_ratio", [None, 0.3, 4])
def test_the_faster_popularity_metrics_are_recboles(tail_ratio):
    """On lists with items that were never trained on, against RecBole's own classes."""
    generator = np.random.default_rng(3)
    lists = torch.from_numpy(generator.integers(1, 40, size=(50, 6)))
    counts = {item: int(n) for item, n in zip(range(1, 30), generator.integers(1, 9, 29))}
    keys = {"topk": [2, 6], "metric_decimal_place": 9, "tail_ratio": tail_ratio}
    data = {"rec.items": lists, "data.count_items": counts, "data.num_items": 40}
    struct = DataStruct()
    for name, value in data.items():
        struct.set(name, value)
    expected = {}
    for name in ("AveragePopularity", "GiniIndex", "ItemCoverage", "TailPercentage"):
        expected |= getattr(recbole_metrics, name)(keys).calculate_metric(struct)
    assert Metrics(keys, POPULARITY)(data) == expected


def test_popularity_by_hand():
    """Lists (1 2) and (1 3) of 4 items (0 is padding) that were trained 3, 1, 2 times."""
    keys = {"topk": [2], "metric_decimal_place": 6, "tail_ratio": 0.4}
    data = {"rec.items": torch.tensor([[1, 2], [1, 3]]), "data.num_items": 4}
    result = Metrics(keys, POPULARITY)({**data, "data.count_items": {1: 3, 2: 1, 3: 2}})
    assert result == pytest.approx(
        {
            "averagepopularity@2": (3 + 1 + 3 + 2) / 4,
            # counts 1 1 2 of 3 of 4 items: (0 * 1 + ... ) with weights 2i - 4 - 1, i = 2, 3, 4
            "giniindex@2": (-1 * 1 + 1 * 1 + 3 * 2) / 4 / 4,
            "itemcoverage@2": 3 / 4,
            "tailpercentage@2": 1 / 4,  # the rarest of three is item 2, once of four places
        },
        abs=1e-6,
    )


def test_without_keys_the_evaluation_is_recboles(tiny, monkeypatch):
    from recbole.trainer import Trainer

    called = []
    stock = Trainer.evaluate
    monkeypatch.setattr(Trainer, "evaluate", lambda *a, **k: called.append(1) or stock(*a, **k))
    run = tiny("BPR", epochs=1)
    run.fit(saved=False)
    assert called == [1]


@pytest.mark.parametrize("train_loader", ["recbole", "tensor"])
def test_what_metrics_need_of_training_data_with_a_knowledge_graph(train_loader, tiny):
    keys = {"metrics": ["NDCG", "ItemCoverage", "AveragePopularity"], "valid_metric": "NDCG@10"}
    run = tiny("CKE", train_loader=train_loader, epochs=1, **keys)
    collected = run.fit(saved=False).eval_collector.data_struct
    assert collected["data.num_items"] == run.dataset.item_num
    assert collected["data.count_items"] == Counter(
        run.train._dataset.inter_feat["item_id"].tolist()
    )
