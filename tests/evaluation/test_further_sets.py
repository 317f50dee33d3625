"""Several validations and tests in one run; only the first validation, or the one named, selects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recbole_adv import run_recbole_adv
from recbole_adv.errors import ConfigError, DataError

RANKED = {"metrics": ["MRR"], "valid_metric": "MRR@2"}


def test_a_file_is_a_test_set_by_hand(toy, pairs_file):
    """a ranks r q t v -> v fourth; b ranks t s v -> t first: its valid r stays hidden."""
    ood = pairs_file("ood.inter", "a v,b t,nobody p")
    run = toy(test_sets={"ood": ood}, **RANKED)
    result = run.trainer.evaluate(run.tests["ood"], load_best_model=False)
    assert result == {"mrr@2": 0.5}


def test_a_file_is_checked_for_leaks(toy, pairs_file, caplog):
    """b q is a training pair; dropping it leaves a v."""
    ood = pairs_file("ood.inter", "a v,b q")
    with caplog.at_level("WARNING"):
        toy(test_sets={"ood": ood}, **RANKED)
    assert "1 of 2 rows of ood (50.0 %) are user-item pairs of train" in caplog.text
    run = toy(test_sets={"ood": ood}, drop_leaks=True, **RANKED)
    assert list(run.tests["ood"].uid_list) == [run.dataset.token2id("user_id", "a")]


def test_parts_of_the_data_under_names_of_their_own(toy):
    """The files after the third are parts; without test_sets all of them are tests."""
    parts = {
        "train": "a p,a r,b p,b q,c q,d p,d s,d t,d v",
        "valid": "a s,b r,c r",
        "test": "a q,b s",
        "late": "a t,b t",
        "valid_late": "c p",
    }
    run = toy(parts, **RANKED)
    assert list(run.tests) == ["late"]
    assert list(run.trainer.further_valid_data) == ["valid_late"]
    run = toy(parts, test_sets={"first": "test", "second": "late"}, **RANKED)
    assert list(run.tests) == ["first", "second"]
    assert run.tests["first"] is run.test
    score, result = run.trainer._valid_epoch(run.valid)
    # c ranks v t s p, without its own p hidden: not among two. a: q? its s is behind q, t ...
    assert result["valid_late/mrr@2"] == 0.0
    assert score == result["mrr@2"]


def test_the_names_of_the_results(settings_of, tmp_path):
    """In result.json and metrics.jsonl; nothing of the tests is in the latter."""
    data = Path(settings_of("BPR")["data_path"], "checkerboard", "checkerboard.inter")
    ood = tmp_path / "ood.inter"
    ood.write_text("\n".join(data.read_text().splitlines()[:30]) + "\n")
    settings = settings_of(
        "BPR",
        shift_split="popularity",
        shift_valid=["id", "shifted"],
        valid_metric="valid_shifted/MRR@10",
        test_sets={"id": "test_id", "seen": str(ood)},
        epochs=2,
        state="info",
    )
    result = run_recbole_adv("BPR", "checkerboard", config_dict=settings)
    names = {"recall@10", "mrr@10", "ndcg@10", "hit@10", "precision@10"}
    sets = {f"{s}/{name}" for s in ("id", "seen") for name in names}
    assert set(result["test_result"]) == names | sets
    run_dir = Path(result["run_dir"])
    saved = json.loads((run_dir / "result.json").read_text())
    assert saved["test_result"] == result["test_result"]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert set(line["valid"]) == names | {f"valid_shifted/{name}" for name in names}
        assert line["valid_score"] == line["valid"]["valid_shifted/mrr@10"]
    assert result["best_valid_score"] == max(line["valid_score"] for line in lines)
    assert "test result on seen" in (run_dir / "run.log").read_text()


@pytest.mark.parametrize(
    "sets, error, sentence",
    [
        ({"ood": "nowhere"}, ConfigError, "neither a file nor a part of the data; the parts are"),
        ({"ood": "train"}, ConfigError, "has no row to test on; the parts with some are test"),
        ({"ood": "no/such.inter"}, ConfigError, "no file 'no/such.inter', which test_sets names"),
        ({"a/b": "test"}, ConfigError, "must have names of letters"),
        ({"valid_2": "test"}, ConfigError, "do not begin with valid"),
        ({"ood": 3}, ConfigError, "must say for 'ood' which part"),
    ],
)
def test_sets_that_there_are_not(sets, error, sentence, toy):
    with pytest.raises(error, match=sentence):
        toy(test_sets=sets, **RANKED)


def test_a_file_may_not_take_the_name_of_a_part(toy, pairs_file):
    with pytest.raises(ConfigError, match="calls a file 'test', which is a part of the data"):
        toy(test_sets={"test": pairs_file("x.inter", "a v")}, **RANKED)


def test_a_file_that_shares_nothing_with_the_data(toy, pairs_file):
    with pytest.raises(DataError, match="none of which has user_id and item_id of 'toy'"):
        toy(test_sets={"ood": pairs_file("x.inter", "x y")}, **RANKED)


def test_a_file_has_no_sequences(tiny, tmp_path):
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\n1\t1\n")
    with pytest.raises(ConfigError, match="can only be ranked, and by a model without sequences"):
        tiny("SASRec", test_sets={"ood": "x.inter"})
