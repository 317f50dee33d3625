"""Rankings in full, in pools and under masks, against numbers worked by hand."""

from __future__ import annotations

from math import log2

import pytest

from recbole_adv.errors import ConfigError, DataError


def test_the_full_ranking_is_that_of_the_official_protocols(toy):
    """Training and validation pairs are hidden, but a target is not, though it is one of them.

    a: hidden p s; ranks r q t v -> hits at 1, 2.  b: hidden p q r; ranks t s v -> hit at 2.
    c: hidden q r; ranks v t s p -> hit at 2 of its two targets p, t.
    """
    result = toy(eval_memory_mb=1).of_test()
    dcg = 1 + 1 / log2(3)
    expected = {
        "recall@2": (1 + 1 + 1 / 2) / 3,
        "ndcg@2": (1 + 1 / log2(3) + 1 / log2(3) / dcg) / 3,
        "hit@2": 1.0,
        "mrr@2": (1 + 1 / 2 + 1 / 2) / 3,
        "precision@2": (1 + 1 / 2 + 1 / 2) / 3,
    }
    assert result == pytest.approx(expected, abs=1e-6)
    assert result == toy().of_test()  # RecBole's own evaluation


def test_only_the_pool_is_ranked(toy, pairs_file):
    """a: pool q t v (its target r is none: it is not in the pool) -> q first.
    b: pool v s t -> t s: hit at 2.  c: pool s q p: q hidden, s p -> hit at 2 of one target.
    d has a pool and no target."""
    pool = pairs_file("pool.inter", "b v,a q,a t,a v,b s,b t,c s,c q,c p,d q,d r")
    result = toy(test_pool=pool, metrics=["Recall", "NDCG", "MRR"]).of_test()
    expected = {"recall@2": 1.0, "ndcg@2": (1 + 2 / log2(3)) / 3, "mrr@2": (1 + 1 / 2 + 1 / 2) / 3}
    assert result == pytest.approx(expected, abs=1e-6)


def test_a_list_longer_than_the_pool_gives_no_hits_for_what_is_not_ranked(toy, pairs_file):
    """b's pool is s alone; topk 5 of 6 items: hidden ones fill the list and never count."""
    pool = pairs_file("pool.inter", "b s")
    run = toy(test_pool=pool, metrics=["Precision", "NDCG"], topk=[5], valid_metric="NDCG@5")
    assert run.of_test() == pytest.approx({"precision@5": 1 / 5, "ndcg@5": 1.0})


def test_a_target_that_mask_leaks_hides_is_missed_also_in_a_pool(toy, pairs_file):
    """a's target r is a training pair: hidden, still one of two targets."""
    pool = pairs_file("pool.inter", "a q,a r,a t")
    run = toy(test_pool=pool, metrics=["Recall", "NDCG"], mask_leaks=True)
    ideal = 1 + 1 / log2(3)
    assert run.of_test() == pytest.approx({"recall@2": 1 / 2, "ndcg@2": 1 / ideal}, abs=1e-6)


def test_users_whose_targets_are_outside_of_the_pool_are_left_out(toy, pairs_file, caplog):
    """Only b has a target in its pool, behind t."""
    pool = pairs_file("pool.inter", "a t,b s,b t")
    with caplog.at_level("WARNING"):
        result = toy(test_pool=pool, metrics=["MRR"], valid_metric="MRR@2").of_test()
    assert result == {"mrr@2": 0.5}
    assert "4 of 5 targets are not ranked" in caplog.text
    assert "1 of 3 users are evaluated" in caplog.text


def test_a_column_makes_the_pool_and_its_positive_values_the_targets(toy):
    """a: rows q (0) v (1) t (0): q t v -> target v third, no hit.  b: s (1) t (0): t s -> at 2."""
    parts = {
        "train": "a p 1,b p 1,c q 1",
        "valid": "a s 1,b r 1",
        "test": "a q 0,a v 1,a t 0,b s 1,b t 0,c r 0",
    }
    run = toy(
        parts, header="user_id item_id label:float", test_pool="label", metrics=["MRR", "Recall"]
    )
    assert run.of_test() == pytest.approx({"mrr@2": 0.25, "recall@2": 0.5})


def test_masked_items_are_never_ranked(toy, pairs_file):
    """Without t and r: a ranks q v, b ranks s v, c ranks v s p, its targets p."""
    mask = pairs_file("mask.item", "t,r", header="item_id")
    run = toy(eval_mask=mask, metrics=["MRR", "Recall"])
    assert run.of_test() == pytest.approx({"mrr@2": 2 / 3, "recall@2": 2 / 3}, abs=1e-6)


def test_masked_pairs_are_never_ranked_for_their_user(toy, pairs_file):
    """a without r ranks q t v; b without t ranks s v; c as it was, v t s p."""
    mask = pairs_file("mask.inter", "b t,a r")
    run = toy(eval_mask=mask, metrics=["MRR", "Recall"])
    expected = {"mrr@2": (1 + 1 + 1 / 2) / 3, "recall@2": (1 + 1 + 1 / 2) / 3}
    assert run.of_test() == pytest.approx(expected, abs=1e-6)


def test_the_pool_of_the_validation_is_its_own(toy, pairs_file):
    """Valid targets a s, b r, c r; in pool a: s v -> s first; b: r v t -> t r: at 2; c has none."""
    pool = pairs_file("pool.inter", "a s,a v,b r,b v,b t")
    run = toy(valid_pool=pool, metrics=["MRR"], valid_metric="MRR@2")
    valid = run.trainer.evaluate(run.valid, load_best_model=False)
    assert valid == pytest.approx({"mrr@2": 0.75})
    assert run.of_test() == pytest.approx({"mrr@2": 2 / 3}, abs=1e-6)


def test_unknown_names_in_a_pool_are_counted(toy, pairs_file, caplog):
    pool = pairs_file("pool.inter", "b s,b t,b nobody,stranger s")
    with caplog.at_level("WARNING"):
        assert toy(test_pool=pool, metrics=["MRR"], valid_metric="MRR@2").of_test() == {
            "mrr@2": 0.5
        }
    assert "2 of 4 rows name a user or an item that the data do not have" in caplog.text


@pytest.mark.parametrize(
    "pairs, header, part",
    [
        ("x y", "user_id item_id", "none of which has user_id and item_id of 'toy'"),
        ("a t", "user item", "must have the columns user_id, item_id, got 'user', 'item'"),
        ("a t,b t", "user_id item_id", "none of the 5 targets of test is among the items"),
    ],
)
def test_a_pool_that_cannot_be_used_is_refused_before_training(
    pairs, header, part, toy, pairs_file
):
    with pytest.raises(DataError, match=part):
        toy(test_pool=pairs_file("pool.inter", pairs, header))


def test_whole_lists_must_be_full(toy, pairs_file):
    """Coverage of lists that are filled up with hidden items would mean nothing."""
    pool = pairs_file("pool.inter", "b s,a q,a t,c v,c t,c s")
    with pytest.raises(ConfigError, match="a user has 1 items to rank, fewer than topk 2"):
        toy(test_pool=pool, popularity_metrics=True)
    mask = pairs_file("mask.item", "v,t", header="item_id")
    with pytest.raises(ConfigError, match="a user has 1 items to rank"):  # b: s
        toy(eval_mask=mask, metrics=["ItemCoverage"], valid_metric="ItemCoverage@2")


def test_an_item_that_is_hidden_and_masked_is_missing_once(toy, pairs_file):
    """Without p and q, each has three items to rank in the test: a r t v, b s t v and c s t v.

    In validation a has the same, b r s t v and c r s t v. All lists together show r s t v.
    """
    mask = pairs_file("mask.item", "p,q", header="item_id")
    keys = {"eval_mask": mask, "metrics": ["ItemCoverage"]}
    result = toy(topk=[3], valid_metric="ItemCoverage@3", **keys).of_test()
    assert result["itemcoverage@3"] == pytest.approx(4 / 7, abs=1e-6)  # RecBole counts the padding
    with pytest.raises(ConfigError, match="a user has 3 items to rank, fewer than topk 4"):
        toy(topk=[4], valid_metric="ItemCoverage@4", **keys)


def test_a_user_of_several_sequences_has_his_pool_in_each(tiny, tmp_path):
    """Rows of a sequential model are steps: here every test row is ranked within its own target."""
    run = tiny("SASRec", valid_metric="MRR@10")
    rows, dataset = run.test._dataset.inter_feat, run.dataset
    users, items = rows[dataset.uid_field][:5], rows[dataset.iid_field][:5]
    lines = [
        f"{u}\t{i}"
        for u, i in zip(
            dataset.id2token(dataset.uid_field, users), dataset.id2token(dataset.iid_field, items)
        )
    ]
    pool = tmp_path / "pool.inter"
    pool.write_text("user_id:token\titem_id:token\n" + "\n".join(lines) + "\n")
    pooled = tiny("SASRec", test_pool=str(pool), valid_metric="MRR@10")
    result = pooled.trainer.evaluate(pooled.test, load_best_model=False)
    assert result["mrr@10"] == 1.0  # the only item of the pool comes first
    assert result["precision@10"] == 0.1
