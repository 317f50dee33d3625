"""Do the techniques help on ml-100k? A base model and the same with a technique, equally tuned.

    python benchmarks/technique_study.py --jobs 2     # and writes docs/techniques/study.md
    python benchmarks/technique_study.py --methods    # only writes the page

Each method, the base included, gets the same number of trials, drawn from its space by one seed, each
a training with early stopping on valid; the best by valid is trained with five other seeds and only
these are tested. BPR with APR, SASRec with R-Drop and with EMA. Test is never seen in the search.
Differences to the base are paired by seed. Each method's row is stored as it ends.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from scipy.stats import ttest_rel

RESULTS = Path(__file__).parent / "results" / "technique_study.json"
PAGE = Path(__file__).parent.parent / "docs" / "techniques" / "study.md"
TEXT = """# Do the techniques help on ml-100k?

Written by `python benchmarks/technique_study.py`. BPR against BPR with APR (`embedding_attack_preset: apr`) on a
random split, SASRec against SASRec with R-Drop and with EMA on leave-one-out. Each method, the base included, had
the same number of trials from its space, each a training with early stopping; the best on valid was trained with
five other seeds, and only these were tested. Mean ± standard error; differences are paired by seed (p of a paired
t-test). The control of a method is the base at the settings which that method chose: few trials are drawn from
each space, and the base's may have missed them.

{table}
"""
SEEDS = (1, 2, 3, 4, 5)
SEARCH_SEED = 2020
METRICS = ("ndcg@10", "recall@10")
READING = """
APR gains. R-Drop and EMA do not: the base at the settings that they chose is as good, so their lead over the tuned
base is that its five trials missed these settings. It is one data set, and SASRec is small and short (one layer of
32, 10 items, 10 epochs), so that the study ends; with more trials, or trained to its end, the differences may be
others.
"""

BPR = {
    "learning_rate": [1e-3, 2e-3, 5e-3],
    "weight_decay": [0.0, 1e-6, 1e-5, 1e-4],
}
SASREC = {
    "learning_rate": [1e-3, 2e-3, 5e-3],
    "hidden_dropout_prob": [0.1, 0.2, 0.35, 0.5],
    "attn_dropout_prob": [0.1, 0.3, 0.5],
}
# Of each method: model, fixed settings, space. One that adds a technique may also tune what is its own.
METHODS = {
    "BPR": ("BPR", {}, BPR),
    "BPR + APR": (
        "BPR",
        {"techniques": ["embedding_attack"], "embedding_attack_preset": "apr"},
        BPR
        | {
            "embedding_attack_epsilon": [0.1, 0.5, 1.0],
            "embedding_attack_weight": [0.1, 0.3, 1.0],
            "embedding_attack_start_epoch": [0, 20],
        },
    ),
    "SASRec": ("SASRec", {}, SASREC),
    "SASRec + R-Drop": (
        "SASRec",
        {"techniques": ["r_drop"]},
        SASREC | {"r_drop_weight": [0.1, 0.5, 1.0, 2.0]},
    ),
    "SASRec + EMA": (
        "SASRec",
        {"techniques": ["ema"]},
        SASREC | {"ema_decay": [0.99, 0.995, 0.999]},
    ),
}
TRIALS = {"BPR": 12, "SASRec": 5}
OF_MODEL = {
    "BPR": {"epochs": 150, "train_batch_size": 2048, "stopping_step": 15, "train_loader": "tensor"},
    "SASRec": {
        # Small and short, so that the study ends within an hour on one core.
        "epochs": 10,
        "train_batch_size": 1024,
        "stopping_step": 3,
        "train_loader": "tensor",
        "train_neg_sample_args": None,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "hidden_size": 32,
        "inner_size": 64,
        "n_layers": 1,
        "MAX_ITEM_LIST_LENGTH": 10,
    },
}


def trials_of(method: str, n_trials: int) -> list[dict]:
    """Settings drawn without repetition."""
    _, _, space = METHODS[method]
    draw = random.Random(SEARCH_SEED)
    trials: list[dict] = []
    while len(trials) < min(n_trials, math.prod(map(len, space.values()))):
        trial = {name: draw.choice(values) for name, values in space.items()}
        if trial not in trials:
            trials.append(trial)
    return trials


def run(job: tuple[str, dict, int, bool]) -> tuple[float, dict]:
    """The valid score of a training, and, if asked for, the test metrics."""
    method, settings, seed, test = job
    import torch

    from recbole_adv import Config
    from recbole_adv.quick_start import _data_and_model
    from recbole_adv.trainer import trainer_class

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    model, fixed, _ = METHODS[method]
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "valid_metric": "NDCG@10",
            "metrics": ["Recall", "NDCG"],
            "state": "error",
            "show_progress": False,
            "use_gpu": False,
            "eval_batch_size": 400_000,
            "checkpoint_interval": 0,
            "run_dir": folder,
            "seed": seed,
        }
        given = {**common, **OF_MODEL[model], **fixed, **settings}
        config = Config(model, "ml-100k", config_dict=given)
        _, train, valid, held_out, net = _data_and_model(config)
        trainer = trainer_class(config.model_class)(config, net)
        score, _ = trainer.fit(train, valid, verbose=False, saved=test)
        return float(score), trainer.evaluate(held_out) if test else {}


def study(method: str, pool) -> dict:
    """Search, then the five seeds."""
    trials = trials_of(method, TRIALS[METHODS[method][0]])
    scores = [s for s, _ in pool.map(run, [(method, t, SEARCH_SEED, False) for t in trials])]
    best = max(range(len(trials)), key=scores.__getitem__)
    final = list(pool.map(run, [(method, trials[best], seed, True) for seed in SEEDS]))
    row = {"method": method, "trials": len(trials), "best": trials[best], "search": scores[best]}
    for name in METRICS:
        row[name] = summary([result[name] for _, result in final])
    return row


def control(row: dict, pool) -> None:
    """Add the base at the settings that the method chose, and the differences to that."""
    base = row["method"].partition(" + ")[0]
    settings = {key: row["best"][key] for key in METHODS[base][2]}
    final = list(pool.map(run, [(base, settings, seed, True) for seed in SEEDS]))
    row["control"] = {}
    for name in METRICS:
        values = [result[name] for _, result in final]
        row["control"][name] = summary(values)
        row["control"][f"{name} difference"] = difference(row[name]["values"], values)


def difference(own: list[float], other: list[float]) -> dict:
    """Of values paired by seed, with the p-value of a paired t-test."""
    found = summary([a - b for a, b in zip(own, other)])
    return found | {"p": float(ttest_rel(own, other).pvalue)}


def summary(values: list[float]) -> dict:
    """Mean, its standard error, and what they are of."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.mean(values), "standard_error": error, "values": values}


def compared(row: dict, rows: dict[str, dict]) -> None:
    """Add the differences to the base, seed by seed, and the p-value of a paired t-test."""
    base = rows.get(row["method"].partition(" + ")[0])
    if base is None or base is row:
        return
    for name in METRICS:
        row[f"{name} difference"] = difference(row[name]["values"], base[name]["values"])


def shown(row: dict) -> str:
    """The row of the markdown table."""
    cells = [row["method"]]
    for name in METRICS:
        cells.append(f"{row[name]['mean']:.4f} ± {row[name]['standard_error']:.4f}")
        for found in (row, row.get("control", {})):
            change = found.get(f"{name} difference")
            cells.append(
                f"{change['mean']:+.4f} ± {change['standard_error']:.4f} (p {change['p']:.3f})"
                if change
                else ""
            )
    best = ", ".join(f"{key} {value}" for key, value in row["best"].items())
    return "| " + " | ".join([*cells, str(row["trials"]), best]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    old = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    rows = {row["method"]: row for row in old}
    heads = [text for name in METRICS for text in (name, "to the base", "to its control")]
    lines = ["| " + " | ".join(["method", *heads, "trials", "chosen"]) + " |"]
    lines.append("|" + "---|" * (len(heads) + 3))
    with ProcessPoolExecutor(options.jobs) as pool:
        for method in options.methods:
            rows[method] = study(method, pool)
            compared(rows[method], rows)
            if " + " in method:
                control(rows[method], pool)
            print(shown(rows[method]), flush=True)
            kept = [rows[name] for name in METHODS if name in rows]
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    lines += [shown(rows[name]) for name in METHODS if name in rows]
    PAGE.write_text(TEXT.format(table="\n".join(lines)) + READING)


if __name__ == "__main__":
    main()
