"""Means and standard errors over seeds."""

from __future__ import annotations

import json
from math import isnan, sqrt
from pathlib import Path

import pandas as pd
import pytest

from recbole_adv.cli import main
from recbole_adv.errors import CheckpointError, ConfigError, DataError
from recbole_adv.evaluation.summary import mean_and_error, means_and_errors
from recbole_adv.seeds import resume_seeds, run_seeds, seeds_of


def test_by_hand():
    """2, 4 and 9: mean 5, squares of the differences 9 + 1 + 16, over 2, then over 3."""
    assert mean_and_error([2, 4, 9]) == pytest.approx((5, sqrt(26 / 2) / sqrt(3)))
    mean, error = mean_and_error([3.0])
    assert mean == 3 and isnan(error)
    results = [{"a": 1.0, "b": 2.0}, {"b": 4.0}]
    assert means_and_errors(results) == {"b": {"mean": 3.0, "standard_error": pytest.approx(1.0)}}


def test_which_seeds():
    assert seeds_of("3", 2020) == [2020, 2021, 2022]
    assert seeds_of("7,3", 2020) == [7, 3]
    for wrong in ("1", "0", "-2", "a", "1,1", "2.5", ""):
        with pytest.raises(ConfigError, match="at least 2, or different seeds such as 1,2,3"):
            seeds_of(wrong, 0)


def test_each_seed_has_its_run_and_the_whole_its_mean(settings_of):
    result = run_seeds("5,6", "BPR", "checkerboard", config_dict=settings_of("BPR", epochs=1))
    folder = Path(result["run_dir"])
    one = {s: json.loads((folder / f"seed-{s}" / "result.json").read_text()) for s in (5, 6)}
    ndcg = [one[s]["test_result"]["ndcg@10"] for s in (5, 6)]
    assert ndcg[0] != ndcg[1]
    saved = json.loads((folder / "result.json").read_text())
    assert saved == {key: value for key, value in result.items() if key != "run_dir"}
    assert saved["seeds"] == [5, 6]
    figures = saved["test_result"]["ndcg@10"]
    assert figures["mean"] == pytest.approx(sum(ndcg) / 2)
    assert figures["standard_error"] == pytest.approx(abs(ndcg[0] - ndcg[1]) / 2)
    table = pd.read_csv(folder / "seeds.csv")
    assert table["seed"].tolist() == [5, 6]
    assert table["test/ndcg@10"].tolist() == ndcg
    assert table["valid/mrr@10"].tolist() == [one[s]["best_valid_result"]["mrr@10"] for s in (5, 6)]


def test_going_on_runs_what_is_missing_only(settings_of, monkeypatch, capsys):
    settings = settings_of("BPR", epochs=2)
    words = [f"--{key}={value}" for key, value in settings.items()]
    command = ["run", "-m", "BPR", "-d", "checkerboard", "--seeds=3", "--run_dir=all", *words]
    from recbole_adv import seeds

    real, started = seeds.run_recbole_adv, []

    def stopping(**arguments):
        started.append(arguments["resume"] or arguments["config_dict"]["seed"])
        if len(started) == 2:
            raise KeyboardInterrupt
        return real(**arguments)

    monkeypatch.setattr(seeds, "run_recbole_adv", stopping)
    assert main(command) == 130
    assert started == [2020, 2021]
    assert main(["run", "--resume", "all"]) == 0
    assert started == [2020, 2021, 2021, 2022]
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["seeds"] == [2020, 2021, 2022]
    whole = run_seeds("3", "BPR", "checkerboard", config_dict=settings)
    assert shown["test_result"] == whole["test_result"]
    (Path("all") / "seed-2022" / "result.json").unlink()  # its last epoch was written: it goes on
    assert resume_seeds("all")["test_result"] == whole["test_result"]
    assert started[-1] == str(Path("all").absolute() / "seed-2022")


def test_a_seed_without_a_checkpoint_is_run_anew(settings_of):
    settings = settings_of("BPR", epochs=2, run_dir="all")
    result = run_seeds("2", "BPR", "checkerboard", config_dict=settings)
    own = Path("all/seed-2021")
    for name in ("result.json", "last.pth", "model.pth"):
        (own / name).unlink()
    assert resume_seeds("all")["test_result"] == result["test_result"]
    lines = (own / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]


def test_mistakes(settings_of, capsys):
    settings = settings_of("BPR", epochs=1)
    with pytest.raises(ConfigError, match="so that checkpoint_dir 'here' cannot be used"):
        run_seeds("2", "BPR", "checkerboard", config_dict={**settings, "checkpoint_dir": "here"})
    run_seeds("2", "BPR", "checkerboard", config_dict={**settings, "run_dir": "there"})
    with pytest.raises(ConfigError, match="holds runs with several seeds; write --resume="):
        run_seeds("2", "BPR", "checkerboard", config_dict={**settings, "run_dir": "there"})
    assert main(["run", "--resume", "there", "--epochs=3"]) == 2
    assert "go on as they are, got further settings" in capsys.readouterr().err
    assert main(["run", "-m", "BPR", "-d", "checkerboard", "--seeds=2", "--resume=x"]) == 2
    assert "--seeds starts new runs, got --resume 'x'" in capsys.readouterr().err
    Path("there/seeds.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no list of seeds"):
        resume_seeds("there")


def test_nothing_is_left_of_runs_that_could_not_begin(settings_of):
    settings = settings_of("BPR", run_dir="new/all", data_path="nowhere")
    with pytest.raises(DataError):
        run_seeds("2", "BPR", "no_such_data", config_dict=settings)
    assert not Path("new").exists()
