"""What is wrong with the keys of the evaluation is said before any data are loaded."""

from __future__ import annotations

import pytest
from recbole.config import Config as RecBoleConfig

from recbole_adv import Config
from recbole_adv.errors import ConfigError

LABELLED = {"metrics": ["AUC"], "valid_metric": "AUC", "eval_args": {"mode": "labeled"}}


@pytest.mark.parametrize(
    "keys, sentence",
    [
        ({"eval_memory_mb": 0}, "eval_memory_mb must be a whole number >= 1 or None, got 0"),
        ({"eval_n_groups": 1}, "eval_n_groups must be a whole number >= 2, got 1"),
        ({"eval_groups": "time"}, "eval_groups must be a list, got 'time'"),
        ({"test_sets": ["ood"]}, "test_sets must be a dict or None, got"),
        ({"test_pool": 5}, "test_pool must be a word or None, got 5"),
        ({"test_pool": "no.inter"}, "there is no file 'no.inter', which test_pool names"),
        ({"eval_mask": "items"}, "there is no file 'items', which eval_mask names"),
        ({"popularity_metrics": True, **LABELLED}, "popularity_metrics is about rankings"),
        ({"eval_memory_mb": 5, **LABELLED}, "eval_memory_mb is about rankings"),
        (
            {"eval_memory_mb": 5, "eval_args": {"mode": "uni10"}},
            "ranking of all items, got .*uni10",
        ),
        (
            {"eval_groups": ["time"], "metrics": ["AUC"], "valid_metric": "AUC"}
            | {"eval_args": {"mode": "uni10"}},
            "need labelled rows, got eval_args mode",
        ),
        ({"valid_metric": "time/worst/MRR@10"}, "must begin with a group of eval_groups"),
        (
            {"valid_metric": "time/MRR@10", "eval_groups": ["time"]},
            "write time/worst",
        ),
        ({"valid_metric": "valid_id/MRR@10"}, "or with a further validation set, got 'valid_id'"),
        ({"valid_metric": "time/worst/MRR@3", "eval_groups": ["time"]}, "not among the metrics"),
        ({"eval_args": {"mode": "labeled"}}, "are of rankings, got eval_args mode 'labeled'"),
        ({"eval_args": {"mode": {"valid": "labeled", "test": "full"}}}, "rankings.*'labeled'"),
        ({"eval_args": {"mode": {"valid": "uni5", "test": "labeled"}}}, "rankings.*'labeled'"),
        (
            {"eval_memory_mb": 5, "eval_args": {"mode": {"test": "uni10"}}},
            "ranking of all items, got eval_args mode 'uni10'",
        ),
        ({"eval_maks": "x"}, "there is no key 'eval_maks'.*did you mean eval_mask"),
    ],
)
def test_refused(keys, sentence, settings_of):
    if keys.get("eval_args") == {"mode": "labeled"}:
        keys = {**keys, "train_neg_sample_args": None}
    with pytest.raises(ConfigError, match=sentence):
        Config("DeepFM", "checkerboard", config_dict=settings_of("DeepFM", **keys))


def test_a_pool_for_one_phase_needs_the_full_ranking_of_that_phase_only(settings_of, tmp_path):
    (tmp_path / "pool.inter").write_text("user_id:token\titem_id:token\n1\t1\n")
    keys = {"test_pool": "pool.inter", "eval_args": {"mode": {"valid": "uni10", "test": "full"}}}
    assert Config("BPR", "checkerboard", config_dict=settings_of("BPR", **keys))


def test_a_phase_without_a_mode_has_that_of_the_other(settings_of):
    """As RecBole's Config has it."""
    keys = {"eval_args": {"mode": {"valid": "full"}}}
    stock = RecBoleConfig("BPR", "checkerboard", config_dict=settings_of("BPR", **keys))
    assert stock["eval_args"]["mode"] == {"valid": "full", "test": "full"}
    settings = settings_of("BPR", eval_memory_mb=5, **keys)
    assert Config("BPR", "checkerboard", config_dict=settings)["eval_args"] == stock["eval_args"]


def test_labelled_rows_may_be_tested_after_a_validation_on_samples(settings_of):
    keys = {"metrics": ["AUC"], "valid_metric": "AUC"}
    keys["eval_args"] = {"mode": {"valid": "uni5", "test": "labeled"}}
    assert Config("DeepFM", "checkerboard", config_dict=settings_of("DeepFM", **keys))
