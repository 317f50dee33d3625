"""Metrics of groups of users, of items and of rows, and of the worst."""

from __future__ import annotations

from math import log, log2, nan, sqrt

import pytest
import torch

from recbole_adv.errors import ConfigError
from recbole_adv.evaluation.evaluation import score_of

SCORES = {"a": dict(zip("prqstv", range(9, 3, -1))), "b": dict(zip("pqtsrv", range(9, 3, -1)))}
KEYS = {"metrics": ["Recall", "MRR", "NDCG"], "valid_metric": "MRR@2"}


def test_of_items_by_hand(toy):
    """Training counts: p 3, q 2, r s t v 1, in rows of equal mass: (v t s r | q | p) -> ids decide.

    a ranks r q t v, targets q r; b ranks t s, target s; c ranks v t, targets p t.
    """
    run = toy(eval_groups=["item_popularity"], eval_n_groups=2, **KEYS)
    (grouping,) = run.trainer.evaluation.groupings(run.trainer)
    dataset = run.dataset
    group = {i: int(grouping.code[dataset.token2id("item_id", i)]) for i in "pqrstv"}
    assert (group["p"], group["q"]) == (1, 1)  # 5 of 9 rows; the other four items have one row each
    assert {group[i] for i in "rstv"} == {0}
    result = run.of_test()
    # Group 0: a (r first of one target), b (s second), c (t second). Group 1: a (q second), c (p not).
    second = 1 / log2(3)
    expected = {
        "item_popularity/0/recall@2": 1.0,
        "item_popularity/0/mrr@2": (1 + 1 / 2 + 1 / 2) / 3,
        "item_popularity/0/ndcg@2": (1 + second + second) / 3,
        "item_popularity/1/recall@2": 1 / 2,
        "item_popularity/1/mrr@2": 1 / 4,
        "item_popularity/1/ndcg@2": second / 2,
        "item_popularity/worst/recall@2": 1 / 2,
        "item_popularity/worst/mrr@2": 1 / 4,
        "item_popularity/worst/ndcg@2": second / 2,
    }
    assert {k: result[k] for k in expected} == pytest.approx(expected, abs=1e-6)
    assert {k: v for k, v in result.items() if "/" not in k} == toy(**KEYS).of_test()
    assert len(result) == 3 + 9


def test_of_users_is_the_metric_of_those_users(toy):
    """Activity in training: a 2, b 2, c 1, d 4; two groups of 9 rows: (c a b | d)."""
    run = toy(eval_groups=["user_activity"], eval_n_groups=2, **KEYS)
    result = run.of_test()
    assert "user_activity/1/mrr@2" not in result  # d is in no test
    for name in ("recall@2", "mrr@2", "ndcg@2"):
        assert result[f"user_activity/0/{name}"] == result[f"user_activity/worst/{name}"]
        assert result[f"user_activity/0/{name}"] == result[name]


def test_of_a_column_of_the_rows(toy):
    """The targets of day x alone: a's r, b's s; of day y: a's q, c's p and t."""
    parts = {
        "train": "a p x,a r x,b p x,b q y,c q y,d p x,d s x,d t x,d v x",
        "valid": "a s x,b r x,c r x",
        "test": "a q y,a r x,b s x,c p y,c t y",
    }
    header = "user_id item_id day"
    result = toy(parts, header=header, eval_groups=["day"], **KEYS).of_test()
    assert result["day/x/mrr@2"] == pytest.approx((1 + 1 / 2) / 2)
    assert result["day/y/mrr@2"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert result["day/y/recall@2"] == pytest.approx((1 + 1 / 2) / 2)
    assert result["day/worst/mrr@2"] == result["day/y/mrr@2"]


def test_of_time_by_the_times_of_training(toy):
    """Training times 1..4 are cut at 3; the test's lie before, between and after."""
    parts = {
        "train": "a p 1,a r 2,b p 3,b q 4",
        "valid": "a v 9,b r 9",
        "test": "a q 0,b s 2.5,b t 100",
    }
    header = "user_id item_id timestamp:float"
    keys = {"TIME_FIELD": "timestamp", "eval_groups": ["time"], "eval_n_groups": 2}
    scores = {user: SCORES[user] for user in "ab"}
    run = toy(parts, scores, header=header, **keys, **KEYS)
    (grouping,) = run.trainer.evaluation.groupings(run.trainer)
    assert grouping.of(run.test._dataset.inter_feat).tolist() == [0, 0, 1]
    result = run.of_test()
    assert result["time/1/mrr@2"] == 1.0  # b ranks t first
    assert result["time/0/mrr@2"] == pytest.approx((1 + 1 / 2) / 2)


def test_of_a_number_of_the_users_and_of_their_tokens(tiny):
    """checkerboard: each group's metric is that of an evaluation of its users alone."""
    run = tiny(
        "BPR",
        eval_groups=["age_group"],
        load_col={"inter": ["user_id", "item_id", "timestamp"], "user": ["user_id", "age_group"]},
        metric_decimal_place=6,
    )
    trainer = run.fit(saved=False)
    result = trainer.evaluate(run.test, load_best_model=False)
    feature = run.dataset.user_feat["age_group"]
    part = trainer.evaluation._part(trainer, run.test)
    user = torch.as_tensor(run.test.uid_list)[part.rows]
    names = run.dataset.field2id_token["age_group"]
    found = {str(names[g]): int((feature[user] == g).sum()) for g in feature[user].unique()}
    assert len(found) > 1
    total = sum(n * result[f"age_group/{g}/recall@10"] for g, n in found.items()) / len(user)
    assert total == pytest.approx(result["recall@10"], abs=1e-5)


def test_of_labelled_rows(tiny):
    """AUC of the rows of each group, against scikit-learn."""
    from sklearn.metrics import roc_auc_score

    run = tiny(
        "DeepFM",
        "two_worlds",
        benchmark_filename=["train", "valid", "test"],
        load_col=None,
        eval_args={"mode": "labeled"},
        metrics=["AUC", "LogLoss"],
        valid_metric="AUC",
        train_neg_sample_args=None,
        eval_groups=["user_activity"],
        eval_n_groups=2,
        metric_decimal_place=6,
        epochs=1,
    )
    trainer = run.fit(saved=False)
    result = trainer.evaluate(run.test, load_best_model=False)
    rows = run.test._dataset.inter_feat
    trainer.model.eval()
    score = trainer.model.predict(run.test._dataset.join(rows).to("cpu")).detach()
    (grouping,) = trainer.evaluation.groupings(trainer)
    group = grouping.code[rows[run.dataset.uid_field]]
    label = rows[run.config["LABEL_FIELD"]]
    for g in (0, 1):
        expected = roc_auc_score(label[group == g], score[group == g])
        assert result[f"user_activity/{g}/auc"] == pytest.approx(expected, abs=1e-5)
    losses = [result[f"user_activity/{g}/logloss"] for g in (0, 1)]
    assert result["user_activity/worst/logloss"] == max(losses)
    assert result["auc"] == pytest.approx(roc_auc_score(label, score), abs=1e-5)


def test_of_a_single_labelled_row_by_hand(toy):
    """tv is one row, of label 1 and score 0.25; phone has labels 1 0 1, scores 0.9 0.2 0.6.

    A single row has no AUC, as it needs both labels; the worst is of the groups that have one.
    """
    parts = {
        "train": "a p 1 phone,b p 1 phone,b q 0 phone,c q 1 tv,c r 0 tv",
        "valid": "a s 1 phone,b t 0 phone",
        "test": "a q 1 phone,a r 0 phone,b s 1 phone,c t 1 tv",
    }
    scores = {"a": {"q": 0.9, "r": 0.2}, "b": {"s": 0.6}, "c": {"t": 0.25}}
    run = toy(
        parts,
        scores,
        header="user_id item_id label:float device",
        eval_args={"mode": "labeled"},
        eval_groups=["device"],
        metrics=["AUC", "LogLoss", "MAE", "RMSE"],
        valid_metric="AUC",
    )
    result = run.of_test()
    phone = {
        "auc": 1.0,
        "logloss": -(log(0.9) + log(0.8) + log(0.6)) / 3,
        "mae": (0.1 + 0.2 + 0.4) / 3,
        "rmse": sqrt((0.01 + 0.04 + 0.16) / 3),
    }
    tv = {"auc": nan, "logloss": log(4), "mae": 0.75, "rmse": 0.75}
    for group, expected in (("phone", phone), ("tv", tv), ("worst", {**tv, "auc": 1.0})):
        found = {name: result[f"device/{group}/{name}"] for name in expected}
        assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)
    assert result["mae"] == pytest.approx((0.1 + 0.2 + 0.4 + 0.75) / 4, abs=1e-5)


@pytest.mark.parametrize("balanced, groups", [(False, {"niche"}), (True, {"0", "1"})])
def test_groups_of_users_by_their_taste(balanced, groups, tiny):
    """On checkerboard nobody has more than 60 % of popular items, so that there is one group."""
    keys = {"environment_source": "user_group", "n_environments": 2, "environment_balanced": True}
    run = tiny("GroupDRO", eval_groups=["environment" if balanced else "user_group"], **keys)
    result = run.fit(saved=False).evaluate(run.test, load_best_model=False)
    assert {name.split("/")[1] for name in result if "/" in name} == groups | {"worst"}


def test_environments_are_those_that_the_model_trains_on(tiny):
    keys = {"environment_source": "user_activity", "n_environments": 2}
    run = tiny("GroupDRO", eval_groups=["environment"], **keys)
    trainer = run.fit(saved=False)
    (grouping,) = trainer.evaluation.groupings(trainer)
    rows = run.train._dataset.inter_feat
    assert torch.equal(grouping.of(rows), run.model.environments.environment)
    assert "environment/worst/recall@10" in trainer.evaluate(run.test, load_best_model=False)


def test_the_model_may_be_selected_by_the_worst_group(tiny):
    run = tiny(
        "BPR", eval_groups=["item_popularity"], valid_metric="item_popularity/worst/Recall@10"
    )
    trainer = run.fit(saved=False)
    worst = "item_popularity/worst/recall@10"
    assert trainer.best_valid_score == trainer.best_valid_result[worst]
    assert trainer.best_valid_score == min(
        trainer.best_valid_result[f"item_popularity/{g}/recall@10"] for g in (0, 1, 2)
    )


@pytest.mark.parametrize("metric, bigger", [("Recall@10", True), ("GiniIndex@10", False)])
def test_which_way_is_better_is_that_of_the_metric(metric, bigger, tiny):
    keys = {"eval_groups": ["item_popularity"], "metrics": ["Recall", "GiniIndex"]}
    run = tiny("BPR", valid_metric=f"item_popularity/worst/{metric}", **keys)
    assert run.trainer.valid_metric_bigger is run.config["valid_metric_bigger"] is bigger


def test_a_score_that_is_not_there_is_named():
    assert score_of({"Day/x/MRR@2": 0.5, "mrr@2": 1.0}, "day/x/mrr@2") == 0.5
    with pytest.raises(ConfigError, match="'day/z/mrr@2' is not among the results"):
        score_of({"day/x/mrr@2": 0.5}, "day/z/mrr@2")


@pytest.mark.parametrize(
    "groups, sentence",
    [
        (["populrity"], "token or float column that is loaded, got 'populrity'"),
        (["timestam"], "did you mean timestamp"),
        (["user_id"], "'user_id' has .* values, which is more than 50"),
        (["environment"], "got environment_source None"),
        (["time", "time"], "must be a list of different names"),
        ([3], "must be a list of different names"),
    ],
)
def test_groups_that_cannot_be_made_are_refused(groups, sentence, tiny):
    with pytest.raises(ConfigError, match=sentence):
        run = tiny("BPR", eval_groups=groups)
        run.trainer.prepare_evaluation(run.train, run.valid, {}, [run.test])


def test_a_group_of_valid_metric_that_there_is_not(tiny):
    keys = {"valid_metric": "item_popularity/7/Recall@10", "eval_groups": ["item_popularity"]}
    run = tiny("BPR", **keys)
    with pytest.raises(
        ConfigError, match="names the group '7' of item_popularity, which has 0, 1, 2"
    ):
        run.trainer.prepare_evaluation(run.train, run.valid, {}, [run.test])


@pytest.mark.parametrize(
    "groups, words",
    [
        ("day", "the 2 different values .*, got eval_n_groups=3; write 2 or less"),
        ("user_activity", "the 4 different values .*, got eval_n_groups=9; write 4 or less"),
    ],
)
def test_too_many_groups_are_refused_by_the_name_of_their_key(groups, words, toy):
    parts = {
        "train": "a p 1,a r 2,b p 2,b q 1,c q 1,d s 1",
        "valid": "a v 1,b r 2",
        "test": "a q 1",
    }
    n = int(words.partition("groups=")[2][0])
    keys = {"eval_groups": [groups], "eval_n_groups": n, **KEYS}
    with pytest.raises(ConfigError, match=words):
        toy(parts, {"a": {}}, header="user_id item_id day:float", **keys).of_test()
