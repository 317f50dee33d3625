"""Are the published protocols on Coat reproduced for given scores, to four decimals?

    python benchmarks/protocol_coat.py --data DIR

DIR holds ``coat.train.inter``, ``coat.valid.inter`` and ``coat.test.inter`` (the files of
LehengTHU/AdvInfoNCE), and ``coat-invpref.trainpos.inter``, ``coat-invpref.testpos.inter`` and
``coat-invpref.test.inter`` (AIflowerQ/InvPref_KDD_2022; the last is the pool of 16 items a user).

Each protocol is written out below in plain Python, as the official code has it, and compared with
recbole_adv's evaluation of the same scores:

* full: the best 20 of all items; pairs of training and validation are hidden unless they are targets
  of the evaluated set (which is a leak); the mean over the users of the evaluated file;
* leak-free: the same without targets that training or validation has (``drop_leaks``);
* pool: the best k of a user's 16 candidates; training positives rank behind the rest of the pool,
  and stay targets (``mask_leaks`` and ``test_pool``).

Scores: random ones, the popularity of an item in training, and a look-up table of the training pairs
before popularity. Popularity is untied by the number of the item, smallest first. The official MAP
divides by the number of hits where RecBole divides by min(k, targets), so MAP is not compared.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType

from recbole_adv import Config
from recbole_adv.prepared_run import prepared_run

RESULTS = Path(__file__).parent / "results"
METRICS = ("Recall", "NDCG", "Precision", "MRR", "Hit")
SETTINGS = {
    "load_col": {"inter": ["user_id", "item_id"]},
    "eval_args": {"order": "RO", "group_by": None, "mode": "full"},
    "metrics": list(METRICS),
    "metric_decimal_place": 8,
    "use_gpu": False,
    "show_progress": False,
    "state": "error",
}


class GivenScores(GeneralRecommender):
    """Scores [users, items] by the numbers that the files have for them."""

    input_type = InputType.PAIRWISE
    scores: np.ndarray

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        users, items = (
            dataset.field2id_token[field][1:].astype(int)
            for field in (dataset.uid_field, dataset.iid_field)
        )
        table = torch.zeros(self.n_users, self.n_items, dtype=torch.float64)
        table[1:, 1:] = torch.from_numpy(self.scores[np.ix_(users, items)])
        self.register_buffer("table", table)

    def full_sort_predict(self, interaction):
        return self.table[interaction[self.USER_ID]].view(-1)


def by_user(rows: np.ndarray) -> dict[int, set[int]]:
    """The items of each user."""
    found: dict[int, set[int]] = defaultdict(set)
    for user, item in rows:
        found[int(user)].add(int(item))
    return found


def one_user(ranked: list[int], targets: set[int], k: int) -> list[float]:
    """METRICS of one list, at k."""
    hits = [item in targets for item in ranked[:k]]
    gain = [1 / math.log2(place + 2) for place in range(k)]
    first = hits.index(True) if True in hits else None
    return [
        sum(hits) / len(targets),
        sum(g for g, hit in zip(gain, hits) if hit) / sum(gain[: min(k, len(targets))]),
        sum(hits) / k,
        0.0 if first is None else 1 / (first + 1),
        float(first is not None),
    ]


def official(scores, targets, hidden, k: int, pool=None, known_last: bool = False) -> dict:
    """A protocol in plain Python.

    targets, hidden, pool: items by user; known_last: hidden items stay targets, behind the rest.
    """
    found = []
    for user, of_user in targets.items():
        candidates = pool[user] if pool else range(scores.shape[1])
        never = hidden[user] if known_last else hidden[user] - of_user
        ranked = sorted(set(candidates) - never, key=lambda item: -scores[user, item])
        found.append(one_user(ranked, of_user, k))
    return dict(zip(METRICS, np.mean(found, axis=0).tolist())) | {"users": len(found)}


def ours(folder: str, files: list[str], scores, k: int, valid: bool = False, **keys) -> dict:
    """recbole_adv's evaluation of the same scores."""
    GivenScores.scores = scores
    settings = {**SETTINGS, "data_path": folder, "benchmark_filename": files, "topk": [k]}
    settings |= {"valid_metric": f"Recall@{k}", **keys}
    config = Config(GivenScores, "coat", config_dict=settings, command_line=())
    with prepared_run(config) as run:
        data = run.valid_data if valid else run.test_data
        result = run.trainer.evaluate(data, load_best_model=False)
        users = len(data.uid_list)
    return {name: result[f"{name.lower()}@{k}"] for name in METRICS} | {"users": users}


def matrices(train: np.ndarray, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """The scores by name."""
    tie = np.arange(shape[1]) * 1e-6
    popularity = np.tile(np.bincount(train[:, 1], minlength=shape[1]) - tie, (shape[0], 1))
    look_up = popularity.copy()
    look_up[train[:, 0], train[:, 1]] += 1e4
    random = {f"random {s}": np.random.default_rng(s).random(shape) for s in range(3)}
    return {**random, "popularity": popularity, "look-up": look_up}


def cases(data: Path, folder: str):
    """(protocol, scores, k, official figures, ours) of every comparison."""
    read = {p: pd.read_csv(data / p, sep="\t").iloc[:, :2].to_numpy() for p in os.listdir(data)}
    train, valid, test = (read[f"coat.{part}.inter"] for part in ("train", "valid", "test"))
    known, earlier = by_user(np.concatenate([train, valid])), by_user(train)
    clean = {u: t - known[u] for u, t in by_user(test).items() if t - known[u]}
    files = ["train", "valid", "test"]
    for name, scores in matrices(train, (300, 300)).items():
        scores = scores[:, : 1 + max(part[:, 1].max() for part in (train, valid, test))]
        yield "full", name, 20, official(scores, by_user(test), known, 20), ours(
            folder, files, scores, 20, eval_memory_mb=1
        )
        yield "full, valid", name, 20, official(scores, by_user(valid), earlier, 20), ours(
            folder, files, scores, 20, valid=True
        )
        yield "leak-free", name, 20, official(scores, clean, known, 20), ours(
            folder, files, scores, 20, drop_leaks=True
        )
    train, test = read["coat-invpref.trainpos.inter"], read["coat-invpref.testpos.inter"]
    pool_file = str(data / "coat-invpref.test.inter")
    pool, known = by_user(read["coat-invpref.test.inter"]), by_user(train)
    for name, scores in matrices(train, (300, 300)).items():
        for k in (3, 5, 7):
            expected = official(scores, by_user(test), known, k, pool, known_last=True)
            keys = {"test_pool": pool_file, "mask_leaks": True}
            # Pools have items that are no positives; a file of items makes them known.
            keys |= {"load_col": {"inter": ["user_id", "item_id"], "item": ["item_id"]}}
            yield "pool", name, k, expected, ours(
                folder, ["pos", "none", "testpos"], scores, k, **keys
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder with the files")
    data = parser.parse_args().data.resolve()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows, worst = [], 0.0
    print("| protocol | scores | k | users | " + " | ".join(METRICS) + " | largest difference |")
    print("|" + "---|" * (len(METRICS) + 5))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.mkdir("coat")
        for part in ("train", "valid", "test"):
            os.symlink(data / f"coat.{part}.inter", f"coat/coat.{part}.inter")
        for part, name in (("pos", "trainpos"), ("testpos", "testpos")):
            os.symlink(data / f"coat-invpref.{name}.inter", f"coat/coat.{part}.inter")
        # InvPref has no validation; RecBole wants one, and hides it: a training pair changes nothing.
        first = (data / "coat-invpref.trainpos.inter").read_text().splitlines()[:2]
        Path("coat/coat.none.inter").write_text("\n".join(first) + "\n")
        Path("coat/coat.item").write_text(
            "item_id:token\n" + "\n".join(map(str, range(300))) + "\n"
        )
        for protocol, name, k, expected, found in cases(data, folder):
            assert expected["users"] == found["users"], (protocol, expected, found)
            difference = max(abs(expected[m] - found[m]) for m in METRICS)
            worst = max(worst, difference)
            figures = {metric: round(found[metric], 4) for metric in METRICS}
            row = {"protocol": protocol, "scores": name, "k": k, "users": found["users"]}
            rows.append({**row, **figures, "difference": difference})
            shown = " | ".join(f"{found[m]:.4f}" for m in METRICS)
            print(f"| {protocol} | {name} | {k} | {found['users']} | {shown} | {difference:.1e} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "protocol_coat.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"largest difference {worst:.1e}: " + ("equal" if worst < 5e-5 else "NOT EQUAL"))


if __name__ == "__main__":
    main()
