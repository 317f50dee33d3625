"""Sweeps by Ray Tune, on a real local Ray; what needs no trial is tried without one."""

from pathlib import Path

import pandas
import pytest

from recbole_adv.errors import ConfigError
from recbole_adv.sweep import run_sweep
from recbole_adv.sweep.ledger import read_curve, read_schedule
from recbole_adv.sweep.options import Options
from recbole_adv.sweep.ray_cluster import connected, resources

pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("ray_here")


def test_both_tools_find_the_same_best_setting(settings_of, capsys):
    """EIIL on ml-100k, one search file, the seed fixed."""
    Path("search.test").write_text(
        "learning_rate choice [0.001, 0.01]\ninference_objective choice ['irm', 'rex']\n"
    )
    settings = settings_of(
        "EIIL", epochs=2, penalty_start=1, max_start_epoch=1, train_batch_size=2048
    )
    settings |= {"selection_start_epoch": 0, "penalty_weight": 10.0, "state": "info"}
    del settings["load_col"], settings["data_path"]
    results = {
        tool: run_sweep(
            "EIIL",
            "ml-100k",
            config_dict=settings,
            params_file="search.test",
            sweep_dir=tool,
            tool=tool,
        )
        for tool in ("hyperopt", "ray")
    }
    tables = [
        pandas.read_csv(f"{tool}/results.csv").sort_values("id", ignore_index=True)
        for tool in results
    ]
    compared = ["id", "status", "score", "learning_rate", "inference_objective", "best_epoch"]
    pandas.testing.assert_frame_equal(tables[0][compared], tables[1][compared])
    assert results["hyperopt"]["best"] == results["ray"]["best"]
    assert results["ray"]["best"]["learning_rate"] == 0.01
    assert len(set(tables[0]["score"])) > 1
    # The data were loaded before the first trial, and by none of them (RecBole describes what it loads).
    logs = [file.read_text() for file in Path().glob("*/trials/*/run.log")]
    assert len(logs) == 8 and not any("The number of users" in log for log in logs)


def test_failures_are_recorded_and_end_nothing(noted):
    """TPE proposes five ways, one of which is the good one; that two of them die stops nothing."""
    ways = ["fine", "once", "raise", "mistake", "die"]
    result = run_sweep(
        noted.model,
        "checkerboard",
        config_dict=noted.settings,
        params_dict={"choice": {"how": ways}},
        sweep_dir="here",
        tool="ray",
        algo="hyperopt",
        max_evals=8,
        concurrency=2,
    )
    table = pandas.read_csv("here/results.csv").set_index("how")
    assert (result["done"], result["failed"], len(table)) == (2, 3, 5)  # each way once
    assert table["reason"]["raise"] == "RuntimeError: no luck"
    assert table["reason"]["mistake"] == "this key must not be so"
    assert "died unexpectedly" in table["reason"]["die"]
    attempts = {how: len([n for n in noted.lines(how) if n.endswith("built")]) for how in ways}
    assert attempts == {"fine": 1, "once": 2, "raise": 2, "mistake": 1, "die": 2}
    assert not Path("here/ray").exists()


def test_asha_ends_the_bad_ones(noted):
    """The first two rates learn, the other four do not in this time."""
    result = run_sweep(
        noted.model,
        "checkerboard",
        config_dict={**noted.settings, "epochs": 12},
        params_dict={"choice": {"learning_rate": [0.05, 0.02, 1e-7, 2e-7, 3e-7, 4e-7]}},
        sweep_dir="here",
        tool="ray",
        scheduler="asha",
        grace_epochs=2,
        reduction_factor=2,
    )
    table = pandas.read_csv("here/results.csv")
    assert result["best"]["learning_rate"] in (0.05, 0.02)
    pruned = table[table["status"] == "pruned"]
    assert (pruned["learning_rate"] < 1e-6).sum() >= 3
    assert (pruned["epochs"] < 12).all() and pruned["score"].notna().all()
    trained = {r: len(noted.lines(f"fine {r} epoch")) for r in pruned["learning_rate"]}
    assert trained == dict(zip(pruned["learning_rate"], pruned["epochs"]))
    assert len(read_curve(Path("here/trials") / pruned["id"].iloc[0])) == pruned["epochs"].iloc[0]


def test_population_based_training_hands_on_states(noted):
    """The two members begin at rates of which one learns nothing: it takes over the other's state."""
    result = run_sweep(
        noted.model,
        "checkerboard",
        config_dict={**noted.settings, "epochs": 9},
        params_dict={"choice": {"learning_rate": [1e-7, 0.05]}},
        sweep_dir="here",
        tool="ray",
        scheduler="pbt",
        perturbation_epochs=3,
    )
    assert result["done"] == 2 and result["best"]["learning_rate"] == 0.05
    schedules = {folder.name: read_schedule(folder) for folder in Path("here/trials").iterdir()}
    # What the bad one became: the good one's epochs 0 to 2, then a mutation of its setting, which may
    # be either rate; a member that no longer learns may then be the better of the two, and be cloned.
    assert all(schedule[0] == (0, {"learning_rate": 0.05}) for schedule in schedules.values())
    assert all(epoch in (3, 6) for schedule in schedules.values() for epoch, _ in schedule[1:])
    table = pandas.read_csv("here/results.csv").set_index("id")
    assert (table["score"] > 0.25).all()
    for name, schedule in schedules.items():
        had = [setting for epoch, setting in schedule if epoch <= table["best_epoch"][name]][-1]
        assert table["learning_rate"][name] == had["learning_rate"]
    assert len([n for n in noted.lines() if n.endswith("epoch 0")]) == 2  # each began once
    assert not list(Path("here").glob("trials/*/*.pth"))


def test_pbt_refuses_what_changes_the_model(noted):
    with pytest.raises(ConfigError, match="pbt cannot change embedding_size while a model trains"):
        run_sweep(
            noted.model,
            "checkerboard",
            config_dict=noted.settings,
            params_dict={"choice": {"embedding_size": [8, 16]}},
            sweep_dir="here",
            tool="ray",
            scheduler="pbt",
        )
    assert noted.lines("fine 0.01 epoch") == []


def test_resources_that_no_node_has():
    with connected(Options(tool="ray")):
        assert resources(Options(tool="ray"), use_gpu=True) == {"cpu": 1.0, "gpu": 0.0}
        with pytest.raises(ConfigError, match="--cpus_per_trial is 3, but no node .* more than 2"):
            resources(Options(tool="ray", cpus_per_trial=3), use_gpu=False)
        with pytest.raises(
            ConfigError, match="--gpus_per_trial is 0.25, but no node .* more than 0"
        ):
            resources(Options(tool="ray", gpus_per_trial=0.25), use_gpu=True)
