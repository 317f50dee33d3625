"""An epoch of training with ``train_loader: tensor`` against RecBole's Trainer.

    python benchmarks/epoch.py            # one thread, about half an hour
    python benchmarks/epoch.py --quick    # the fast models on ml-100k only

RecBole's own Trainer and loader, AdvTrainer with RecBole's loader, with the tensor loader, and with the
tensor loader and ``learner_fused: True`` take turns, each in a process of its own (turns.py). A ratio is the
median over the repetitions of time(ours) / time(RecBole) of one round, and times are those of the processor,
so that they say little of how busy the machine was. Ours keeps memory from step to step, as in ``fit()``.
EIIL, which RecBole does not have, is measured against RecBole's Trainer on its backbone. An epoch of SASRec
is its first three batches.

``parts`` is where the time of the tensor epoch goes, each measured by itself: loader, forward,
backward, optimizer; ``rest`` is what is left, the trainer's. ``bound ms`` is the least that a step could
take here (bound.py). Larger data: large_epoch.py.
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
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from bound import bound, speeds
from memory import keep_as_in_fit
from recbole.trainer import Trainer
from recbole.utils import init_seed
from turns import Worker

from recbole_adv import Config
from recbole_adv.quick_start import _data_and_model
from recbole_adv.trainer import trainer_class

RESULTS = Path(__file__).parent / "results" / "epoch.json"
QUIET = {"show_progress": False, "state": "error", "use_gpu": False}
FEATURES = {
    "load_col": {
        "inter": ["user_id", "item_id", "rating"],
        "user": ["user_id", "age", "gender", "occupation"],
        "item": ["item_id", "release_year", "class"],
    },
    "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
    "eval_args": {"mode": "full"},
    "metrics": ["Recall"],
    "valid_metric": "Recall@10",
}
GAME = {"max_start_epoch": 0, "penalty_start": 0}
# name: model, settings, settings of RecBole's run, batches of an epoch (None: all), repetitions
CASES = {
    "BPR": ("BPR", {}, {}, None, 21),
    "LightGCN": ("LightGCN", {}, {}, None, 7),
    "SASRec": ("SASRec", {"train_neg_sample_args": None}, {}, 3, 9),
    "DeepFM": ("DeepFM", FEATURES, {}, None, 7),
    "EIIL, a step of max in 3": ("EIIL", GAME, {"model": "BPR"}, None, 11),
    "EIIL, both at each step": ("EIIL", {**GAME, "max_interval": 1}, {"model": "BPR"}, None, 11),
}
SLOW = ("LightGCN", "SASRec", "DeepFM")
WAYS = {
    "AdvTrainer": {"train_loader": "recbole"},
    "tensor": {"train_loader": "tensor"},
    "tensor, fused": {"train_loader": "tensor", "learner_fused": True},
}


class Head:
    """The first batches of a loader, read by a trainer as a whole epoch."""

    def __init__(self, loader, n_batches: int | None):
        self.loader, self.n_batches = loader, n_batches

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return min(len(self.loader), self.n_batches or len(self.loader))

    def __iter__(self):
        return itertools.islice(iter(self.loader), self.n_batches)


def generate(folder: Path, n_users: int = 6_000, n_items: int = 4_000, n_rows: int = 1_000_000):
    """A data set of different pairs; items by a long tail, users by a log-normal; its name."""
    rng = np.random.default_rng(0)
    activity = np.exp(rng.normal(0, 0.8, n_users))
    share = np.log(activity)[:, None] - 0.5 * np.log(np.arange(1, n_items + 1))[None, :]
    # The largest of log weight + Gumbel noise are a weighted draw without replacement.
    key = share + rng.gumbel(size=share.shape)
    pair = np.argpartition(-key.ravel(), n_rows)[:n_rows]
    pair = np.union1d(pair, np.arange(n_items) * n_items + np.arange(n_items))  # every item
    name = "random-1M"
    (folder / name).mkdir()
    with open(folder / name / f"{name}.inter", "w") as file:
        file.write("user_id:token\titem_id:token\n")
        file.writelines(f"{u}\t{i}\n" for u, i in zip(*np.divmod(pair, n_items)))
    return name


def built(model: str, dataset: str, settings: dict, stock: bool, n_batches: int | None):
    """A trainer and the loader it reads."""
    config = Config(model, dataset, config_dict={**QUIET, **settings})
    _, train, _, _, net = _data_and_model(config)
    init_seed(0, True)
    if stock:
        return Trainer(config, net), Head(train, n_batches)
    trainer = trainer_class(config.model_class)(config, net)
    keep_as_in_fit(trainer)
    return trainer, Head(trainer._before_fit(train), n_batches)


def epoch_seconds(run) -> float:
    """Of the processor, in a worker."""
    trainer, loader = run
    if hasattr(trainer, "loop"):
        trainer.loop.begin_epoch()
    start = time.process_time()
    trainer._train_epoch(loader, 0)
    return time.process_time() - start


def details(run, epoch: float) -> dict:
    """Parts and bound of the tensor epoch, in its worker."""
    trainer, loader = run
    parts = parts_of(trainer, loader, epoch)
    found = bound(trainer.model, next(iter(loader)), *speeds())
    return {"batches": len(loader), "parts": parts, "bound ms": found}


def case_row(name: str, case: tuple, dataset: str, extra: dict, repetitions: int | None) -> dict:
    """Seconds of RecBole's epoch, the ratios of ours, and the parts of the tensor epoch."""
    model, settings, of_stock, n_batches, usual = case
    settings = {**settings, **extra}
    stock = {k: v for k, v in {**settings, **of_stock}.items() if k not in GAME}
    runs = {"RecBole": Worker(built, stock.pop("model", model), dataset, stock, True, n_batches)}
    for way, more in WAYS.items():
        runs[way] = Worker(built, model, dataset, {**settings, **more}, False, n_batches)
    seconds, ratios = defaultdict(list), defaultdict(list)
    for repetition in range((repetitions or usual) + 1):
        for way in runs if repetition % 2 else reversed(runs):
            seconds[way].append(runs[way].ask(epoch_seconds))
        if repetition == 0:  # it warms up
            seconds.clear()
            continue
        for way in WAYS:
            ratios[way].append(seconds[way][-1] / seconds["RecBole"][-1])
    row = {"data": dataset, "model": name, "RecBole s": statistics.median(seconds["RecBole"])}
    for way in WAYS:
        quartiles = statistics.quantiles(ratios[way], n=4)
        row[way] = statistics.median(ratios[way])
        row[f"{way} spread"] = (quartiles[2] - quartiles[0]) / 2
    row |= runs["tensor"].ask(details, row["tensor"] * row["RecBole s"])
    for worker in runs.values():
        worker.end()
    return row


def parts_of(trainer, loader, epoch: float) -> dict[str, float]:
    """Shares of an epoch of the first player; what else is trained counts in ``rest``."""
    model, optimizer, repeats = trainer.model.train(), trainer.optimizer, 5
    spent: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        start = time.process_time()
        batches = list(loader)
        spent["loader"].append(time.process_time() - start)
        sums = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)
        for batch in batches:
            optimizer.zero_grad()
            times = [time.process_time()]
            loss = model.calculate_loss(batch)
            loss = sum(loss) if isinstance(loss, tuple) else loss
            times.append(time.process_time())
            loss.backward()
            times.append(time.process_time())
            optimizer.step()
            times.append(time.process_time())
            for part, a, b in zip(sums, times, times[1:]):
                sums[part] += b - a
        for part, total in sums.items():
            spent[part].append(total)
    shares = {part: statistics.median(found) / epoch for part, found in spent.items()}
    return {**shares, "rest": 1 - sum(shares.values())}


def show(row: dict, before: dict | None) -> None:
    """Print a row of the markdown table and what changed since the last table."""
    cells = [row["data"], row["model"], f"{row['RecBole s']:.3f}"]
    cells += [f"{row[way]:.2f} ± {row[f'{way} spread']:.2f}" for way in WAYS]
    parts = ", ".join(f"{part} {100 * share:.0f} %" for part, share in row["parts"].items())
    change = f" (tensor was {before['tensor']:.2f})" if before else ""
    print("| " + " | ".join([*cells, parts]) + f" |{change}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repetitions", type=int, help="of every case; nothing is stored")
    parser.add_argument("--only", help="the cases whose name has this in it, or 1M")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    old = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    before = {(row["data"], row["model"]): row for row in old}
    print("| data | model | RecBole, s | " + " | ".join(WAYS) + " | of the tensor epoch |")
    print("|" + "---|" * (len(WAYS) + 4))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        work = [(name, "ml-100k", {}) for name in CASES if not (options.quick and name in SLOW)]
        if options.only:
            work = [job for job in work if options.only in job[0]]
        if not options.quick and options.only in (None, "1M"):
            made = {"data_path": folder, "load_col": None}
            work.append(("BPR", generate(Path(folder)), made))
        for name, dataset, extra in work:
            row = case_row(name, CASES[name], dataset, extra, options.repetitions)
            show(row, before.get((dataset, name)))
            if options.repetitions is None:  # each as it comes, so that an end loses no other
                before[dataset, name] = row
                RESULTS.write_text(json.dumps(list(before.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
