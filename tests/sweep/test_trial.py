"""What a trial is made of: resuming with other rates, and the objective for users' own scripts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from recbole_adv import Config
from recbole_adv.prepared_run import prepared_run

ROOT = Path(__file__).resolve().parents[2]

# RecBole's run_hyper.py --tool=Ray, with our objective in the place of RecBole's.
RAY_SCRIPT = """
import os, sys
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from recbole_adv.quick_start import objective_function

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
tune.register_trainable("train_func", objective_function)
scheduler = ASHAScheduler(
    metric="recall@10", mode="max", max_t=10, grace_period=1, reduction_factor=2
)
result = tune.run(
    tune.with_parameters(objective_function, config_file_list=[os.path.abspath("fixed.yaml")]),
    config={"learning_rate": tune.grid_search([0.05, 1e-7, 2e-7, 3e-7])},
    num_samples=1,
    scheduler=scheduler,
    storage_path=os.path.abspath("ray_log"),
    resources_per_trial={"cpu": 1, "gpu": 0},
)
best = result.get_best_trial("recall@10", "max", "last")
assert best.config["learning_rate"] == 0.05, best.config
assert {t.status for t in result.trials} == {"TERMINATED"}
epochs = sorted(t.last_result["epoch"] for t in result.trials)
assert epochs[-1] == 6 and epochs[0] < 6, epochs  # each epoch is reported, and the bad ones end
assert best.last_result["valid_score"] == best.last_result["mrr@10"]
print("recall", best.last_result["recall@10"])
"""


@pytest.mark.parametrize("schedule", [None, "linear"])
def test_other_rates_go_on_from_the_same_state(schedule, settings_of, tmp_path):
    """As population based training wants it; a plain resume keeps the rates of the checkpoint."""
    settings = settings_of("EIIL", max_start_epoch=0, epochs=4, run_dir=str(tmp_path / "first"))
    if schedule:
        settings |= {"techniques": ["lr_schedule"], "lr_schedule_kind": schedule}
    config = Config("EIIL", "checkerboard", config_dict={**settings, "epochs": 2})
    with prepared_run(config) as run:
        run.trainer.fit(run.train_data, run.valid_data, verbose=False)
    last = str(tmp_path / "first" / "last.pth")
    other = {**settings, "learning_rate": 0.5, "max_learning_rate": 0.25, "weight_decay": 0.125}
    rates = {}
    for new in (False, True):
        config = Config(
            "EIIL", "checkerboard", config_dict={**other, "run_dir": str(tmp_path / str(new))}
        )
        with prepared_run(config, last, new_rates=new) as run:
            trainer = run.trainer
            groups = [o.param_groups[0] for o in (trainer.optimizer, *trainer.optimizers.values())]
            base = "initial_lr" if schedule else "lr"
            rates[new] = [(group[base], group["weight_decay"]) for group in groups]
            assert trainer.start_epoch == 2
            moments = trainer.optimizer.state[groups[0]["params"][0]]["exp_avg"]
            assert moments.abs().sum() > 0
            trainer.fit(run.train_data, run.valid_data, verbose=False)
    assert rates == {False: [(0.01, 0.0), (0.01, 0.0)], True: [(0.5, 0.125), (0.25, 0.125)]}
    ends = [torch.load(tmp_path / str(new) / "last.pth")["state_dict"] for new in (False, True)]
    key = "backbone.user_embedding.weight"
    key = key if key in ends[0] else next(iter(ends[0]))
    assert not torch.equal(ends[0][key], ends[1][key])


def test_a_users_own_ray_script_works_unchanged(small):
    """Relative paths in it, too: Ray gives each trial another working directory."""
    pytest.importorskip("ray")
    Path("dataset").symlink_to(ROOT / "dataset")
    fixed = {"model": "BPR", "dataset": "checkerboard", **small(epochs=6), "data_path": "dataset/"}
    del fixed["learning_rate"]
    Path("fixed.yaml").write_text(yaml.safe_dump(fixed))
    Path("run_hyper.py").write_text(RAY_SCRIPT)
    environment = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "run_hyper.py"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "recall 0." in done.stdout
