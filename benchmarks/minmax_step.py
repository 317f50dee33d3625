"""What min-max training costs: ratios of paired runs in one process.

    python benchmarks/minmax_step.py            # both data sets, a few minutes on two cores
    python benchmarks/minmax_step.py --quick    # ml-100k only, a look

Step: one step of EIIL's min player alone against one step of both players (``max_interval: 1``),
by ``shared_graph`` and by ``separate_forward``, on batches already loaded.
Epoch: a training epoch of AdvTrainer with one player against RecBole's Trainer, data loading
included. A ratio is the median over the repetitions of time(ours) / time(base) measured one right
after the other, and times are those of the processor, so that they say little of how busy the
machine was; no time is compared across runs. Where the ratio is decided by microseconds (steps of BPR) it is
that of the median over fresh processes, whose places in memory differ, and the spread is theirs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.utils import init_seed
from turns import Worker

from recbole_adv import Config
from recbole_adv.quick_start import _data_and_model
from recbole_adv.trainer import AdvTrainer, INVTrainer

RESULTS = Path(__file__).parent / "results" / "minmax_step.json"
QUIET = {"show_progress": False, "state": "error", "use_gpu": False, "monitor_interval": 0}
ACTIVE = {"max_start_epoch": 0, "penalty_start": 0, "max_interval": 1}


def generate(folder: Path, n_users: int, n_items: int, n_rows: int) -> str:
    """A data set of random pairs with a popularity of items like 1 / rank; returns its name."""
    name = f"random-{n_users}x{n_items}"
    rng = np.random.default_rng(0)
    user = np.concatenate([np.arange(n_users), rng.integers(0, n_users, n_rows - n_users)])
    weight = 1 / np.arange(1, n_items + 1)
    item = rng.choice(n_items, size=n_rows - n_items, p=weight / weight.sum())
    item = np.concatenate([item, np.arange(n_items)])
    pairs = np.unique(np.stack([user, item], axis=1), axis=0)
    (folder / name).mkdir()
    with open(folder / name / f"{name}.inter", "w") as file:
        file.write("user_id:token\titem_id:token\n")
        file.writelines(f"{u}\t{i}\n" for u, i in pairs)
    return name


def paired(run_base, run_other, repetitions: int) -> tuple[float, float, float]:
    """Median seconds of the base, median ratio, and its spread (half the interquartile range)."""
    base, ratios = [], []
    for repetition in range(repetitions + 1):
        # The order alternates: whoever comes second finds warmer caches.
        pair = [run_base, run_other] if repetition % 2 else [run_other, run_base]
        seconds = {}
        for run in pair:
            start = time.process_time()
            run()
            seconds[run] = time.process_time() - start
        if repetition:  # the first pair warms up
            base.append(seconds[run_base])
            ratios.append(seconds[run_other] / seconds[run_base])
    quartiles = statistics.quantiles(ratios, n=4)
    return statistics.median(base), statistics.median(ratios), (quartiles[2] - quartiles[0]) / 2


def step_rows(dataset: str, data_path: str | None, backbone: str, batches: int, repetitions: int):
    """Rows of the step table for one data set and backbone."""
    extra = {"data_path": data_path, "load_col": None} if data_path else {}
    config = Config("EIIL", dataset, config_dict={"backbone": backbone, **ACTIVE, **QUIET, **extra})
    _, train, _, _, model = _data_and_model(config)
    trainer = INVTrainer(config, model)
    trainer._before_fit(train)
    loaded = list(itertools.islice(iter(train), batches))
    model.train()
    turns, joint = trainer._turns(), trainer._joint()
    engine = trainer.loop.engine

    def min_only():
        for batch in loaded:
            engine.run(turns["min"], batch)

    def shared_graph():
        for batch in loaded:
            engine.run_shared(list(turns.values()), joint, batch)

    def separate_forward():
        for batch in loaded:
            engine.run(turns["min"], batch)
            engine.run(turns["max"], batch)

    for name, run in (("shared_graph", shared_graph), ("separate_forward", separate_forward)):
        base, ratio, spread = paired(min_only, run, repetitions)
        yield {
            "what": f"step, {name}",
            "data": dataset,
            "model": f"EIIL over {backbone}",
            "base_ms": 1000 * base / len(loaded),
            "ratio": ratio,
            "spread": spread,
        }


def in_fresh_processes(n: int, *arguments) -> list[dict]:
    """The rows of :func:`step_rows`, medians over ``n`` processes that run one after the other."""
    if n == 1:
        return list(step_rows(*arguments))
    tables = []
    for _ in range(n):
        worker = Worker(step_rows, *arguments)
        tables.append(worker.ask(list))
        worker.end()
    rows = []
    for found in zip(*tables):
        ratios = [row["ratio"] for row in found]
        quartiles = statistics.quantiles(ratios, n=4)
        middle = {"ratio": statistics.median(ratios), "ratios": ratios}
        middle["base_ms"] = statistics.median(row["base_ms"] for row in found)
        rows.append(found[0] | middle | {"spread": (quartiles[2] - quartiles[0]) / 2})
    return rows


def epoch_row(dataset: str, model: str, repetitions: int, **settings):
    """The epoch of AdvTrainer against that of RecBole's Trainer."""
    runs = {}
    for trainer_class in (Trainer, AdvTrainer):
        config = Config(model, dataset, config_dict={**QUIET, **settings})
        _, train, _, _, net = _data_and_model(config)
        init_seed(0, True)
        trainer = trainer_class(config, net)
        if trainer_class is AdvTrainer:
            trainer._before_fit(train)
        runs[trainer_class] = lambda trainer=trainer, train=train: trainer._train_epoch(train, 0)
    base, ratio, spread = paired(runs[Trainer], runs[AdvTrainer], repetitions)
    return {
        "what": "epoch, one player",
        "data": dataset,
        "model": model,
        "base_ms": 1000 * base,
        "ratio": ratio,
        "spread": spread,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="ml-100k only; writes no file")
    parser.add_argument("--models", nargs="*", default=["BPR", "LightGCN", "NeuMF"])
    parser.add_argument("--repetitions", type=int, default=41)
    parser.add_argument("--processes", type=int, default=9, help="for the steps of BPR on ml-100k")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows, known = [], last_table()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for model in options.models:
            rows.append(epoch_row("ml-100k", model, options.repetitions))
            show(rows[-1:], known)
        for backbone in options.models:
            # A step of BPR is a tenth of one of LightGCN, and small differences need many pairs.
            often, n = (4, options.processes) if backbone == "BPR" else (1, 1)
            times = options.repetitions * often
            rows += in_fresh_processes(n, "ml-100k", None, backbone, 10, times)
            show(rows[-2:], known)
        if not options.quick:
            name = generate(Path(folder), 60_000, 40_000, 1_000_000)
            for backbone in (model for model in options.models if model != "NeuMF"):
                rows += step_rows(name, folder, backbone, 3, max(options.repetitions // 3, 5))
                show(rows[-2:], known)
    if not options.quick:
        known.update((key(row), row) for row in rows)
        RESULTS.write_text(json.dumps(list(known.values()), indent=1) + "\n")


def key(row: dict) -> tuple:
    """What a row measures; one of another model stays in the file."""
    return row["what"], row["data"], row["model"]


def last_table() -> dict[tuple, dict]:
    """The rows of the last run."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    return {key(row): row for row in rows}


def show(rows: list[dict], known: dict[tuple, dict]) -> None:
    """Print rows of the markdown table and what changed since the last."""
    for row in rows:
        before = known.get(key(row))
        change = f" (was {before['ratio']:.3f})" if before else ""
        print(
            f"| {row['what']} | {row['data']} | {row['model']} | {row['base_ms']:.2f} "
            f"| {row['ratio']:.3f} ± {row['spread']:.3f} |{change}",
            flush=True,
        )


if __name__ == "__main__":
    main()
