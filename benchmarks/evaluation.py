"""What a full ranking costs with ``eval_memory_mb``, against RecBole's own evaluation.

    python benchmarks/evaluation.py                    # 100,000 users x 50,000 items, minutes
    python benchmarks/evaluation.py --users 5000 --items 5000

Generated interactions (10 training, 1 validation and 2 test rows a user), BPR with embeddings of 64
as initialised, and NeuMF, which has no method that scores all items; one thread. Ratios are of
processor times per user: RecBole and recbole_adv one right after
the other on the same users, the median of several repetitions; all users are ranked once more by
recbole_adv alone. RecBole is run as it comes (eval_batch_size 4096, here one user at a time), and with
an eval_batch_size that gives chunks of as many users as ours have.

Memory is the largest resident set of the process while it evaluates, less that before, sampled every
5 ms. RecBole's own time per user grows with the number of users (it copies the lists of all earlier
batches in each), so a part of the users flatters it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from recbole.data.utils import get_dataloader

from recbole_adv import Config
from recbole_adv.evaluation.evaluation import evaluation_of
from recbole_adv.prepared_run import prepared_run

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
SETTINGS = {
    "benchmark_filename": ["train", "valid", "test"],
    "load_col": {"inter": ["user_id", "item_id"]},
    "eval_args": {"mode": "full"},
    "metrics": ["Recall", "NDCG", "MRR", "Hit", "Precision"],
    "topk": [10, 20],
    "valid_metric": "NDCG@10",
    "embedding_size": 64,
    "use_gpu": False,
    "show_progress": False,
    "state": "error",
    "metric_decimal_place": 8,
}


class PeakMemory:
    """MB by which the resident set of this process grows inside, at most."""

    def __enter__(self) -> PeakMemory:
        self._process, self._stop = psutil.Process(), threading.Event()
        self.before = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.added = (self._peak - self.before) / 2**20
        self.peak = self._peak / 2**20


def generate(folder: Path, n_users: int, n_items: int) -> None:
    """Files of the data set ``made``: items by a long tail, no pair twice."""
    rng = np.random.default_rng(0)
    weight = 1 / np.arange(1, n_items + 1) ** 0.8
    user = np.repeat(np.arange(n_users), 20)
    item = rng.choice(n_items, len(user), p=weight / weight.sum())
    pair = rng.permutation(np.unique(user * n_items + item))
    user, item = np.divmod(pair[np.argsort(pair // n_items, kind="stable")], n_items)
    place = np.arange(len(user)) - np.searchsorted(user, user)
    (folder / "made").mkdir()
    for part, low, high in (("train", 0, 10), ("valid", 10, 11), ("test", 11, 13)):
        rows = (place >= low) & (place < high)
        u, i = user[rows], item[rows]
        if part == "train":  # every item is known
            u, i = np.append(u, rng.integers(0, n_users, n_items)), np.append(i, np.arange(n_items))
        lines = "\n".join(f"{a}\t{b}" for a, b in zip(u.tolist(), i.tolist()))
        file = folder / "made" / f"made.{part}.inter"
        file.write_text(f"user_id:token\titem_id:token\n{lines}\n")


def some_users(config, loader, n_users: int, at_once: int):
    """RecBole's loader of the first users, which scores ``at_once`` of them in a batch."""
    dataset = loader._dataset
    rows = dataset.inter_feat
    index = torch.nonzero(rows[dataset.uid_field] <= n_users).squeeze(1)
    part = dataset.copy(type(rows)({name: rows[name][index] for name in rows.columns}))
    config["eval_batch_size"] = at_once * dataset.item_num
    return get_dataloader(config, "test")(config, part, loader._sampler, shuffle=False)


def timed(trainer, loader, evaluation) -> tuple[float, float, float, dict]:
    """Milliseconds per user, MB added, MB at the peak, and the result."""
    trainer.evaluation = evaluation
    with PeakMemory() as memory:
        start = time.process_time()
        result = trainer.evaluate(loader, load_best_model=False)
        seconds = time.process_time() - start
    return 1000 * seconds / len(loader.uid_list), memory.added, memory.peak, result


def compare(run, config, ours, n_users: int, at_once: int, name: str, repeats: int) -> dict:
    """RecBole and ours on the same users."""
    loader = some_users(config, run.test_data, n_users, at_once)
    stock_ms, our_ms, ratios = [], [], []
    timed(run.trainer, loader, ours)  # finds the targets, once
    for _ in range(repeats):
        stock, stock_mb, _, expected = timed(run.trainer, loader, None)
        mine, our_mb, _, result = timed(run.trainer, loader, ours)
        difference = max(abs(expected[name] - result[name]) for name in expected)
        stock_ms.append(stock)
        our_ms.append(mine)
        ratios.append(mine / stock)
    return {
        "RecBole": name,
        "users": len(loader.uid_list),
        "RecBole ms per user": statistics.median(stock_ms),
        "ours ms per user": statistics.median(our_ms),
        "ratio": statistics.median(ratios),
        "ratio from": min(ratios),
        "ratio to": max(ratios),
        "RecBole MB added": stock_mb,
        "ours MB added": our_mb,
        "largest difference of a metric": difference,
    }


def show(row: dict) -> None:
    """Print one row of a markdown table."""
    cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
    print("| " + " | ".join(cells) + " |", flush=True)


def measure(options: argparse.Namespace, folder: str, model: str, n_users: int) -> dict:
    """A model against RecBole on ``n_users``, and for BPR all users, as plain data."""
    settings = {**SETTINGS, "data_path": folder, "eval_memory_mb": options.memory_mb}
    config = Config(model, "made", config_dict=settings, command_line=())
    with prepared_run(config) as run:
        ours = evaluation_of(config)
        n_items = run.test_data._dataset.item_num
        at_once = max(options.memory_mb * 2**20 // (8 * n_items), 1)
        kinds = {"as it comes": max(4096 // n_items, 1), "chunks as ours": min(at_once, n_users)}
        rows = []
        for name, of_stock in kinds.items():
            row = compare(run, config, ours, n_users, of_stock, name, options.repeats)
            rows.append({"model": model, **row})
            show(rows[-1])
        if model != "BPR":
            return {"compared": rows}
        per_user, added, peak, _ = timed(run.trainer, run.test_data, ours)
    whole = {"users": options.users, "items": options.items, "memory_mb": options.memory_mb}
    whole |= {"users at once": at_once, "ms per user": per_user, "MB added": added, "peak MB": peak}
    return {"compared": rows, "whole": whole}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--memory-mb", type=int, default=128, help="eval_memory_mb")
    parser.add_argument("--stock-users", type=int, default=4000, help="users that RecBole ranks")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        generate(Path(folder), options.users, options.items)
        head = ["model", "RecBole", "users", "RecBole ms per user", "ours ms per user", "ratio"]
        head += ["from", "to", "RecBole MB added", "ours MB added", "largest difference"]
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        found = measure(options, folder, "BPR", min(options.stock_users, options.users))
        found["compared"] += measure(options, folder, "NeuMF", 40)["compared"]
    print("\nAll users:", json.dumps(found["whole"]))
    defaults = {action.dest: action.default for action in parser._actions}
    if all(getattr(options, key) == defaults[key] for key in vars(options)):
        before = json.loads(RESULTS.read_text()) if RESULTS.is_file() else None
        for old, new in zip(before["compared"] if before else (), found["compared"]):
            name = f"{new['model']}, RecBole {new['RecBole']}"
            print(f"{name}: ratio {old['ratio']:.3f} before, {new['ratio']:.3f} now")
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
