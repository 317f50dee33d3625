"""Metrics of each user: by hand, as what RecBole takes the mean of, and as a file."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_adv import run_recbole_adv
from recbole_adv.errors import ConfigError, DataError
from recbole_adv.evaluation.user_metrics import FILE, load, save, table_of_users


def test_by_hand(toy):
    """The test of the conftest: a is shown q (a hit) and s, b is shown t and s, c is shown v and t."""
    run = toy(save_user_metrics=True, topk=[1, 2])
    result = run.of_test()
    found = run.trainer.evaluation.of_users
    # a: targets q, r, both ranked (r leaks from training and is not hidden): r > q > s.
    # b: target s; t > s. c: targets p, t; v > t > s > p.
    assert found.loc[["a", "b", "c"], "recall@2"].tolist() == [1.0, 1.0, 0.5]
    assert found.loc[["a", "b", "c"], "recall@1"].tolist() == [0.5, 0.0, 0.0]
    assert found.loc[["a", "b", "c"], "mrr@2"].tolist() == [1.0, 0.5, 0.5]
    second = 1 / math.log2(3)
    expected = [1.0, second, second / (1 + second)]
    assert found.loc[["a", "b", "c"], "ndcg@2"].tolist() == pytest.approx(expected)
    assert found.mean().to_dict() == pytest.approx(result, abs=1e-6)


def test_validation_leaves_the_table_of_the_test(toy):
    run = toy(save_user_metrics=True)
    run.of_test()
    before = run.trainer.evaluation.of_users
    run.trainer.evaluate(run.valid, load_best_model=False)
    assert run.trainer.evaluation.of_users is before


def test_of_several_rows_of_a_user_there_is_the_mean():
    table = table_of_users(np.array(["u", "v", "u"]), {"mrr@5": np.array([1.0, 0.5, 0.0])})
    assert table["mrr@5"].to_dict() == {"u": 0.5, "v": 0.5}


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_a_run_keeps_every_user_of_every_test(model, settings_of):
    settings = settings_of(model, epochs=1, save_user_metrics=True, metric_decimal_place=7)
    if model == "BPR":
        settings |= {
            "shift_split": "popularity",
            "test_sets": {"id": "test_id", "ood": "test_shifted"},
        }
    done = run_recbole_adv(model, "checkerboard", config_dict=settings)
    tables = load(Path(done["run_dir"]))
    assert set(tables) == ({"", "id", "ood"} if model == "BPR" else {""})
    for name, table in tables.items():
        prefix = f"{name}/" if name else ""
        means = {f"{prefix}{metric}": value for metric, value in table.mean().items()}
        assert means == pytest.approx({k: done["test_result"][k] for k in means}, abs=1e-6)
        assert table.index.is_unique and len(table) > 50


def test_without_the_key_there_is_no_file(settings_of):
    done = run_recbole_adv("BPR", "checkerboard", config_dict=settings_of("BPR", epochs=1))
    assert not Path(done["run_dir"], FILE).exists() and load(Path(done["run_dir"])) == {}


def test_labelled_rows_have_no_users(settings_of):
    settings = settings_of("BPR", save_user_metrics=True, metrics=["AUC"], valid_metric="AUC")
    settings["eval_args"] = {"mode": "labeled"}
    with pytest.raises(ConfigError, match="save_user_metrics is about rankings"):
        run_recbole_adv("BPR", "checkerboard", config_dict=settings)


def test_names_survive_the_file(tmp_path):
    table = pd.DataFrame({"ndcg@10": [0.25, 1.0]}, index=["ü/1", "<b>"])
    save(tmp_path, {"": table, "test/id": table})
    found = load(tmp_path)
    assert list(found) == ["", "test/id"]
    pd.testing.assert_frame_equal(
        found["test/id"], table, check_index_type=False, check_column_type=False
    )


@pytest.mark.parametrize("content", [b"", b"no file of numpy", b"PK\x03\x04 broken"])
def test_a_broken_file_is_one_sentence(content, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataError, match="holds no metrics of users"):
        load(tmp_path)


def test_objects_are_not_loaded(tmp_path):
    np.savez(
        tmp_path / FILE, **{"/users": np.array([object()]), "/metrics": ["a"], "/values": [[1]]}
    )
    with pytest.raises(DataError, match="holds no metrics of users"):
        load(tmp_path)
