"""What fake users achieve on ml-100k, and what users' vectors tell of gender, age and occupation.

    python benchmarks/poison_ml100k.py            # about six minutes on one core

BPR, 64 dimensions, 20 epochs of Adam at 0.005, a random split 8 : 1 : 1; five targets out of the least
popular fifth; three seeds, each with split, targets, fake users and training of its own. ``--methods``
adds the same with APR. The probes read the vectors of one BPR of the same settings.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from recbole_adv.quick_start import run_recbole_adv
from recbole_adv.robustness.leak import LeakPlan, leak_probe
from recbole_adv.robustness.poison import PoisonPlan, poison

RESULTS = Path(__file__).parent / "results" / "poison_ml100k.json"
SETTINGS = {
    **{"epochs": 20, "eval_step": 5, "learning_rate": 0.005, "embedding_size": 64},
    **{"metrics": ["Recall", "NDCG"], "topk": [10, 50], "valid_metric": "NDCG@10"},
    **{"use_gpu": False, "state": "error", "show_progress": False},
}
METHODS = {
    "BPR": {},
    "BPR + APR": {"techniques": ["embedding_attack"], "embedding_attack_preset": "apr"},
}
ATTRIBUTES = ("gender", "age", "occupation")


def poisoned(method: str, seeds: int, folder: Path) -> list[dict]:
    """The curves of every figure over the share of fake users."""
    plan = PoisonPlan(
        ("random", "bandwagon", "pga"),
        (0.01, 0.05),
        seeds=str(seeds),
        output=str(folder / method.replace(" ", "")),
    )
    settings = {**SETTINGS, **METHODS[method]}
    report, text = poison(plan, "BPR", "ml-100k", config_dict=settings)
    print(f"{method}\n{text}\n", flush=True)
    curves = json.loads((report / "report.json").read_text())["curves"]
    return [{"method": method, **curve} for curve in curves]


def leaked(folder: Path) -> list[dict]:
    """The probes' summary."""
    settings = {**SETTINGS, "run_dir": str(folder / "run")}
    run = run_recbole_adv("BPR", "ml-100k", config_dict=settings)["run_dir"]
    plan = LeakPlan((run,), ATTRIBUTES, tuple(range(5)), output=str(folder / "leak"))
    report, text = leak_probe(plan)
    print(text, flush=True)
    return json.loads((report / "report.json").read_text())["summary"]


def show_change(before: dict, result: dict) -> None:
    """Every mean beside that of the last time."""

    def means(of: dict) -> dict[tuple, float]:
        return {
            (c["method"], c["attack"], c["figure"], p["strength"]): p["mean"]
            for c in of.get("poison", ())
            for p in c["points"]
        }

    last = means(before)
    for key, mean in means(result).items():
        if key in last and last[key] is not None and mean is not None:
            print(*key, f"{mean:.4f}, last time {last[key]:.4f}, change {mean - last[key]:+.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=["BPR"], choices=list(METHODS))
    options = parser.parse_args()
    before = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {"leak": leaked(folder), "poison": []}
        for method in options.methods:
            result["poison"] += poisoned(method, options.seeds, folder)
    show_change(before, result)
    if options.seeds >= 3:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
