"""Does ``train_loader: tensor`` train as RecBole's loader does? Five seeds of each, on ml-100k.

    python benchmarks/loader_parity.py             # one thread, some minutes

For each seed both runs have the same split and the same initial weights; order and negatives are drawn
otherwise. The loss of each epoch and the test metrics of the last are compared by a paired t-test over
the seeds. Among so many tests some p-values are small by chance, so the smallest of each model is held
against 0.01 divided by the number of its tests (Bonferroni).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from epoch import FEATURES, QUIET
from scipy.stats import ttest_rel

from recbole_adv import Config
from recbole_adv.quick_start import _data_and_model
from recbole_adv.trainer import trainer_class

RESULTS = Path(__file__).parent / "results" / "loader_parity.json"
CASES = {
    "BPR": ("BPR", {"epochs": 20}),
    "BPR, popularity": (
        "BPR",
        {"epochs": 20, "train_neg_sample_args": {"distribution": "popularity", "sample_num": 1}},
    ),
    "BPR, dynamic": (
        "BPR",
        {
            "epochs": 10,
            "train_neg_sample_args": {
                "distribution": "uniform",
                "sample_num": 1,
                "dynamic": True,
                "candidate_num": 4,
            },
        },
    ),
    "EIIL": ("EIIL", {"epochs": 12}),
    "DeepFM": ("DeepFM", {**FEATURES, "epochs": 4}),
    "LightGCN": ("LightGCN", {"epochs": 5}),
    "SASRec": (
        "SASRec",
        {"epochs": 4, "train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": 10}
        | {"hidden_size": 16, "inner_size": 32, "n_layers": 1},
    ),
}
FINAL = ("recall@10", "ndcg@10")


def trained(model: str, settings: dict, loader: str, seed: int) -> tuple[list[float], list[float]]:
    """The loss of each epoch, and the test metrics after the last."""
    given = {**QUIET, **settings, "train_loader": loader, "seed": seed, "eval_step": 0}
    given |= {"metrics": ["Recall", "NDCG"], "valid_metric": "NDCG@10"}
    config = Config(model, "ml-100k", config_dict=given)
    _, train, _, test, net = _data_and_model(config)
    trainer = trainer_class(config.model_class)(config, net)
    trainer.fit(train, saved=False, verbose=False)
    result = trainer.evaluate(test, load_best_model=False)
    return list(trainer.train_loss_dict.values()), [result.get(name, np.nan) for name in FINAL]


def compare(name: str, seeds: int) -> dict:
    """Means of both loaders, and the p-values of their differences."""
    model, settings = CASES[name]
    runs = {
        loader: [trained(model, settings, loader, seed) for seed in range(seeds)]
        for loader in ("recbole", "tensor")
    }
    losses, metrics = (
        {loader: np.array([run[k] for run in found]) for loader, found in runs.items()}
        for k in (0, 1)
    )
    p_loss, p_metric = (
        ttest_rel(values["tensor"], values["recbole"]).pvalue for values in (losses, metrics)
    )
    p = np.concatenate([p_loss, p_metric])
    row = {"model": name, "seeds": seeds, "losses p": p_loss.tolist(), "tests": len(p)}
    for loader in runs:
        row[f"losses, {loader}"] = losses[loader].mean(0).tolist()
        for k, metric in enumerate(FINAL):
            row[f"{metric}, {loader}"] = float(metrics[loader][:, k].mean())
    for k, metric in enumerate(FINAL):
        difference = metrics["tensor"][:, k] - metrics["recbole"][:, k]
        row[f"{metric}, difference"] = float(difference.mean())
        row[f"{metric}, standard error"] = float(difference.std(ddof=1) / seeds**0.5)
        row[f"{metric}, p"] = float(p_metric[k])
    row["smallest p"] = float(np.nanmin(p))
    row["equal"] = bool(row["smallest p"] > 0.01 / len(p))
    return row


def show(row: dict, before: dict | None) -> None:
    """Print a row of the markdown table and what changed since the last table."""
    cells = [row["model"], f"{row['losses, recbole'][-1]:.4f}", f"{row['losses, tensor'][-1]:.4f}"]
    for metric in FINAL:
        cells.append(f"{row[f'{metric}, recbole']:.4f}")
        change, error = row[f"{metric}, difference"], row[f"{metric}, standard error"]
        cells.append(f"{change:+.4f} ± {error:.4f}")
    cells += [f"{row['smallest p']:.3f} of {row['tests']}", "yes" if row["equal"] else "NO"]
    changed = f" (smallest p was {before['smallest p']:.3f})" if before else ""
    print("| " + " | ".join(cells) + f" |{changed}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="the cases whose name has this in it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    old = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    before = {row["model"]: row for row in old}
    head = ["model", "last loss, RecBole", "tensor"]
    head += [text for metric in FINAL for text in (f"{metric}, RecBole", "difference")]
    print("| " + " | ".join([*head, "smallest p", "equal"]) + " |\n|" + "---|" * (len(head) + 2))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in CASES:
            if options.only is None or options.only in name:
                row = compare(name, options.seeds)
                show(row, before.get(name))
                if options.seeds == parser.get_default("seeds"):
                    before[name] = row
                    RESULTS.write_text(json.dumps(list(before.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
