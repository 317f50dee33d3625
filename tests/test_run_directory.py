"""A directory belongs to one run, and an interrupted run says how it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recbole_adv import run_recbole_adv
from recbole_adv.cli import main
from recbole_adv.errors import CheckpointError, ConfigError
from recbole_adv.seeds import run_seeds
from recbole_adv.trainer import AdvTrainer


def stop_before_epoch(monkeypatch, number, error=KeyboardInterrupt):
    """Training is interrupted when this epoch begins."""
    real = AdvTrainer._train_epoch

    def stopping(self, train_data, epoch_idx, *arguments, **named):
        if epoch_idx == number:
            raise error
        return real(self, train_data, epoch_idx, *arguments, **named)

    monkeypatch.setattr(AdvTrainer, "_train_epoch", stopping)


@pytest.fixture
def command(settings_of):
    """``command(*more)``: the arguments of a run, logged."""
    words = [
        f"--{key}={value}" for key, value in settings_of("BPR", state="info", epochs=3).items()
    ]
    return lambda *more: ["run", "-m", "BPR", "-d", "checkerboard", *words, *more]


def told(capsys):
    return capsys.readouterr().err.splitlines()[-1].removeprefix("recbole-adv: ")


def test_a_run_is_not_written_over(settings_of):
    given = settings_of("BPR", epochs=1, run_dir="runs/same")
    run_recbole_adv("BPR", "checkerboard", config_dict=given)
    before = {file: file.read_bytes() for file in Path("runs/same").glob("*.*")}
    words = "run_dir 'runs/same' holds a run of BPR; write --resume=runs/same to go on with it, or"
    with pytest.raises(ConfigError, match=words):
        run_recbole_adv("NeuMF", "checkerboard", config_dict=given)
    with pytest.raises(ConfigError, match=words):
        run_seeds("2", "BPR", "checkerboard", config_dict=given)
    assert {file: file.read_bytes() for file in Path("runs/same").glob("*.*")} == before


def test_runs_with_several_seeds_are_not_written_over(settings_of):
    given = settings_of("BPR", epochs=1, run_dir="all")
    run_seeds("2", "BPR", "checkerboard", config_dict=given)
    with pytest.raises(ConfigError, match="run_dir 'all' holds a run of BPR; write --resume=all"):
        run_recbole_adv("BPR", "checkerboard", config_dict=given)


def test_a_run_without_checkpoints_is_not_to_be_resumed(settings_of):
    given = settings_of("BPR", epochs=1, run_dir="one")
    run_recbole_adv("BPR", "checkerboard", config_dict=given, saved=False)
    for file in Path("one").glob("*.pth"):
        file.unlink()
    with pytest.raises(ConfigError, match="'one' holds a run of BPR; write another run_dir, or"):
        run_recbole_adv("BPR", "checkerboard", config_dict=given)
    with pytest.raises(CheckpointError, match="stopped before it wrote a checkpoint, .* anew with"):
        run_recbole_adv(resume="one")


def test_the_directory_is_named_first(command, capsys):
    assert main(command("--run_dir=one")) == 0
    first = Path("one/run.log").read_text().splitlines()[0]
    assert f"run directory: {Path('one').absolute()}" in first


@pytest.mark.parametrize("where", [["--run_dir=a/one"], ["--run_dir=a/one", "--checkpoint_dir=b"]])
def test_an_interrupt_says_how_to_go_on(where, command, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        stop_before_epoch(patch, 1)
        assert main(command(*where)) == 130
    assert told(capsys) == "interrupted; --resume=a/one goes on from the last epoch that ended"
    assert main(["run", "--resume=a/one"]) == 0
    lines = Path("a/one/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]


def test_an_interrupt_before_anything_can_go_on(command, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        stop_before_epoch(patch, 0)
        assert main(command("--run_dir=one")) == 130
    assert told(capsys) == "interrupted before the first epoch ended; give the command again"
    assert not Path("one").exists()
    assert main(command("--run_dir=one")) == 0
    with monkeypatch.context() as patch:
        stop_before_epoch(patch, 1)
        assert main(command("--run_dir=two", "--checkpoint_interval=0", "--eval_step=3")) == 130
    words = "interrupted before a checkpoint was written; start anew with another run_dir"
    assert told(capsys) == words


def test_an_interrupt_of_several_seeds(command, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        stop_before_epoch(patch, 1)
        assert main(command("--seeds=2", "--run_dir=all")) == 130
    assert told(capsys) == "interrupted; --resume=all goes on with the seeds that are missing"
    with monkeypatch.context() as patch:
        stop_before_epoch(patch, 0)
        assert main(command("--seeds=2", "--run_dir=none")) == 130
    assert told(capsys) == "interrupted before the first epoch ended; give the command again"
    assert main(["run", "--resume=all"]) == 0


def test_a_run_that_was_killed_in_its_first_epoch(command, capsys, monkeypatch):
    """What a kill leaves: the directory as it was, without a checkpoint."""
    with monkeypatch.context() as patch:
        stop_before_epoch(patch, 0)
        patch.setattr("recbole_adv.run_directory.RunDirectory._remove", lambda *arguments: None)
        assert main(command("--run_dir=one")) == 130
    assert Path("one/config.yaml").exists()
    capsys.readouterr()
    assert main(["run", "--resume", "one"]) == 2
    assert told(capsys) == (
        "the run in 'one' stopped before its first epoch ended, so that there is nothing to go on "
        "from; start it anew by its command, or with -c one/config.yaml"
    )
    assert main(["run", "-c", "one/config.yaml"]) == 0
    assert main(command("--run_dir=one")) == 0
    results = [json.loads(file.read_text()) for file in (*Path("runs").glob("*/result.json"),)]
    assert results == [json.loads(Path("one/result.json").read_text())]
