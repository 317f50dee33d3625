"""Does ``recbole-adv robustness`` find what was measured before it, on ml-100k?

    python benchmarks/robustness_ml100k.py            # about five minutes on one core

BPR with 64 dimensions, 60 epochs, a random split 8 : 1 : 1, and the same with APR (epsilon .5, from half of
the epochs on), each trained on three seeds; every model attacked by three seeds of negatives or noise.
EXPECTED are drops of NDCG@10 at epsilon .5 that an independent script measured on one training, each by
one gradient, so that each is one draw: it is met where it lies within two standard deviations of the
single drops measured here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from recbole_adv.quick_start import run_recbole_adv
from recbole_adv.robustness.plan import Plan
from recbole_adv.robustness.run import robustness

RESULTS = Path(__file__).parent / "results" / "robustness_ml100k.json"
EXPECTED = {
    ("BPR", "random"): 0.04,
    ("BPR", "fgsm"): 0.22,
    ("BPR", "pgd"): 0.26,
    ("BPR", "box"): 0.46,
    ("APR", "random"): 0.02,
    ("APR", "pgd"): 0.15,
}
METHODS = {
    "BPR": {},
    "APR": {"techniques": ["embedding_attack"], "embedding_attack_preset": "apr"},
}
ATTACKS, EPSILONS, AT, METRIC = ("random", "fgsm", "pgd", "box"), (0.1, 0.5, 1.0), 0.5, "ndcg@10"


def train(method: str, seed: int, folder: Path) -> str:
    """A run's directory: the last of 60 epochs, as in what is compared with."""
    settings = {
        **{"epochs": 60, "eval_step": 60, "train_batch_size": 2048, "embedding_size": 64},
        **{"metrics": ["Recall", "NDCG"], "topk": [10], "valid_metric": "NDCG@10"},
        **{"seed": seed, "run_dir": str(folder / f"{method}-{seed}"), "use_gpu": False},
        **{"state": "error", "show_progress": False, **METHODS[method]},
    }
    return run_recbole_adv("BPR", "ml-100k", config_dict=settings)["run_dir"]


def drops_of(points: list[dict], attack: str, epsilon: float) -> list[float]:
    """(M(0) - M) / M(0) of each model and seed."""
    clean = {(p["model"], p["seed"]): p["figures"][METRIC] for p in points if p["attack"] == "none"}
    return [
        1 - p["figures"][METRIC] / clean[p["model"], p["seed"]]
        for p in points
        if p["attack"] == attack and p["strength"] == epsilon
    ]


def row(method: str, points: list[dict], attack: str, epsilon: float) -> dict:
    """Drops of all models and seeds, and what was expected."""
    drops = drops_of(points, attack, epsilon)
    mean, deviation = statistics.mean(drops), statistics.stdev(drops)
    own = [p for p in points if p["attack"] == attack and p["strength"] == epsilon]
    found = {
        **{"method": method, "attack": attack, "epsilon": epsilon, "drop": mean},
        **{"standard_deviation": deviation, "drops": drops},
        **{
            name: statistics.mean(p["figures"][name] for p in own)
            for name in (METRIC, "averagepopularity@10", "delta_max", "relative_mean")
        },
    }
    expected = EXPECTED.get((method, attack)) if epsilon == AT else None
    if expected is not None:
        found |= {"expected": expected, "met": abs(mean - expected) <= 2 * deviation}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trainings", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="attacks on each model")
    options = parser.parse_args()
    before = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    last = {(r["method"], r["attack"], r["epsilon"]): r["drop"] for r in before}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for method in METHODS:
            runs = [train(method, 2020 + k, folder) for k in range(options.trainings)]
            plan = Plan(
                tuple(runs),
                ATTACKS,
                EPSILONS,
                tuple(range(options.seeds)),
                metric=METRIC,
                output=str(folder / f"report-{method}"),
            )
            report, _ = robustness(plan)
            points = json.loads((report / "report.json").read_text())["points"]
            rows += [row(method, points, a, e) for a in ATTACKS for e in EPSILONS]
            for found in rows[-len(ATTACKS) * len(EPSILONS) :]:
                show(found, last)
    complete = options.trainings >= 3 and options.seeds >= 3
    if complete:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def show(found: dict, last: dict) -> None:
    """A line of the table, with the change against the last time."""
    key = found["method"], found["attack"], found["epsilon"]
    told = ""
    if "expected" in found:
        told = f"  expected {found['expected']:.2f}: {'met' if found['met'] else 'NOT MET'}"
    if key in last:
        told += f"  last time {last[key]:.4f}, change {found['drop'] - last[key]:+.4f}"
    print(
        f"{key[0]} {key[1]:6} {key[2]:<4} {METRIC} {found[METRIC]:.4f}, drop {found['drop']:.4f} ± "
        f"{found['standard_deviation']:.4f}, largest row {found['delta_max']:.3f}{told}",
        flush=True,
    )


if __name__ == "__main__":
    main()
