"""What a training step of AdvInfoNCE costs, sampling included, against the official kind of loop.

    python benchmarks/advinfonce_step.py            # about two minutes on one core

Matrix factorisation, 64 negatives, batches of 1024, generated 14,000 users x 1,000 items with
88,000 rows. Ours: RecBole's loader, the model and INVTrainer's engine. The stand-in is written here
after LehengTHU/AdvInfoNCE at e7c0416: a DataLoader without workers over a ``__getitem__`` that
draws a positive by ``random.choice`` and 64 negatives by rejection against a set, gathered rows,
exp and quotient, one Adam over the recommender, the adversary frozen, KL at each step. Two kinds of
it bound the original, whose sampler is compiled: ``python`` draws one negative after the other,
``numpy`` all 64 at once; ``no sampling`` leaves the drawing of negatives out altogether.

A ratio is the median over the repetitions of time(ours) / time(stand-in), measured one right after
the other in one process; no time is compared across runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from recbole_adv import Config
from recbole_adv.quick_start import _data_and_model
from recbole_adv.trainer import INVTrainer

RESULTS = Path(__file__).parent / "results"
N_USERS, N_ITEMS, N_ROWS = 14_000, 1_000, 88_000
N_NEGATIVES, BATCH, SIZE, TAU, K = 64, 1024, 64, 0.28, 64


def generate(folder: Path) -> None:
    """Random pairs, as many users, items and rows as Yahoo!R3's training split."""
    rng = np.random.default_rng(0)
    every = np.concatenate([np.arange(N_USERS), rng.integers(0, N_USERS, N_ROWS)])
    pairs = np.stack([every, rng.integers(0, N_ITEMS, len(every))], axis=1)
    pairs = np.unique(pairs, axis=0)
    pairs = pairs[np.sort(rng.permutation(len(pairs))[:N_ROWS])]
    (folder / "random").mkdir()
    with open(folder / "random" / "random.inter", "w") as file:
        file.write("user_id:token\titem_id:token\n")
        file.writelines(f"{u}\t{i}\n" for u, i in pairs)


class Samples(torch.utils.data.Dataset):
    """Positive and negatives of one row at a time, in Python."""

    def __init__(self, user: list[int], item: list[int], sampling: str):
        self.items: dict[int, list[int]] = {}
        for u, i in zip(user, item):
            self.items.setdefault(u, []).append(i)
        self.users = list(self.items)
        self.sets = {u: set(items) for u, items in self.items.items()}
        self.n_rows = len(user)
        self.draw = {"python": self._one_by_one, "numpy": self._at_once, "no sampling": self._none}[
            sampling
        ]
        self.fixed = np.arange(1, N_NEGATIVES + 1)

    def __len__(self):
        return self.n_rows

    def __getitem__(self, index):
        user = self.users[index % len(self.users)]
        positive = random.choice(self.items[user])
        return user, positive, torch.as_tensor(self.draw(self.sets[user]), dtype=torch.long)

    def _one_by_one(self, held):
        drawn = []
        while len(drawn) < N_NEGATIVES:
            item = random.randint(1, N_ITEMS)
            if item not in held:
                drawn.append(item)
        return drawn

    def _at_once(self, held):
        drawn = np.random.randint(1, N_ITEMS + 1, N_NEGATIVES)
        for place, item in enumerate(drawn.tolist()):
            while item in held:
                item = drawn[place] = random.randint(1, N_ITEMS)
        return drawn

    def _none(self, held):
        return self.fixed


class StandIn(nn.Module):
    """The official loss: gathered embeddings, exponentials and their quotient."""

    def __init__(self, n_users: int, n_items: int):
        super().__init__()
        self.user, self.item = nn.Embedding(n_users, SIZE), nn.Embedding(n_items, SIZE)
        self.user_p, self.item_p = nn.Embedding(n_users, SIZE), nn.Embedding(n_items, SIZE)
        for table in self.children():
            nn.init.xavier_normal_(table.weight)
        self.user_p.requires_grad_(False)
        self.item_p.requires_grad_(False)

    def forward(self, user, positive, negative):
        user_0, positive_0 = self.user(user), self.item(positive)
        user_e, positive_e = F.normalize(user_0, dim=-1), F.normalize(positive_0, dim=-1)
        negative_e = F.normalize(self.item(negative), dim=-1)
        hardness = torch.matmul(self.user_p(user).unsqueeze(1), self.item_p(negative).mT).squeeze(1)
        prob = hardness.softmax(dim=1)
        numerator = torch.exp((user_e * positive_e).sum(dim=-1) / TAU)
        scores = torch.matmul(user_e.unsqueeze(1), negative_e.mT).squeeze(1)
        rest = K * N_NEGATIVES * (torch.exp(scores / TAU) * prob).sum(dim=1)
        loss = -torch.log(numerator / (numerator + rest)).mean()
        norms = 0.5 * user_0.norm() ** 2 + 0.5 * positive_0.norm() ** 2
        self.kl = (prob * torch.log(prob * N_NEGATIVES)).sum(dim=1)
        return loss + 1e-5 * norms / BATCH


def stand_in_steps(rows, n_users: int, n_items: int, sampling: str):
    """A function that trains the stand-in for a number of steps."""
    user, item = rows["user_id"].tolist(), rows["item_id"].tolist()
    data = Samples(user, item, sampling)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True)
    model = StandIn(n_users, n_items)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def steps(n: int) -> None:
        for batch in itertools.islice(batches, n):
            loss = model(*batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return steps


def our_steps(trainer, train):
    """A function that trains AdvInfoNCE's min player for a number of steps."""
    trainer._before_fit(train)
    trainer.model.train()
    turn, engine = trainer._turns()["min"], trainer.loop.engine
    batches = itertools.chain.from_iterable(itertools.repeat(train))

    def steps(n: int) -> None:
        done = 0
        for batch in batches:
            if len(batch) == BATCH:  # drop_last
                engine.run(turn, batch)
                done += 1
            if done == n:
                break

    return steps


def paired(ours, base, steps: int, repetitions: int) -> dict[str, float]:
    """Median milliseconds of a step of either and the median ratio with half its quartile range."""
    times: dict = {ours: [], base: []}
    for repetition in range(repetitions + 1):
        for run in (ours, base) if repetition % 2 else (base, ours):
            start = time.perf_counter()
            run(steps)
            if repetition:  # the first pair warms up
                times[run].append((time.perf_counter() - start) / steps)
    ratios = [a / b for a, b in zip(times[ours], times[base])]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "ours_ms": 1000 * statistics.median(times[ours]),
        "base_ms": 1000 * statistics.median(times[base]),
        "ratio": statistics.median(ratios),
        "spread": (quartiles[2] - quartiles[0]) / 2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="steps in one measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        generate(Path(folder))
        settings = {"data_path": folder, "load_col": None, "use_gpu": False, "state": "error"}
        settings |= {"show_progress": False, "train_batch_size": BATCH, "user_uniform": True}
        settings |= {"eval_args": {"split": {"RS": [1, 0, 0]}, "mode": "full"}, "n_layers": 0}
        config = Config("AdvInfoNCE", "random", config_dict=settings, command_line=())
        _, train, _, _, model = _data_and_model(config)
        trainer = INVTrainer(config, model)
        data = train._dataset
        print("| stand-in's sampling | stand-in ms | ours ms | ratio |\n|---|---|---|---|")
        for sampling in ("python", "numpy", "no sampling"):
            base = stand_in_steps(data.inter_feat, data.user_num, data.item_num, sampling)
            row = paired(our_steps(trainer, train), base, options.steps, options.repetitions)
            rows.append({"sampling": sampling, "n_rows": len(data.inter_feat), **row})
            print(
                f"| {sampling} | {row['base_ms']:.1f} | {row['ours_ms']:.1f} "
                f"| {row['ratio']:.3f} ± {row['spread']:.3f} |",
                flush=True,
            )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "advinfonce_step.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
