"""An epoch on generated data, 1M and 10M interactions: ours against RecBole's Trainer.

    python benchmarks/large_epoch.py                          # both, every model; hours on a slow machine
    python benchmarks/large_epoch.py --data 1M --models BPR EIIL

At 1M an epoch of BPR, EIIL and DeepFM is a whole one, of which the time of reading the loader without
training is taken off for that of a step. All others are put together: the loader's time and the number of
batches times that of a training step, measured by each trainer's own ``_train_epoch`` on batches already
loaded, so that a model whose step takes seconds can be measured too. All is processor time of one thread;
ways take turns, each in a process of its own (turns.py), and a ratio is that of the medians. EIIL, which
RecBole does not have, is measured against RecBole's Trainer on its backbone, BPR.

``peak`` is the largest resident set of a process that reads an epoch and takes the steps, data and model
included, but not the peak of reading the file, which is RecBole's for all. ``bound`` is the least that a
dense step could take here (bound.py): Adam's passes over its tables at the speed of a copy, or the
products of forward and backward at the speed of a large one. ``parts`` is where a step of the way
"tensor" goes. At 10M SASRec reads 20 items, not 50, for RecBole writes the sequences of all rows out,
which with 50 had taken 19.8 of 24 GB when it was stopped; and 4096 rows, not 8192, so that the scores of
50,000 items for each row fit into the memory of two processes (``--ways RecBole tensor``).
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas
import torch
from bound import bound, speeds, timed
from epoch import GAME, QUIET, parts_of
from memory import forget_peak, keep_as_in_fit, peak_mb
from recbole.trainer import Trainer
from recbole.utils import init_seed
from turns import Worker

from recbole_adv import Config
from recbole_adv.quick_start import _data_and_model
from recbole_adv.trainer import trainer_class

RESULTS = Path(__file__).parent / "results" / "large_epoch.json"
# name: rows, users, items, batch size
DATA = {"1M": (1_000_000, 6_000, 4_000, 2048), "10M": (10_000_000, 100_000, 50_000, 8192)}
LABELS = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
CASES: dict[str, dict] = {
    "BPR": {},
    "LightGCN": {},
    "SASRec": {"train_neg_sample_args": None},
    "DeepFM": {**LABELS, "eval_args": {"mode": "full"}, "metrics": ["Recall"]},
    "EIIL": GAME,
}
SMALLER = {("SASRec", "10M"): {"train_batch_size": 4096, "MAX_ITEM_LIST_LENGTH": 20}}
WHOLE = ("BPR", "EIIL", "DeepFM")  # whole epochs at 1M
N_STEPS = {"BPR": 24, "LightGCN": 3, "SASRec": 2, "DeepFM": 12, "EIIL": 24}
WAYS = {
    "RecBole": {},
    "tensor": {"train_loader": "tensor"},
    "tensor, fused": {"train_loader": "tensor", "learner_fused": True},
    "tensor, sparse": {"train_loader": "tensor", "sparse_embeddings": True},
}
LOOKUPS = ("BPR", "EIIL")  # models whose tables are only looked up


class Kept:
    """Batches already loaded, read by a trainer as an epoch of its loader."""

    def __init__(self, loader, n_batches: int):
        self.loader, reading = loader, iter(loader)
        self.batches = [next(reading) for _ in range(n_batches)]

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def generate(folder: Path, data: str) -> None:
    """Different pairs in random order with times, items by a long tail, users by a log-normal."""
    n_rows, n_users, n_items, _ = DATA[data]
    rng = np.random.default_rng(0)
    cumulated = [
        np.cumsum(weight)
        for weight in (np.exp(rng.normal(0, 0.8, n_users)), np.arange(1, n_items + 1) ** -0.5)
    ]
    draws = n_rows * 2
    user, item = (np.searchsorted(c, rng.random(draws) * c[-1]) for c in cumulated)
    pair = rng.permutation(pandas.unique(user * n_items + item))[: n_rows - n_items]
    every = rng.integers(0, n_users, n_items) * n_items + np.arange(n_items)
    pair = pandas.unique(np.concatenate([pair, every]))
    user, item = np.divmod(pair, n_items)
    (folder / data).mkdir()
    columns = {"user_id:token": user, "item_id:token": item}
    columns["timestamp:float"] = rng.integers(0, 10**8, len(pair))
    pandas.DataFrame(columns).to_csv(folder / data / f"{data}.inter", sep="\t", index=False)


def built(model: str, data: str, folder: str, way: str):
    """A trainer and its loader."""
    given = {**QUIET, **CASES[model], **WAYS[way], "data_path": folder, "load_col": None}
    given |= {"train_batch_size": DATA[data][3], "valid_metric": "Recall@10"}
    given |= SMALLER.get((model, data), {})
    if way == "RecBole":
        given = {key: value for key, value in given.items() if key not in GAME}
        model = "BPR" if model == "EIIL" else model
    config = Config(model, data, config_dict=given)
    _, train, _, _, net = _data_and_model(config)
    init_seed(0, True)
    if way == "RecBole":
        return Trainer(config, net), train
    trainer = trainer_class(config.model_class)(config, net)
    keep_as_in_fit(trainer)
    return trainer, trainer._before_fit(train)


def read(loader) -> None:
    """Make every batch of an epoch."""
    for _ in loader:
        pass


def ways_of(model: str, names) -> list[str]:
    """Those of the names that the model can go."""
    return [way for way in names if "sparse" not in way or model in LOOKUPS]


def measure(model: str, data: str, folder: str, options) -> dict:
    """Seconds of each way's loader, step and epoch, and peaks of memory."""
    ways = ways_of(model, options.ways)
    row = times_of(model, data, folder, ways, options)
    for found in row["ways"].values():
        found["ratio"] = found["epoch s"] / row["ways"][ways[0]]["epoch s"]
    if options.peaks:
        add_peaks(row, folder, ways)
    return row


def add_peaks(row: dict, folder: str, ways: list[str]) -> dict:
    """The row with the peak of each way."""
    for way in ways:
        row["ways"][way]["peak MB"] = peak(row["model"], row["data"], folder, way)
    return row


def built_with_some(model: str, data: str, folder: str, way: str):
    """A trainer, its loader, and what of it an epoch is to read, in a worker."""
    trainer, loader = built(model, data, folder, way)
    return trainer, loader, some_of(loader, model, data)


def some_of(loader, model: str, data: str):
    """The loader where a whole epoch is measured, else some of its batches."""
    return loader if data == "1M" and model in WHOLE else Kept(loader, N_STEPS[model])


def train_seconds(run) -> float:
    """Of the batches, in a worker."""
    trainer, _, some = run
    if hasattr(trainer, "loop"):
        trainer.loop.begin_epoch()
    return timed(lambda: trainer._train_epoch(some, 0))


def load_seconds(run) -> float:
    """Of the loader's epoch, in a worker."""
    return timed(lambda: read(run[1]))


def sizes(run) -> dict:
    """Rows of a batch, batches of an epoch and batches that are measured, in a worker."""
    trainer, loader, some = run
    batch = trainer.config["train_batch_size"]
    return {"batch": batch, "batches": len(loader), "measured": len(some)}


def details(run, seconds: float, of_machine: tuple) -> dict:
    """Parts and bound of what took the tensor way so long, in its worker."""
    trainer, _, some = run
    parts = parts_of(trainer, some, seconds)
    return {"parts": parts, "bound ms": bound(trainer.model, next(iter(some)), *of_machine)}


def times_of(model: str, data: str, folder: str, ways: list[str], options) -> dict:
    """Seconds of each way's loader, step and epoch, taken in turns."""
    runs = {way: Worker(built_with_some, model, data, folder, way) for way in ways}
    trained, loads = defaultdict(list), defaultdict(list)
    for repetition in range(options.repetitions + 1):
        for way in ways if repetition % 2 else ways[::-1]:
            trained[way].append(runs[way].ask(train_seconds))
    for _ in range(1 if data == "10M" else options.repetitions):
        for way in ways:
            loads[way].append(runs[way].ask(load_seconds))
    row = {"data": data, "model": model, "keep_memory": True} | runs["tensor"].ask(sizes)
    row["ways"] = {}
    for way in ways:
        seconds = statistics.median(trained[way][1:])  # the first repetition warms up
        load, all_ = statistics.median(loads[way]), row["measured"] == row["batches"]
        step = (seconds - load * all_) / row["measured"]
        epoch = seconds if all_ else load + step * row["batches"]
        row["ways"][way] = {"step ms": 1000 * step, "load s": load, "epoch s": epoch}
        if way == "tensor":
            row |= runs[way].ask(details, seconds, options.speeds)
    for worker in runs.values():
        worker.end()
    return row


def peak(model: str, data: str, folder: str, way: str) -> float:
    """MB, of a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--peak-of", way, "--models", model]
    result = subprocess.run(
        [*command, "--data", data, "--folder", folder], capture_output=True, text=True, check=True
    )
    return float(result.stdout.strip().splitlines()[-1])


def print_peak(options) -> None:
    """What :func:`peak` runs."""
    model = options.models[0]
    trainer, loader = built(model, options.data[0], options.folder, options.peak_of)
    gc.collect()
    forget_peak()
    read(loader)
    trainer._train_epoch(some_of(loader, model, options.data[0]), 0)
    print(peak_mb())


def show(row: dict, before: dict | None) -> None:
    """Rows of the markdown table and what changed since the last table."""
    for way, found in row["ways"].items():
        old = (before or {}).get("ways", {}).get(way)
        change = f" (was {old['ratio']:.2f})" if old else ""
        peak_mb = f"{found['peak MB']:.0f}" if "peak MB" in found else ""
        print(
            f"| {row['data']} | {row['model']} | {way} | {found['load s']:.2f} "
            f"| {found['step ms']:.1f} | {found['epoch s']:.1f} | {found['ratio']:.2f} "
            f"| {peak_mb} | {max(row['bound ms'].values()):.1f} |{change}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", nargs="*", default=list(DATA), choices=list(DATA))
    parser.add_argument("--models", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), help="the first is the base")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--no-peaks", dest="peaks", action="store_false")
    parser.add_argument("--only-peaks", action="store_true", help="into the rows of the last table")
    parser.add_argument("--folder", help="where the data are, or are to be kept")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if options.peak_of:
        return print_peak(options)
    options.speeds = speeds()
    old = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    before = {(row["data"], row["model"]): row for row in old}
    print("| data | model | way | load, s | step, ms | epoch, s | ratio | peak, MB | bound, ms |")
    print("|" + "---|" * 9)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or temporary
        for data in options.data:
            if not (Path(folder) / data).is_dir():
                generate(Path(folder), data)
            for model in options.models:
                if options.only_peaks:
                    ways = ways_of(model, options.ways)
                    row = add_peaks(before[data, model], folder, ways)
                else:
                    row = measure(model, data, folder, options)
                show(row, before.get((data, model)))
                before[data, model] = row
                RESULTS.write_text(json.dumps(list(before.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
