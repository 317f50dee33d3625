"""Data kept for a sweep: the same training as on data loaded afresh, and loaded only once."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from recbole_adv import Config, run_recbole_adv
from recbole_adv.errors import DataError
from recbole_adv.prepared_run import data_and_model, prepared_run
from recbole_adv.sweep import data_cache
from recbole_adv.sweep.data_cache import DataCache, cache_folder, clear_cache

MODELS = {
    "BPR": {},
    "EIIL": {"max_start_epoch": 0, "selection_start_epoch": 0},
    "SASRec": {},
    "DeepFM": {},
    "CKE": {},
    "GroupDRO": {"backbone": "LightGCN"},
}


@pytest.fixture
def cache(tmp_path):
    return DataCache(tmp_path / "outer" / "cache")


@pytest.fixture
def loads(monkeypatch):
    """How often data are loaded."""
    count, load = [], data_cache.load_dataset
    monkeypatch.setattr(data_cache, "load_dataset", lambda c: (count.append(1), load(c))[1])
    return count


def config_of(model, settings, **more):
    return Config(model, "checkerboard", config_dict={**settings, **more}, command_line=())


@pytest.mark.parametrize("model", MODELS)
def test_training_is_bit_for_bit_as_on_fresh_data(model, cache, settings_of, loads, tmp_path):
    settings = settings_of(model, **MODELS[model])
    config_dict = {**settings, "run_dir": str(tmp_path / "fresh")}
    fresh = run_recbole_adv(model, "checkerboard", config_dict=config_dict)
    states = [torch.load(tmp_path / "fresh" / "last.pth", weights_only=True)]
    for name in ("kept", "again"):  # the first keeps, the second finds
        torch.rand(7)  # no random state of before matters
        config = config_of(model, settings, run_dir=str(tmp_path / name))
        with prepared_run(config, load=cache.load) as run:
            score, valid = run.trainer.fit(run.train_data, run.valid_data)
            test = run.trainer.evaluate(run.test_data)
        states.append(torch.load(tmp_path / name / "last.pth", weights_only=True))
        assert (score, valid, test) == (
            fresh["best_valid_score"],
            fresh["best_valid_result"],
            fresh["test_result"],
        )
    assert len(loads) == 1
    for state in states[1:]:
        assert state["state_dict"].keys() == states[0]["state_dict"].keys()
        for key, value in states[0]["state_dict"].items():
            assert torch.equal(state["state_dict"][key], value), key


def test_only_what_the_data_depend_on_loads_them_again(cache, settings_of, loads, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(Path(settings_of("BPR")["data_path"]) / "checkerboard", data / "checkerboard")
    settings = settings_of("BPR", data_path=str(data))
    same = [{}, {"learning_rate": 0.1, "train_batch_size": 64}, {"run_dir": "elsewhere"}]
    same.append({"train_neg_sample_args": {"distribution": "popularity", "sample_num": 2}})
    for more in same:
        cache.load(config_of("BPR", settings, **more))
    assert len(loads) == 1
    cache.load(config_of("BPR", settings, seed=7))  # another split
    cache.load(config_of("BPR", settings, eval_args={"split": {"RS": [0.6, 0.2, 0.2]}}))
    assert len(loads) == 3
    cache.load(config_of("BPR", settings, seed=7))
    cache.load(config_of("GroupDRO", settings, backbone="BPR"))  # on its backbone's data
    assert len(loads) == 3
    os.utime(data / "checkerboard" / "checkerboard.inter", (1, 1))
    cache.load(config_of("BPR", settings))
    assert len(loads) == 4


def test_a_trial_changes_nothing_that_another_sees(cache, settings_of):
    config = config_of("BPR", settings_of("BPR"))
    first = data_and_model(config, cache.load)
    first[1]._dataset.inter_feat.interaction["user_id"].fill_(0)
    second = data_and_model(config, cache.load)
    assert second[1]._dataset.inter_feat["user_id"].max() > 0
    assert second[0].config is config is second[2]._dataset.config


def test_a_split_under_shift_is_kept_as_it_is(cache, settings_of, loads):
    settings = settings_of("BPR", shift_split="popularity", shift_test=["shifted"])
    parts = []
    for load in (None, cache.load, cache.load):
        dataset, train, valid, test, _ = data_and_model(config_of("BPR", settings), load)
        parts.append([p._dataset.inter_feat["item_id"].tolist() for p in (train, valid, test)])
        parts[-1].append(json.dumps(dataset.prepared.record))
    assert parts[0] == parts[1] == parts[2]
    assert len(loads) == 1


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_folder_that_others_may_write_is_refused(cache, settings_of):
    """What is kept is unpickled, which runs whatever somebody else put there."""
    cache.folder.mkdir(parents=True, mode=0o777)
    os.chmod(cache.folder, 0o777)
    with pytest.raises(DataError, match="or others may write there; remove it, or set TMPDIR"):
        cache.load(config_of("BPR", settings_of("BPR")))


def test_the_folder_is_the_sweeps_own_and_goes(cache, settings_of, tmp_path):
    assert cache_folder(tmp_path / "a") == cache_folder(tmp_path / "a")
    assert cache_folder(tmp_path / "a") != cache_folder(tmp_path / "b")
    cache.load(config_of("BPR", settings_of("BPR")))
    assert [f.suffix for f in cache.folder.glob("*.*")] == [".data"]
    assert os.name == "nt" or oct(cache.folder.stat().st_mode)[-3:] == "700"
    clear_cache(cache.folder)
    assert not cache.folder.parent.exists()
