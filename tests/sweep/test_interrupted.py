"""A sweep whose process is killed in the middle, and the same command again."""

import ipaddress
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas
import psutil
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, RATES = 4, [0.011, 0.012, 0.013, 0.014, 0.015]


def lives(process):
    """A process that nobody has waited for lives no more."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def records():
    files = Path("here/trials").glob("*/trial.json")
    return {file.parent: json.loads(file.read_text()) for file in files}


def in_the_middle():
    """Two trials are done, another has trained an epoch and has more to train."""
    found = records()
    running = [folder for folder, r in found.items() if r["status"] == "running"]
    lengths = [
        len((f / "scores.jsonl").read_text().splitlines())
        for f in running
        if (f / "scores.jsonl").exists()
    ]
    done = sum(r["status"] == "done" for r in found.values())
    return done >= 2 and any(1 <= length < EPOCHS for length in lengths)


def listening(processes):
    """Addresses at which these processes take connections from elsewhere."""
    open_ports = [
        c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == "LISTEN"
    ]
    return {ip for ip in open_ports if not _is_loopback(ip)}


def _is_loopback(ip):
    address = ipaddress.ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@pytest.mark.parametrize("tool", ["hyperopt", "ray"])
def test_nothing_that_is_done_repeats_and_nothing_is_lost(tool, noted, wait_for):
    pytest.importorskip(tool)
    settings = {**noted.settings, "how": "wait", "epochs": EPOCHS}
    Path("fixed.yaml").write_text(yaml.safe_dump(settings))
    Path("search.test").write_text(f"learning_rate choice {RATES}")
    command = [
        sys.executable,
        "-m",
        "recbole_adv",
        "sweep",
        "-m",
        noted.model,
        "-d",
        "checkerboard",
    ]
    command += [
        "-c",
        "fixed.yaml",
        "--params_file=search.test",
        f"--tool={tool}",
        "--sweep_dir=here",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_for(in_the_middle, "the middle of the sweep")
    family = psutil.Process(first.pid).children(recursive=True)
    if tool == "ray":
        assert listening(family) == set()
        (raylet,) = [process for process in family if process.name() == "raylet"]
        assert raylet.environ()["MALLOC_ARENA_MAX"] == "1"  # hence the workers' too
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    wait_for(lambda: not any(map(lives, family)), "the end of the trials' processes")
    done = {r["setting"]["learning_rate"] for r in records().values() if r["status"] == "done"}
    assert 2 <= len(done) < len(RATES) and not Path("here/results.csv").exists()
    before = Counter(noted.lines())

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("done before") == len(done)
    table = pandas.read_csv("here/results.csv").set_index("learning_rate")
    assert sorted(table.index) == RATES and (table["status"] == "done").all()
    assert (table["epochs"] == EPOCHS).all()
    after = Counter(noted.lines())
    for rate in RATES:
        trained = [after[f"wait {rate} epoch {epoch}"] for epoch in range(EPOCHS)]
        if rate in done:
            assert trained == [1] * EPOCHS and after[f"wait {rate} built"] == 1
        else:  # the epoch in which it was killed at most is trained once more
            assert min(trained) == 1 and sum(trained) <= EPOCHS + 1, trained
            assert before[f"wait {rate} built"] <= 1
