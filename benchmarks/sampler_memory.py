"""Memory and time of the samplers: RecBole's against those of ``train_loader: tensor``.

    python benchmarks/sampler_memory.py                 # 10M interactions, 100k users, 50k items
    python benchmarks/sampler_memory.py --rows 1000000

Each is built in a process of its own on the same generated interactions (80 % training, 10 %
validation, 10 % test) and draws a negative for each of 2048 training rows; then it is asked for the used
items of every user of validation and test, one after the other, as RecBole's loaders of a full ranking
do. ``peak`` is how far the largest resident set lies above that with the interactions alone, ``kept`` how
far the resident set does at the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import torch
from recbole.data.interaction import Interaction
from recbole.sampler import Sampler

from recbole_adv.loader.sampler import TensorSampler, draw_of

RESULTS = Path(__file__).parent / "results" / "sampler_memory.json"
PHASES = ["train", "valid", "test"]


def generate(file: Path, n_rows: int, n_users: int, n_items: int) -> None:
    """Different pairs in random order, items by a long tail; [2, N] int64 in a file."""
    rng = np.random.default_rng(0)
    weight = np.cumsum(1 / np.sqrt(np.arange(1, n_items)))
    item = 1 + np.searchsorted(weight, rng.random(n_rows * 21 // 20) * weight[-1])
    pair = np.unique(rng.integers(1, n_users, len(item)) * n_items + item)
    np.save(file, np.stack(np.divmod(rng.permutation(pair)[:n_rows], n_items)))


def datasets(file: str, n_users: int, n_items: int) -> list:
    """What a sampler reads of RecBole's datasets, of three parts."""
    user, item = torch.from_numpy(np.load(file))
    parts, ends = [], [0, int(0.8 * len(user)), int(0.9 * len(user)), len(user)]
    for low, high in zip(ends, ends[1:]):
        feat = Interaction({"user_id": user[low:high], "item_id": item[low:high]})
        about = {"uid_field": "user_id", "iid_field": "item_id", "inter_feat": feat}
        parts.append(SimpleNamespace(**about, user_num=n_users, item_num=n_items, id2token=str))
    return parts


def measure(which: str, file: str, n_users: int, n_items: int) -> dict[str, float]:
    """MB and seconds of one sampler, in this process."""
    parts = datasets(file, n_users, n_items)
    rows = parts[0].inter_feat
    user, item = rows["user_id"][:2048], rows["item_id"][:2048]
    before = psutil.Process().memory_info().rss

    def kept() -> float:
        gc.collect()
        return (psutil.Process().memory_info().rss - before) / 2**20

    def peak() -> float:
        # Not ru_maxrss, in which a child of a large process begins with the size of that.
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10 - before / 2**20

    start = time.perf_counter()
    if which == "RecBole":
        sampler = Sampler(PHASES, parts)
        train = sampler.set_phase("train")
        drawn = train.sample_by_user_ids(user.numpy(), item.numpy(), 1)
    else:
        sampler = TensorSampler(PHASES, parts)
        draw = draw_of(sampler.set_phase("train"), torch.device("cpu"))
        drawn = draw(user, item, 1)
    assert len(drawn) == 2048
    row = {"training s": time.perf_counter() - start, "training peak MB": peak()}
    row["training kept MB"] = kept()
    for phase in PHASES[1:]:
        used = sampler.set_phase(phase).used_ids
        assert sum(len(used[u]) for u in range(n_users)) > 0.8 * len(rows)
    return {
        **row,
        "all s": time.perf_counter() - start,
        "all peak MB": peak(),
        "all kept MB": kept(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        print(json.dumps(measure(*options.child, options.users, options.items)))
        return
    found: dict = {"rows": options.rows, "users": options.users, "items": options.items}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.npy"
        generate(file, options.rows, options.users, options.items)
        for which in ("RecBole", "tensor"):
            command = [sys.executable, __file__, *sys.argv[1:], "--child", which, str(file)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[which] = json.loads(done.stdout.splitlines()[-1])
            print(
                which, {name: round(value, 1) for name, value in found[which].items()}, flush=True
            )
    found["ratio"] = {name: found["tensor"][name] / v for name, v in found["RecBole"].items()}
    print("tensor / RecBole", {name: round(ratio, 3) for name, ratio in found["ratio"].items()})
    if options.rows == parser.get_default("rows"):
        if RESULTS.is_file():
            print("before", json.loads(RESULTS.read_text())["ratio"])
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
