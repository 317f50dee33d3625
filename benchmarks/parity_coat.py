"""Do our models score on Coat what the official code of AdvInfoNCE scores?

    python benchmarks/parity_coat.py --data DIR   # all six models, three seeds, minutes on one core
    python benchmarks/parity_coat.py --data DIR --models InfoNCE-MF --seeds 1

DIR holds ``coat.train.inter``, ``coat.valid.inter`` and ``coat.test.inter`` (290 users, 295 items,
1363, 553 and 860 rows: the files of LehengTHU/AdvInfoNCE). The protocol is that of its code at
e7c0416 with its README's values for Coat: users in turn as positives, uniform negatives that are no
training items, one batch of 1024 an epoch (drop_last), Adam; all items are ranked, evaluation
every 5 epochs, a stop after 10 evaluations without a better Recall@20, the best model tested.

Each difference is in pooled standard deviations, sqrt((s^2 + s_ref^2) / 2), over the seeds. On this
split 102 of the 860 test pairs are training or validation pairs that the ranking does not mask, so
the numbers say whether two implementations are the same, not which method is better.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from recbole_adv import checkpoint, run_recbole_adv
from recbole_adv.model.adversarial_recommender.infonce import InfoNCE

RESULTS = Path(__file__).parent / "results"
METRICS = ("recall@20", "ndcg@20", "hit@20")
SEEDS = (101, 102, 103)

# Recall, NDCG and hit rate at 20, mean and population standard deviation over the seeds 101 to 103:
# the official code at e7c0416, run with torch 2.13 on a CPU on these files, best model restored.
REFERENCE = {
    "BPR-MF": ((0.2136, 0.0072), (0.1797, 0.0036), (0.5021, 0.0138)),
    "BPR-LightGCN": ((0.2625, 0.0102), (0.1641, 0.0062), (0.5752, 0.0278)),
    "InfoNCE-MF": ((0.2203, 0.0733), (0.1481, 0.0566), (0.4852, 0.1348)),
    "InfoNCE-LightGCN": ((0.2701, 0.0059), (0.1867, 0.0067), (0.5865, 0.0091)),
    "AdvInfoNCE-MF": ((0.2363, 0.0584), (0.1629, 0.0434), (0.5091, 0.1154)),
    "AdvInfoNCE-LightGCN": ((0.2742, 0.0018), (0.1977, 0.0014), (0.5752, 0.0040)),
}
BEST_EPOCHS = {
    "BPR-MF": (489, 504, 269),
    "BPR-LightGCN": (184, 149, 194),
    "InfoNCE-MF": (19, 484, 344),
    "InfoNCE-LightGCN": (364, 439, 284),
    "AdvInfoNCE-MF": (39, 414, 284),
    "AdvInfoNCE-LightGCN": (174, 209, 209),
}

PROTOCOL = {
    "benchmark_filename": ["train", "valid", "test"],
    "load_col": {"inter": ["user_id", "item_id"]},
    "eval_args": {"order": "RO", "group_by": None, "mode": "full"},
    "metrics": ["Recall", "NDCG", "Hit"],
    "topk": [20],
    "valid_metric": "Recall@20",
    "metric_decimal_place": 8,
    "epochs": 2000,
    "eval_step": 5,
    "stopping_step": 9,
    "train_batch_size": 1024,
    "drop_last": True,
    "user_uniform": True,
    "learning_rate": 1e-3,
    "temperature": 0.75,
    "use_gpu": False,
    "show_progress": False,
    "state": "error",
    "checkpoint_interval": 0,
    "monitor_interval": 0,
}
OF_MODEL = {
    "BPR": {
        "n_negatives": 1,
        "temperature": 1.0,
        "cosine_train": False,
        "cosine_predict": False,
        "reg_negatives": True,
    },
    "InfoNCE": {"negative_weight": 1.0},
    "AdvInfoNCE": {
        "negative_weight": 64.0,
        "official_behaviour": True,
        "max_learning_rate": 1e-2,
        "max_interval": 15,
        "max_start_epoch": 12,
    },
}
BUDGET = {"MF": 18, "LightGCN": 20}


class OfficialBPR(InfoNCE):
    """BPR on the official sampling, which RecBole's own loaders do not offer."""

    def calculate_loss(self, interaction):
        self.restore_user_e = self.restore_item_e = None
        drawn = self.draw(interaction)
        positive, negative = self.scores(*drawn)
        loss = F.softplus(negative.squeeze(-1) - positive).mean()
        return loss + self.reg_weight * self.regulariser(*drawn)


def run(name: str, seed: int, folder: str, **extra) -> dict:
    """One run: the test metrics, the best epoch and what it took."""
    model, backbone = name.split("-")
    settings = {**PROTOCOL, **OF_MODEL[model], "n_layers": 0 if backbone == "MF" else 2}
    settings |= {"data_path": folder, "seed": seed, **extra}
    if model == "AdvInfoNCE":
        settings["max_budget"] = BUDGET[backbone]
    start = time.perf_counter()
    done = run_recbole_adv(
        OfficialBPR if model == "BPR" else model, "coat", config_dict=settings, command_line=()
    )
    lines = Path(done["run_dir"], "metrics.jsonl").read_text().splitlines()
    return {
        "seed": seed,
        "best_epoch": checkpoint.load(f"{done['run_dir']}/model.pth")["epoch"],
        "epochs": len(lines),
        "valid_recall@20": done["best_valid_score"],
        "seconds": time.perf_counter() - start,
        **{metric: done["test_result"][metric] for metric in METRICS},
    }


def compare(name: str, runs: list[dict]) -> dict:
    """Reference, ours and the difference in pooled standard deviations, by metric."""
    row: dict = {"model": name, "runs": runs}
    for metric, (mean, deviation) in zip(METRICS, REFERENCE[name]):
        values = [one[metric] for one in runs]
        ours, spread = statistics.mean(values), statistics.pstdev(values)
        pooled = math.sqrt((deviation**2 + spread**2) / 2)
        row[metric] = {
            "reference": [mean, deviation],
            "ours": [ours, spread],
            "difference": (ours - mean) / pooled,
        }
    return row


def show(row: dict) -> None:
    """Print one row of the markdown table."""
    cells = [row["model"]]
    for metric in METRICS:
        (mean, deviation), (ours, spread) = row[metric]["reference"], row[metric]["ours"]
        cells += [f"{mean:.4f} ± {deviation:.4f}", f"{ours:.4f} ± {spread:.4f}"]
        cells.append(f"{row[metric]['difference']:+.2f}")
    cells.append(", ".join(str(epoch) for epoch in BEST_EPOCHS[row["model"]]))
    cells.append(", ".join(str(one["best_epoch"]) for one in row["runs"]))
    cells.append(f"{sum(one['seconds'] for one in row['runs']):.0f}")
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder with coat.*.inter")
    every = [*REFERENCE, "InvPref"]  # InvPref's protocol is another: parity_coat_invpref.py
    parser.add_argument("--models", nargs="+", choices=every, default=every)
    parser.add_argument("--seeds", type=int, choices=(1, 2, 3), default=3)
    parser.add_argument("--stopping-step", type=int, default=PROTOCOL["stopping_step"])
    options = parser.parse_args()
    data = options.data.resolve()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    head = [f"{metric} {what}" for metric in METRICS for what in ("reference", "ours", "Δ/sd")]
    head = ["model", *head, "best epochs reference", "ours", "s"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.mkdir("coat")
        for split in ("train", "valid", "test"):
            os.symlink(data / f"coat.{split}.inter", f"coat/coat.{split}.inter")
        for name in (name for name in options.models if name in REFERENCE):
            seeds = SEEDS[: options.seeds]
            runs = [run(name, seed, folder, stopping_step=options.stopping_step) for seed in seeds]
            rows.append(compare(name, runs))
            show(rows[-1])
    if options.models == every and options.stopping_step == PROTOCOL["stopping_step"]:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "parity_coat.json").write_text(json.dumps(rows, indent=1) + "\n")
    if "InvPref" in options.models:
        script = Path(__file__).resolve().with_name("parity_coat_invpref.py")
        command = [sys.executable, str(script), "--data", str(data), "--seeds", str(options.seeds)]
        subprocess.run(command, check=True, cwd=data)


if __name__ == "__main__":
    main()
