"""What a technique costs: a training step with it against a plain one, in time and in memory.

    python benchmarks/attack_step.py             # 60k users x 40k items, one thread, some minutes
    python benchmarks/attack_step.py --quick     # ml-100k, a look only

Steps are taken on batches already loaded. A ratio is the median over the repetitions of
time(technique) / time(plain), measured one right after the other. Memory is the peak of the resident
set during ten steps less that of plain training, each in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from minmax_step import generate, paired

from recbole_adv import Config
from recbole_adv.quick_start import _data_and_model
from recbole_adv.trainer import AdvTrainer

RESULTS = Path(__file__).parent / "results" / "attack_step.json"
QUIET = {"show_progress": False, "state": "error", "use_gpu": False, "monitor_interval": 0}
PLAIN: dict = {"techniques": []}
CASES = {
    "apr": {"techniques": ["embedding_attack"], "embedding_attack_preset": "apr"}
    | {"embedding_attack_start_epoch": 0},
    "pgd, 3 steps": {"techniques": ["embedding_attack"], "embedding_attack_preset": "pgd"}
    | {"embedding_attack_start_epoch": 0},
    "sam": {"techniques": ["sam"]},
    "ema": {"techniques": ["ema"]},
    "clip_norm": {"techniques": ["clip_norm"]},
    "agc": {"techniques": ["agc"]},
    "clippy": {"techniques": ["clippy"]},
    "clippy, embeddings by rows": {"techniques": ["clippy"], "clippy_embeddings": "rows"},
    "lr_schedule": {"techniques": ["lr_schedule"]},
    "divergence_guard": {"techniques": ["divergence_guard"]},
}


def stepper(model: str, dataset: str, data_path: str | None, batches: int):
    """``run(settings)``: a function that takes one step on each of some batches."""
    extra = {"data_path": data_path, "load_col": None} if data_path else {}
    config = Config(model, dataset, config_dict={**QUIET, **extra})
    _, train, _, _, net = _data_and_model(config)
    loaded: list = []

    def steps_with(settings: dict):
        for key, value in settings.items():
            config[key] = value
        trainer = AdvTrainer(config, net)
        trainer._before_fit(train)
        for technique in trainer.techniques.all():
            technique.before_epoch(0)
        net.train()
        if not loaded:
            loaded.extend(itertools.islice(iter(train), batches))
        turn, engine = trainer._turns()["min"], trainer.loop.engine

        def run():
            for batch in loaded:
                engine.run(turn, batch)

        run.n_steps = len(loaded)
        return run

    return steps_with


def rows_of(model: str, dataset: str, data_path: str | None, repetitions: int):
    """A row for each technique, one after the other."""
    steps_with = stepper(model, dataset, data_path, batches=2 if data_path else 10)
    plain = steps_with(PLAIN)
    plain_peak = peak(model, dataset, data_path, "plain")
    for name, settings in CASES.items():
        base, ratio, spread = paired(plain, steps_with(settings), repetitions)
        yield {
            "technique": name,
            "model": model,
            "data": dataset,
            "plain_ms": 1000 * base / plain.n_steps,
            "ratio": ratio,
            "spread": spread,
            "extra_mb": peak(model, dataset, data_path, name) - plain_peak,
            "plain_mb": plain_peak,
        }


def peak(model: str, dataset: str, data_path: str | None, case: str) -> float:
    """Peak resident memory of a process that takes ten steps, in MB."""
    arguments = ["--peak", case, "--models", model, "--data", dataset, "--path", data_path or ""]
    result = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
    )
    return float(result.stdout.strip().splitlines()[-1])


def print_peak(options) -> None:
    """What :func:`peak` runs."""
    settings = CASES.get(options.peak, PLAIN)
    run = stepper(options.models[0], options.data, options.path or None, batches=2)(settings)
    for _ in range(5):
        run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="ml-100k only; writes no file")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--models", nargs="*", default=["BPR", "LightGCN"])
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if options.peak:
            return print_peak(options)
        large = not options.quick
        data = generate(Path(folder), 60_000, 40_000, 1_000_000) if large else "ml-100k"
        rows = []
        for model in options.models:
            for row in rows_of(model, data, folder if large else None, options.repetitions):
                rows.append(row)
                print(
                    f"| {row['technique']} | {row['model']} | {row['plain_ms']:.1f} "
                    f"| {row['ratio']:.2f} ± {row['spread']:.2f} | {row['extra_mb']:+.0f} |",
                    flush=True,
                )
    if large:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
