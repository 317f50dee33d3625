"""How a training step grows with the number of items: stock RecBole, dense Adam, and sparse embeddings.

    python benchmarks/item_count.py            # 10k, 100k and 1M items, about five minutes on one core
    python benchmarks/item_count.py --quick    # without 1M items

BPR of 64 dimensions over 10,000 users, batches of 2048 rows: the users uniform, the positives like
1 / rank, the negatives uniform. Nothing is loaded: the batches are made before the clock starts. The
step is that of RecBole's Trainer, of ours without any key, and of ours with ``sparse_embeddings``
under Adam (also where torch is told to ask for huge pages), Adagrad, row-wise Adagrad and SGD. Each
measurement has a process of its own, for its peak memory; all take turns, several times, and the least
time of a turn counts. It is the time of the processor, so that waiting for one does not count; what others
do to caches and memory still does.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "item_count.json"
N_USERS, BATCH, SIZE = 10_000, 2048, 64
KINDS = {
    "stock": {},
    "dense": {},
    "sparse": {"sparse_embeddings": True},
    "sparse, huge pages": {"sparse_embeddings": True},
    "sparse, adagrad": {"sparse_embeddings": True, "learner": "adagrad"},
    "sparse, row_adagrad": {"sparse_embeddings": True, "learner": "row_adagrad"},
    "sparse, sgd": {"sparse_embeddings": True, "learner": "sgd"},
}
DENSE = ("stock", "dense")


class Counts:
    """The part of a data set that BPR reads: how many users and items there are."""

    def __init__(self, n_items: int):
        self.of = {"user_id": N_USERS, "item_id": n_items}

    def num(self, field: str) -> int:
        return self.of[field]


def batches(n_items: int, count: int):
    """Training batches as RecBole's loader makes them."""
    import torch
    from recbole.data.interaction import Interaction

    draw = torch.Generator().manual_seed(0)
    # Inverse of the distribution function of 1 / rank, about; ranks are spread over the table.
    spread = torch.randperm(n_items - 1, generator=draw) + 1
    for _ in range(count):
        uniform = torch.rand(BATCH, generator=draw, dtype=torch.float64)
        rank = (float(n_items) ** uniform).long().clamp(max=n_items - 1) - 1
        yield Interaction(
            {
                "user_id": torch.randint(1, N_USERS, (BATCH,), generator=draw),
                "item_id": spread[rank],
                "neg_item_id": torch.randint(1, n_items, (BATCH,), generator=draw),
            }
        )


def measure(kind: str, n_items: int, n_steps: int, repetitions: int) -> dict[str, float]:
    """Milliseconds of a step and the peak of the process's memory in MB above that of its imports."""
    if "huge pages" in kind:
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # torch reads it at its first allocation
    import torch
    from recbole.model.general_recommender import BPR
    from recbole.trainer import Trainer

    from recbole_adv import Config
    from recbole_adv.trainer import AdvTrainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    os.chdir(tempfile.mkdtemp())
    quiet = {"show_progress": False, "state": "error", "use_gpu": False, "monitor_interval": 0}
    given = {**quiet, "embedding_size": SIZE, "train_batch_size": BATCH, **KINDS[kind]}
    config = Config("BPR", "ml-100k", config_dict=given, command_line=[])
    data = list(batches(n_items, n_steps))
    before = peak_mb()
    model = BPR(config, Counts(n_items))
    trainer = (Trainer if kind == "stock" else AdvTrainer)(config, model)
    trainer._train_epoch(data[: max(2, n_steps // 4)], 0)  # the state is made
    times = []
    for epoch in range(1, repetitions + 1):
        start = time.process_time()
        trainer._train_epoch(data, epoch)
        times.append(1000 * (time.process_time() - start) / n_steps)
    return {"ms": min(times), "median_ms": statistics.median(times), "peak_mb": peak_mb() - before}


def peak_mb() -> float:
    """The largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(counts: list[int], turns: int) -> dict[str, dict[str, dict[str, float]]]:
    """By kind and number of items; the least time of all turns."""
    found: dict = {kind: {} for kind in KINDS}
    context = multiprocessing.get_context("spawn")
    for _ in range(turns):
        for kind in KINDS:
            for n_items in counts:
                dense = kind in DENSE
                steps, repetitions = ((20, 5) if n_items < 1e5 else (4, 2)) if dense else (50, 10)
                with context.Pool(1) as pool:
                    row = pool.apply(measure, (kind, n_items, steps, repetitions))
                print(f"{kind}, {n_items:,} items: {row['ms']:.2f} ms", flush=True)
                best = found[kind].setdefault(str(n_items), row)
                best |= {key: min(value, best[key]) for key, value in row.items()}
    return found


def markdown(found: dict, counts: list[int]) -> str:
    """The table of the docs."""
    heads = ["step of BPR", *(f"{n:,} items, ms" for n in counts), "ratio", f"MB at {counts[-1]:,}"]
    rows = [heads, ["---"] * len(heads)]
    for kind, of in found.items():
        cells = [f"{of[str(n)]['ms']:.2f}" for n in counts]
        memory = f"{of[str(counts[-1])]['peak_mb']:,.0f}"
        rows.append([kind, *cells, f"{ratio(of, counts):.2f}", memory])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def ratio(of: dict, counts: list[int]) -> float:
    """Of the step at the most items to that at the fewest."""
    return of[str(counts[-1])]["ms"] / of[str(counts[0])]["ms"]


def show_changes(found: dict, earlier: dict, counts: list[int]) -> None:
    """What became of the stored ratios."""
    for kind in set(found) & set(earlier):
        now, was = ratio(found[kind], counts), ratio(earlier[kind], counts)
        print(f"{kind}: ratio {was:.2f} -> {now:.2f} ({100 * (now / was - 1):+.0f} %)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="without 1M items; stores nothing")
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    counts = [10_000, 100_000] if options.quick else [10_000, 100_000, 1_000_000]
    found = table(counts, options.turns)
    text = markdown(found, counts)
    print(text)
    if not options.quick:
        if RESULTS.is_file():
            show_changes(found, json.loads(RESULTS.read_text())["rows"], counts)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"rows": found, "markdown": text}, indent=1) + "\n")


if __name__ == "__main__":
    main()
