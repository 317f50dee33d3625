"""A Ray cluster of two nodes, each with room for one trial, one of which is lost in the middle."""

import subprocess
import sys
from pathlib import Path

import pandas
import psutil
import pytest
import yaml

pytest.importorskip("ray")
ROOT = Path(__file__).resolve().parents[2]
EPOCHS, RATES = 5, [0.011, 0.012, 0.013, 0.014]


@pytest.fixture
def cluster(monkeypatch):
    """The nodes are processes of their own (a raylet, and its workers) and know each other by a port."""
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():  # by another module's tests
        pytest.skip("this process has a Ray already")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    small = {"num_cpus": 1, "object_store_memory": 80 * 1024**2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    yield cluster, cluster.add_node(**small)
    cluster.shutdown()


def scores_of_running():
    """How many epochs each trial that is not done has trained."""
    found = []
    for folder in Path("here/trials").glob("*/"):
        record, scores = folder / "trial.json", folder / "scores.jsonl"
        if record.is_file() and '"running"' in record.read_text() and scores.is_file():
            found.append(len(scores.read_text().splitlines()))
    return found


def test_a_sweep_survives_the_loss_of_a_node(cluster, noted, wait_for):
    nodes, worker = cluster
    Path("fixed.yaml").write_text(
        yaml.safe_dump({**noted.settings, "how": "wait", "epochs": EPOCHS, "data_path": "dataset"})
    )
    Path("dataset").symlink_to(ROOT / "dataset")  # relative, to where the command is given
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
    command += ["-c", "fixed.yaml", "--params_file=search.test", "--sweep_dir=here", "--tool=ray"]
    command += [f"--ray-address={nodes.address}"]
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: len([n for n in scores_of_running() if n >= 1]) == 2, "a trial on each node")
    raylets = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "raylet"]
    nodes.remove_node(worker, allow_graceful=False)  # kills its raylet, with which its workers die
    assert sum(p.is_running() for p in raylets) < len(raylets)

    said, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, said
    table = pandas.read_csv("here/results.csv").set_index("learning_rate")
    assert sorted(table.index) == RATES and (table["status"] == "done").all(), said
    assert (table["epochs"] == EPOCHS).all()
    built = {
        rate: len([n for n in noted.lines(f"wait {rate}") if n.endswith("built")]) for rate in RATES
    }
    assert sorted(built.values()) == [1, 1, 1, 2]  # one trial was begun again, on the other node
    (lost,) = [rate for rate, count in built.items() if count == 2]
    assert len(noted.lines(f"wait {lost} epoch")) <= EPOCHS + 1  # from its last checkpoint
