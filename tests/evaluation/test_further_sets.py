"""Several validations and tests in one run; only the first validation, or the one named, selects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recbole_adv import run_recbole_adv
from recbole_adv.errors import ConfigError, DataError
from recbole_adv.evaluation.user_metrics import load

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


def test_without_a_test_of_its_own_the_best_weights_are_tested_on_a_file(
    reverses, settings_of, pairs_file, tmp_path
):
    """Each user's last row is validation, nothing is test.

    Given scores: a hides p, ranks r q s t v, valid q second; b hides q, ranks p t s r v, valid r not;
    c hides s t p, ranks v r q, valid v first. Reversed b's valid alone is second, so epoch 1 is best.
    Then a ranks r first without q, and b p without r; reversed neither is among two.
    """
    (tmp_path / "toy").mkdir()
    rows = "a p 1,a q 2,b q 1,b r 2,c s 1,c t 2,c p 3,c v 4"
    pairs_file("toy/toy.inter", rows, "user_id item_id timestamp:float")
    settings = settings_of(
        reverses,
        data_path=str(tmp_path),
        metrics=["MRR"],
        topk=[2],
        valid_metric="MRR@2",
        eval_args={"split": {"LS": "valid_only"}, "order": "TO", "mode": "full"},
        test_sets={"ood": pairs_file("ood.inter", "a r,b p")},
        save_user_metrics=True,
    )
    done = run_recbole_adv(reverses, "toy", config_dict=settings)
    assert done["best_valid_result"] == {"mrr@2": 0.5}  # of 1/2, 0 and 1
    assert done["test_result"] == {"ood/mrr@2": 1.0}
    last = run_recbole_adv(reverses, "toy", config_dict=settings, saved=False)
    assert last["test_result"] == {"ood/mrr@2": 0.0}
    (name, table), *more = load(Path(done["run_dir"])).items()
    assert name == "ood" and not more
    assert table["mrr@2"].to_dict() == {"a": 1.0, "b": 1.0}


COLUMNS = {
    "train": "a p 1 x,a r 2 x,b p 3 y,b q 4 y",
    "valid": "a v 9 x,b r 9 y",
    "test": "a q 1 x,b s 2 y,b t 1 y",
}


@pytest.mark.parametrize(
    "keys, sentence",
    [
        ({"eval_groups": ["time"]}, "'time' in eval_groups needs the column 'timestamp' of each"),
        (
            {"eval_groups": ["day"]},
            "'day' in eval_groups .* got rows of user_id, item_id .*leave it",
        ),
        (
            {"test_pool": "day"},
            "test_pool 'day' is no file, .* which have user_id, item_id .*file of",
        ),
    ],
)
def test_a_file_has_no_columns_for_groups_and_pools(keys, sentence, toy, pairs_file):
    header = "user_id item_id timestamp:float day"
    keys = {**keys, "TIME_FIELD": "timestamp", "eval_n_groups": 2, **RANKED}
    assert toy(COLUMNS, {}, header=header, **keys).of_test()
    with pytest.raises(ConfigError, match=sentence):
        ood = pairs_file("ood.inter", "a t,b t")
        toy(COLUMNS, {}, header=header, test_sets={"ood": ood}, **keys)


@pytest.mark.parametrize(
    "mode, sentence",
    [
        ("full", "'day', got a ranking of all items, .*leave day out of load_col, or .*'uni100'"),
        ("uni2", "'day', got a file of test_sets, which has only users and items; leave day out"),
    ],
)
def test_a_model_that_reads_a_column_that_is_not_there(
    mode, sentence, settings_of, pairs_file, tmp_path
):
    (tmp_path / "toy").mkdir()
    for part, rows in COLUMNS.items():
        pairs_file(f"toy/toy.{part}.inter", rows, "user_id item_id timestamp:float day")
    settings = settings_of(
        "DeepFM",
        data_path=str(tmp_path),
        benchmark_filename=list(COLUMNS),
        load_col={"inter": ["user_id", "item_id", "day"]},
        eval_args={"mode": mode},
        **{**RANKED, "topk": [2]},
    )
    if mode != "full":  # what the sentence about a ranking says is true
        assert run_recbole_adv("DeepFM", "toy", config_dict=settings)["test_result"]
        settings["test_sets"] = {"ood": pairs_file("ood.inter", "a t,b t")}
    with pytest.raises(ConfigError, match=sentence):
        run_recbole_adv("DeepFM", "toy", config_dict=settings)
