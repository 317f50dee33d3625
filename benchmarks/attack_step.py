"""What a technique costs: a training step with it against a plain one, in time and in memory.

    python benchmarks/attack_step.py             # 60k users x 40k items, one thread, some minutes
    python benchmarks/attack_step.py --quick     # ml-100k, a look only

Steps are taken on batches already loaded, of data that are read once for each model. A ratio is the
median over the repetitions of time(technique) / time(plain), measured one right after the other, and
times are those of the processor, so that they say little of how busy the machine was. Memory is the
peak of the resident set during some steps less that of plain training, each in a process that is
forked before the first step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import tempfile
from pathlib import Path

import torch
from memory import forget_peak, peak_mb
from minmax_step import generate, paired

from recbole_adv import Config
from recbole_adv.quick_start import _data_and_model
from recbole_adv.trainer import AdvTrainer

RESULTS = Path(__file__).parent / "results" / "attack_step.json"
QUIET = {"show_progress": False, "state": "error", "use_gpu": False, "monitor_interval": 0}
PLAIN: dict = {"techniques": []}
FEW = {"BPR": 2, "LightGCN": 1}  # batches of the large data in one repetition
CASES = {
    "apr": {"techniques": ["embedding_attack"], "embedding_attack_preset": "apr"}
    | {"embedding_attack_start_epoch": 0},
    "pgd, 3 steps": {"techniques": ["embedding_attack"], "embedding_attack_preset": "pgd"}
    | {"embedding_attack_start_epoch": 0},
    "sam": {"techniques": ["sam"]},
    "ema": {"techniques": ["ema"]},
    "clip_norm": {"techniques": ["clip_norm"]},
    "clip_value": {"techniques": ["clip_value"]},
    "agc": {"techniques": ["agc"]},
    "clippy, by rows": {"techniques": ["clippy"], "clippy_embeddings": "rows"},
    "clippy, by rows, acting": {"techniques": ["clippy"], "clippy_embeddings": "rows"}
    | {"clippy_absolute_threshold": 0.0002},
    "lr_schedule": {"techniques": ["lr_schedule"]},
    "divergence_guard": {"techniques": ["divergence_guard"]},
}


def stepper(model: str, dataset: str, data_path: str | None, batches: int):
    """``run(settings)``: a function that takes one step on each of some batches."""
    extra = {"data_path": data_path, "load_col": None} if data_path else {}
    config = Config(model, dataset, config_dict={**QUIET, **extra})
    _, train, _, _, net = _data_and_model(config)
    loaded = list(itertools.islice(iter(train), batches))

    def steps_with(settings: dict):
        for key, value in settings.items():
            config[key] = value
        trainer = AdvTrainer(config, net)
        trainer._before_fit(train)
        for technique in trainer.techniques.all():
            technique.before_epoch(0)
        net.train()
        turn, engine = trainer._turns()["min"], trainer.loop.engine

        def run():
            for batch in loaded:
                engine.run(turn, batch)

        run.n_steps = len(loaded)
        return run

    return steps_with


def rows_of(model: str, dataset: str, data_path: str | None, repetitions: int, only: list[str]):
    """A row for each technique, one after the other."""
    cases = {name: settings for name, settings in CASES.items() if not only or name in only}
    steps_with = stepper(model, dataset, data_path, batches=10 if not data_path else FEW[model])
    peaks = {name: peak(steps_with, settings) for name, settings in ({"": PLAIN} | cases).items()}
    plain = steps_with(PLAIN)
    for name, settings in cases.items():
        # A step of LightGCN takes twenty times that of BPR.
        times = 3 * repetitions if model == "BPR" else repetitions
        base, ratio, spread = paired(plain, steps_with(settings), times)
        yield {
            "technique": name,
            "model": model,
            "data": dataset,
            "plain_ms": 1000 * base / plain.n_steps,
            "ratio": ratio,
            "spread": spread,
            "extra_mb": peaks[name] - peaks[""],
            "plain_mb": peaks[""],
        }


def peak(steps_with, settings: dict) -> float:
    """Peak resident memory of a child that takes four rounds of steps, in MB (Linux)."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        forget_peak()  # that of loading the data is not ours
        run = steps_with(settings)
        for _ in range(4):
            run()
        os.write(writer, str(peak_mb()).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answer:
        return float(answer.read())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="ml-100k only; writes no file")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument(
        "--models", nargs="*", default=["BPR", "LightGCN"], help="the others' rows stay as they are"
    )
    parser.add_argument("--only", nargs="*", default=[], help="these techniques; writes no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    old = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    before = {(row["technique"], row["model"]): row["ratio"] for row in old}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        large = not options.quick
        data = generate(Path(folder), 60_000, 40_000, 1_000_000) if large else "ml-100k"
        rows = []
        for model in options.models:
            path = folder if large else None
            for row in rows_of(model, data, path, options.repetitions, options.only):
                rows.append(row)
                was = before.get((row["technique"], row["model"]))
                change = f" (was {was:.2f})" if was and large else ""
                print(
                    f"| {row['technique']} | {row['model']} | {row['plain_ms']:.1f} "
                    f"| {row['ratio']:.2f} ± {row['spread']:.2f} | {row['extra_mb']:+.0f} |{change}",
                    flush=True,
                )
    if large and not options.only:
        others = [row for row in old if row["model"] not in options.models]
        RESULTS.write_text(json.dumps(rows + others, indent=1) + "\n")


if __name__ == "__main__":
    main()
