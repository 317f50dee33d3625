"""What ``keep_memory`` gains and costs on ml-100k: time, new pages and peak of memory of training steps.

    python benchmarks/kept_memory.py                   # some minutes
    python benchmarks/kept_memory.py --models GRU4Rec

Steps on batches already loaded take turns with and without, each in a process of its own (turns.py). A ratio
is the median of the processor time with by that without, the system's share included; pages are those that
the system handed out in a step; the peak is that of the process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import tempfile
from pathlib import Path

from epoch import FEATURES
from memory import forget_peak, keep_as_in_fit, peak_mb
from minmax_step import QUIET
from turns import Worker

from recbole_adv import Config
from recbole_adv.prepared_run import data_and_model
from recbole_adv.trainer import trainer_class

RESULTS = Path(__file__).resolve().parent / "results" / "kept_memory.json"
NO_NEGATIVES: dict = {"train_neg_sample_args": None}
# model: settings, batches, repetitions
CASES: dict[str, tuple[dict, int, int]] = {
    "SASRec": (NO_NEGATIVES, 4, 5),
    "GRU4Rec": (NO_NEGATIVES, 8, 7),
    "MultiVAE": (NO_NEGATIVES, 20, 21),
    "BPR": ({}, 40, 41),
    "LightGCN": ({}, 20, 21),
    "NeuMF": ({}, 40, 21),
    "DeepFM": (FEATURES, 40, 11),
}


def built(model: str, wanted: bool):
    """A trainer's turn, its engine, and batches already loaded."""
    settings, n_batches, _ = CASES[model]
    given = {**QUIET, **settings, "train_loader": "tensor", "keep_memory": wanted}
    config = Config(model, "ml-100k", config_dict=given)
    _, train, _, _, net = data_and_model(config)
    trainer = trainer_class(config.model_class)(config, net)
    keep_as_in_fit(trainer)
    train = trainer._before_fit(train)
    net.train()
    batches = list(itertools.islice(iter(train), n_batches))
    forget_peak()
    return trainer.loop.engine, trainer._turns()["min"], batches


def round_of_steps(run) -> tuple[float, float]:
    """Seconds and pages of a step, in a worker."""
    engine, turn, batches = run
    before = resource.getrusage(resource.RUSAGE_SELF)
    for batch in batches:
        engine.run(turn, batch)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds / len(batches), (after.ru_minflt - before.ru_minflt) / len(batches)


def peak_of(run) -> float:
    """MB, in a worker."""
    return peak_mb()


def row_of(model: str) -> dict:
    """Milliseconds of a step without, the ratio, pages and peaks."""
    workers = {wanted: Worker(built, model, wanted) for wanted in (False, True)}
    rounds: dict[bool, list] = {False: [], True: []}
    for repetition in range(CASES[model][2] + 1):
        for wanted in (False, True) if repetition % 2 else (True, False):
            rounds[wanted].append(workers[wanted].ask(round_of_steps))
    plain, kept = rounds[False][1:], rounds[True][1:]  # the first round warms up
    ratios = [k[0] / p[0] for p, k in zip(plain, kept)]
    quartiles = statistics.quantiles(ratios, n=4)
    row = {
        "model": model,
        "plain_ms": 1000 * statistics.median(p[0] for p in plain),
        "ratio": statistics.median(ratios),
        "spread": (quartiles[2] - quartiles[0]) / 2,
        "pages": [statistics.median(p[1] for p in found) for found in (plain, kept)],
        "peak_mb": [worker.ask(peak_of) for worker in workers.values()],
    }
    for worker in workers.values():
        worker.end()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    old = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    known = {row["model"]: row for row in old}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        print("| model | plain step, ms | ratio | pages a step | peak, MB |\n|" + "---|" * 5)
        for model in options.models:
            row, before = row_of(model), known.get(model)
            change = f" (was {before['ratio']:.3f})" if before else ""
            pages, peaks = (" to ".join(f"{n:.0f}" for n in row[k]) for k in ("pages", "peak_mb"))
            print(
                f"| {model} | {row['plain_ms']:.1f} | {row['ratio']:.3f} ± {row['spread']:.3f} "
                f"| {pages} | {peaks} |{change}",
                flush=True,
            )
            known[model] = row
            RESULTS.write_text(json.dumps(list(known.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
