"""nproc and its kin: wrong arguments, and processes that are killed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from recbole_adv import launch, processes
from recbole_adv.cli import main
from recbole_adv.errors import ConfigError, ProcessError

ROOT = Path(__file__).resolve().parents[2]
LONG = [
    "run",
    "-m",
    "BPR",
    "-d",
    "checkerboard",
    f"--data_path={ROOT / 'dataset'}",
    "--epochs=9999",
]
LONG += ["--show_progress=False", "--eval_step=0", "--use_gpu=False", "--run_dir=run"]
DEADLINE = 240  # seconds; on a quiet machine ten are enough


@pytest.fixture
def taken():
    with socket.create_server(("localhost", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--nproc=0"], "nproc must be at least 1, got 0"),
        (["--nproc=-2"], "nproc must be at least 1, got -2"),
        (["--nproc=3", "--world_size=2"], "world_size counts .* at least nproc 3, got 2"),
        (["--nproc=2", "--world_size=0"], "world_size counts .* at least nproc 2, got 0"),
        (["--nproc=2", "--group_offset=1"], r"group_offset must lie in 0\.\.0, .* got 1"),
        (["--nproc=2", "--port=http"], "port must be a number below 65536, got 'http'"),
        (["--nproc=2", "--port=65536"], "port must be a number below 65536, got '65536'"),
        (["--nproc=2", "--port={taken}"], r"cannot listen at localhost:\d+ \(.*\); write another"),
        (["--nproc=2", "--ip=192.0.2.1"], "cannot listen at 192.0.2.1:"),
        (["--nproc=2", "--seeds=3"], "--seeds runs one process at a time, got --nproc 2"),
        (["--nproc=2", "--learning_rate=fast"], "learning_rate"),
        (
            ["--nproc=2", "--save_dataset=True"],
            "save_dataset would write one file from 2 processes",
        ),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, sentence, taken, capfd, monkeypatch):
    """Before a process is started."""
    monkeypatch.setattr(launch.mp, "spawn", lambda *_, **__: pytest.fail("a process started"))
    arguments = [argument.format(taken=taken) for argument in arguments]
    assert main([*LONG, *arguments]) == 2
    said = capfd.readouterr().err
    assert re.search(sentence, said), said
    assert said.count("recbole-adv:") == 1


def test_each_process_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="got 2 processes .* and 1 GPUs; write --gpu_id=0,1"):
        processes.check_gpus(2)
    with pytest.raises(ConfigError, match="GPU of its own"):
        processes.device_of(processes.Place(1, 2, 1), use_gpu=True)
    assert processes.device_of(processes.Place(1, 2, 1), use_gpu=False).type == "cpu"


def test_a_process_learns_its_place(monkeypatch):
    assert processes.place() is None
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert processes.place() is None  # a scheduler of jobs sets these too
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert processes.place() == (3, 4, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert processes.place() is None


@pytest.mark.parametrize("command", [["sweep"], ["run", "--seeds=3"], ["run", "--nproc=2"]])
def test_torchrun_starts_one_run(command, monkeypatch, capfd):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert main([*command, *LONG[1:]]) == 2
    said = capfd.readouterr().err
    assert "got 2 processes of torchrun" in said or "torchrun has started 2 processes" in said


def wait_for(there, process):
    end = time.monotonic() + DEADLINE
    while not there():
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < end, "nothing was trained"
        time.sleep(0.05)


def test_who_loses_another_process_says_so(start, tmp_path):
    """As under torchrun, or on another machine: nobody watches."""
    first, second = start([ROOT / "run_recbole_adv.py", *LONG[1:]], tmp_path)
    try:
        wait_for((tmp_path / "run" / "metrics.jsonl").exists, first)
        second.send_signal(signal.SIGKILL)
        assert first.wait(timeout=DEADLINE) == 2
    finally:
        first.kill(), second.kill()
    said = (tmp_path / "0.err").read_text().splitlines()[-1]
    assert said.startswith("recbole-adv: process 0 of 2 (counted from 0) cannot reach the others")
    assert (tmp_path / "run" / "last.pth").is_file()


def test_a_killed_process_ends_the_run(capfd, monkeypatch):
    """The one who started them says which it was."""
    codes, started = [], []

    def spawn(*arguments, **named):
        context = stock(*arguments, **named)
        started.extend(context.processes)
        return context

    stock = launch.mp.spawn
    monkeypatch.setattr(launch.mp, "spawn", spawn)
    run = threading.Thread(daemon=True, target=lambda: codes.append(main([*LONG, "--nproc=2"])))
    run.start()
    end = time.monotonic() + DEADLINE
    while not Path("run/metrics.jsonl").exists():
        assert run.is_alive() and time.monotonic() < end, "nothing was trained"
        time.sleep(0.05)
    os.kill(started[1].pid, signal.SIGKILL)
    run.join(timeout=DEADLINE)
    assert codes == [2]
    assert not any(process.is_alive() for process in started)
    said = capfd.readouterr().err.splitlines()[-1]
    assert "process 1 of 2 (counted from 0) was killed by SIGKILL, which ended the run" in said


def test_the_result_is_the_first_ones(capfd):
    short = ["--epochs=1" if "epochs" in argument else argument for argument in LONG]
    assert main([*short, "--nproc=2"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["test_result"] and result["run_dir"] == str(Path("run").absolute())
    assert json.loads(Path("run/result.json").read_text())["test_result"] == result["test_result"]


def test_an_error_is_said_once():
    """Of what both have said, the cause."""

    class Ended:
        processes = []

    heard = [(0, "ProcessError", "lost"), (1, "TrainingError", "the loss is nan")]
    found = launch._explained(RuntimeError("exit code 2"), heard, Ended, 0, 2)
    assert type(found).__name__ == "TrainingError" and str(found) == "the loss is nan"
    found = launch._explained(RuntimeError("x"), [(1, "RuntimeError", "KeyError: 3")], Ended, 0, 2)
    assert str(found) == "process 1: KeyError: 3"
    found = launch._explained(RuntimeError("x"), heard[:1], Ended, 0, 2)
    assert isinstance(found, ProcessError) and str(found) == "lost"


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("model", ["BPR", "EIIL"])
def test_two_gpus(model, capfd):
    keys = {"--use_gpu=False": "--gpu_id=0,1", "--epochs=9999": "--epochs=2", "BPR": model}
    assert main([*(keys.get(argument, argument) for argument in LONG), "--nproc=2"]) == 0
    assert json.loads(capfd.readouterr().out)["test_result"]


@pytest.mark.slow
def test_torchrun(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    short = [a for a in LONG[1:] if "epochs" not in a] + ["--epochs=1"]
    done = subprocess.run(
        [*torchrun, ROOT / "run_recbole_adv.py", *short], cwd=tmp_path, timeout=300, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count('"test_result"') == 1
    assert (tmp_path / "run" / "result.json").is_file()
