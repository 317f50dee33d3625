"""Two processes with a thread each against one process with one thread, on LightGCN at 1M interactions.

    python benchmarks/processes.py             # about five minutes on two quiet cores
    python benchmarks/processes.py --rounds 2  # a first look; nothing is stored

Three processes are started, one that trains alone and two that train together, and take turns: while one
side trains, the other waits. In a round each side trains on the same number of rows, and the ratio is that of
the seconds (of the clock, from the first batch to the last one's step) of the two to those of the one. Given is
the median over the rounds and half the range between the quartiles. The cores must have nothing else to do.

LightGCN propagates over the whole graph in every batch, whatever its size, so a process with half the rows of
a batch is hardly faster; what can fall is the number of batches. Hence two rows for each batch size B of the
one process:

    equal global batch    the two share batches of B rows: the same training as the one's
    equal process batch   each of the two reads B rows, the batches of both together have 2 B: half the steps

All is repeated for BPR, which has no propagation and where exchanging the gradients costs more than computing
them: a model that one process trains faster.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results" / "processes.json"
# model: batch sizes of the one process, batches of them in a round
CASES = {"LightGCN": ((2048, 8), (8192, 8)), "BPR": ((2048, 100),)}


def workers(folder: Path, dataset: str, model: str, n: int) -> list[subprocess.Popen]:
    """n processes that train together; each answers a line of its input when it is done."""
    with socket.create_server(("localhost", 0)) as server:
        place = {
            "WORLD_SIZE": n,
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": server.getsockname()[1],
        }
    started = []
    for rank in range(n):
        own = {**place, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1}
        command = [sys.executable, __file__, "--worker", str(folder), dataset, model]
        started.append(
            subprocess.Popen(
                command,
                env={**os.environ, **{name: str(value) for name, value in own.items()}},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    return started


def work(folder: str, dataset: str, model: str) -> None:
    """What a worker does: ``<batch size> <batches>`` on a line trains, and is answered by its seconds."""
    from epoch import QUIET, Head

    from recbole_adv import Config, processes
    from recbole_adv.quick_start import _data_and_model
    from recbole_adv.trainer import trainer_class

    os.chdir(folder)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    sizes = sorted({factor * size for size, _ in CASES[model] for factor in (1, 2)})
    with processes.joined(torch.device("cpu")):
        built = {}
        for size in sizes:
            settings = {"data_path": folder, "load_col": None, "train_loader": "tensor"}
            settings |= {"train_batch_size": size, "run_dir": folder}
            config = Config(model, dataset, config_dict={**QUIET, **settings})
            _, train, _, _, net = _data_and_model(config)
            trainer = trainer_class(config.model_class)(config, net)
            built[size] = trainer, trainer._before_fit(train)
        print("ready", flush=True)
        for line in sys.stdin:
            size, n_batches = map(int, line.split())
            trainer, loader = built[size]
            trainer.loop.begin_epoch()
            start = time.perf_counter()
            trainer._train_epoch(Head(loader, n_batches), 0)
            print(time.perf_counter() - start, flush=True)


def answers(started: list[subprocess.Popen]) -> list[str]:
    lines = [process.stdout.readline().strip() for process in started]
    assert all(lines), "a worker has ended"
    return lines


def seconds(started: list[subprocess.Popen], size: int, n_batches: int) -> float:
    """Of the slowest."""
    for process in started:
        process.stdin.write(f"{size} {n_batches}\n")
        process.stdin.flush()
    return max(map(float, answers(started)))


def rows_of(folder: Path, dataset: str, model: str, rounds: int) -> list[dict]:
    """The rows of a model."""
    one, two = (workers(folder, dataset, model, n) for n in (1, 2))
    try:
        answers(one), answers(two)
        found = []
        for size, n_batches in CASES[model]:
            kinds = {
                "equal global batch": (size, n_batches),
                "equal process batch": (2 * size, n_batches // 2),
            }
            ratios, alone = {kind: [] for kind in kinds}, []
            for number in range(rounds + 1):
                alone.append(seconds(one, size, n_batches))
                for kind, (of_both, n) in kinds.items():
                    ratios[kind].append(seconds(two, of_both, n) / alone[-1])
                if number == 0:  # it warms up
                    alone.clear(), [values.clear() for values in ratios.values()]
            for kind, values in ratios.items():
                low, _, high = statistics.quantiles(values, n=4)
                row = {"model": model, "batch": size, "kind": kind}
                row |= {"one process, s per batch": statistics.median(alone) / n_batches}
                found.append(row | {"ratio": statistics.median(values), "spread": (high - low) / 2})
        return found
    finally:
        for process in (*one, *two):
            process.stdin.close()
            process.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="of every case; nothing is stored")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    from epoch import generate

    old = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    before = {(row["model"], row["batch"], row["kind"]): row["ratio"] for row in old}
    found = []
    print("| model | batch of one process | two processes | one, s per batch | two / one |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        dataset = generate(Path(folder))
        for model in CASES:
            for row in rows_of(Path(folder), dataset, model, options.rounds or 7):
                found.append(row)
                last = before.get((row["model"], row["batch"], row["kind"]))
                change = f" (was {last:.2f})" if last else ""
                print(
                    f"| {row['model']} | {row['batch']} | {row['kind']} | "
                    f"{row['one process, s per batch']:.4f} | {row['ratio']:.2f} ± "
                    f"{row['spread']:.2f} |{change}",
                    flush=True,
                )
    if options.rounds is None:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
