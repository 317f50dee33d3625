"""What ``compile: True`` does to a training step on ml-100k, and how long compiling takes.

    python benchmarks/compile_step.py                  # some minutes, most of them compiling
    python benchmarks/compile_step.py --models SASRec  # others; writes no file

Steps of one trainer on batches already loaded, with the loss as it is and compiled, take turns; a
ratio is the median of time(compiled) / time(plain), of processor time. Compiling needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import tempfile
import time
from pathlib import Path

import torch
from epoch import FEATURES
from minmax_step import QUIET, paired

from recbole_adv import Config
from recbole_adv.game.compiled_loss import compiled
from recbole_adv.prepared_run import data_and_model
from recbole_adv.trainer import AdvTrainer

RESULTS = Path(__file__).parent / "results" / "compile_step.json"
SETTINGS: dict = {"DeepFM": FEATURES, "SASRec": {"train_neg_sample_args": None}}


def row_of(model: str, n_batches: int, repetitions: int) -> dict:
    """Milliseconds of a plain step, the ratio of a compiled one, and seconds until it is compiled."""
    config = Config(model, "ml-100k", config_dict={**QUIET, **SETTINGS.get(model, {})})
    _, train, _, _, net = data_and_model(config)
    trainer = AdvTrainer(config, net)
    train = trainer._before_fit(train)
    net.train()
    batches = list(itertools.islice(iter(train), n_batches))
    turn, engine = trainer._turns()["min"], trainer.loop.engine

    def steps_with(loss):
        def run():
            turn.loss = loss
            for batch in batches:
                engine.run(turn, batch)

        return run

    plain, fast = steps_with(net.calculate_loss), steps_with(compiled(net.calculate_loss))
    start = time.perf_counter()
    fast()
    seconds = time.perf_counter() - start
    base, ratio, spread = paired(plain, fast, repetitions)
    return {
        "model": model,
        "plain_ms": 1000 * base / len(batches),
        "ratio": ratio,
        "spread": spread,
        "compile_s": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=["BPR", "LightGCN", "NeuMF", "DeepFM"])
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for model in options.models:
            rows.append(row_of(model, 1 if model == "SASRec" else 4, options.repetitions))
            torch._dynamo.reset()
            print(
                "| {model} | {plain_ms:.1f} | {ratio:.2f} ± {spread:.2f} | {compile_s:.0f} |".format(
                    **rows[-1]
                ),
                flush=True,
            )
    if options.models == parser.get_default("models"):
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
