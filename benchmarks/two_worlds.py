"""Do invariant objectives help where a spurious signal flips in the test? A table for the README.

    python benchmarks/two_worlds.py --jobs 2         # one search, about ten minutes on two cores
    python benchmarks/two_worlds.py --searches 3     # three independent searches

Data: dataset/two_worlds (dataset/make_two_worlds.py). The backbone of every method is RecBole's FM; the
labels are stored; the figure is AUC. Train holds two worlds, valid is drawn from the smaller of them, in
which the covers say nothing (selection by the worst world, which every method gets), and test from a
third, in which they mislead. Test is never seen in training or selection.

Every method gets the same budget: random search over the same grid of learning rate, weight decay
and embedding size, and over its own keys, with the same number of trials, each the mean of three
seeds; the best by valid is run again on five other seeds, whose mean and standard deviation are shown.
``balanced`` is the control in between: the same backbone on the mean of the two worlds' risks (VREx with
penalty 0), which shows how much of a gain is due to knowing the worlds alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from recbole_adv import run_recbole_adv

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "two_worlds.json"
TRIALS, TRIAL_SEEDS, FINAL_SEEDS = 16, (2020, 2021, 2022), (1, 2, 3, 4, 5)

BASE = {
    "data_path": str(ROOT / "dataset"),
    "benchmark_filename": ["train", "valid", "test"],
    "load_col": {
        "inter": ["user_id", "item_id", "label", "world", "timestamp"],
        "user": ["user_id", "taste", "club"],
        "item": ["item_id", "genre", "cover"],
    },
    "eval_args": {
        "mode": "labeled",
        "order": "RO",
        "group_by": None,
        "split": {"RS": [0.8, 0.1, 0.1]},
    },
    "train_neg_sample_args": None,
    "metrics": ["AUC"],
    "valid_metric": "AUC",
    "use_gpu": False,
    "show_progress": False,
    "state": "error",
    "train_batch_size": 1024,
    "eval_batch_size": 4096,
    "epochs": 60,
    "stopping_step": 15,
    "checkpoint_interval": 0,
    "monitor_interval": 0,
}
WORLDS = {
    "backbone": "FM",
    "environment_source": "column",
    "environment_column": "world",
    "n_environments": 2,
}
GRID = {
    "learning_rate": [0.005, 0.01, 0.02, 0.05, 0.1],
    "weight_decay": [0.0, 1e-5, 1e-4, 1e-3],
    "embedding_size": [8, 16, 32],
}
VREX = {**WORLDS, "penalty_initial": 0.0, "penalty_reset_optimizer": False}
EIIL = {"backbone": "FM", "max_start_epoch": 0, "max_interval": 1, "balance_weight": 0.01}
INFER = {
    "penalty_weight": [30.0, 100.0, 300.0],
    "penalty_start": [2, 5],
    "max_learning_rate": [0.01, 0.03],
}
METHODS = {
    "FM (empirical risk)": ("FM", {}, {}),
    "FM, balanced": (
        "VREx",
        {**VREX, "penalty_schedule": "constant", "penalty_weight": 0.0, "penalty_start": 0},
        {},
    ),
    "GroupDRO": ("GroupDRO", WORLDS, {"group_dro_eta": [0.03, 0.1, 0.3, 1.0]}),
    "VREx": (
        "VREx",
        VREX,
        {"penalty_weight": [3.0, 10.0, 30.0, 100.0], "penalty_start": [0, 2, 5]},
    ),
    "EIIL, rex": ("EIIL", {**EIIL, "inference_objective": "rex"}, INFER),
    "EIIL, irm": ("EIIL", {**EIIL, "inference_objective": "irm"}, INFER),
}


def auc(model: str, settings: dict, seed: int) -> tuple[float, float]:
    """AUC on valid and on test of one run."""
    settings = {**BASE, **settings, "seed": seed}
    settings.setdefault("selection_start_epoch", settings.get("penalty_start", 0))
    with tempfile.TemporaryDirectory() as folder:
        result = run_recbole_adv(model, "two_worlds", config_dict={**settings, "run_dir": folder})
    return result["best_valid_result"]["auc"], result["test_result"]["auc"]


def search(name: str, number: int) -> dict:
    """Tune a method on valid and run the best setting on the final seeds."""
    model, fixed, own = METHODS[name]
    draw = random.Random(f"{number}-{name}")
    tried: list[dict] = []
    while len(tried) < TRIALS:
        setting = {key: draw.choice(values) for key, values in {**GRID, **own}.items()}
        if setting not in tried:
            tried.append(setting)
    scores = [
        statistics.mean(auc(model, {**fixed, **setting}, seed)[0] for seed in TRIAL_SEEDS)
        for setting in tried
    ]
    best = tried[scores.index(max(scores))]
    valid, test = zip(*(auc(model, {**fixed, **best}, seed) for seed in FINAL_SEEDS))
    return {
        "method": name,
        "search": number,
        "valid": [statistics.mean(valid), statistics.stdev(valid)],
        "test": [statistics.mean(test), statistics.stdev(test)],
        "tests": test,
        "setting": best,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--searches", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="methods that run side by side")
    options = parser.parse_args()
    wanted = [(name, n + 1) for n in range(options.searches) for name in METHODS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context, initializer=quiet) as pool:
        rows = list(pool.map(search, *zip(*wanted)))
    print("| method | valid AUC | test AUC |\n|---|---|---|")
    for row in rows:
        cells = (f"{row[part][0]:.3f} ± {row[part][1]:.3f}" for part in ("valid", "test"))
        print(f"| {row['method']} | {' | '.join(cells)} |")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def quiet() -> None:
    """One thread for each process, and none of RecBole's warnings."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()
