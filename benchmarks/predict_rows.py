"""What a row costs in ``predict`` by the number of rows of a call, on a CPU.

    python benchmarks/predict_rows.py

Models without ``full_sort_predict`` are ranked by calls of ``predict``; RecBole's have
``eval_batch_size`` rows (4096). Sizes take turns, 15 times; the median of one user with 50,000 items, one
thread, relative to 4096 rows.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from evaluation import SETTINGS, generate
from recbole.data.interaction import Interaction

from recbole_adv import Config
from recbole_adv.prepared_run import prepared_run

RESULTS = Path(__file__).parent / "results" / "predict_rows.json"
MODELS = ("NeuMF", "DeepFM", "WideDeep", "AutoInt", "DCN", "NFM", "FM")
SIZES = (512, 1024, 1536, 2048, 4096)
REPEATS = 15


def microseconds(model, rows: int) -> float:
    """Processor time of a row."""
    batch = Interaction({"user_id": torch.full((rows,), 3), "item_id": torch.arange(rows)})
    n_calls = max(1, 12288 // rows)
    start = time.process_time()
    for _ in range(n_calls):
        model.predict(batch)
    return (time.process_time() - start) / (n_calls * rows) * 1e6


def measure(folder: str, name: str) -> dict[str, float]:
    """Median microseconds of a row, by the number of rows."""
    settings = {**SETTINGS, "data_path": folder, "run_dir": f"{folder}/{name}"}
    settings["train_neg_sample_args"] = {"distribution": "uniform", "sample_num": 1}
    config = Config(name, "made", config_dict=settings, command_line=())
    with prepared_run(config) as run, torch.no_grad():
        model = run.trainer.model.eval()
        found: dict[int, list[float]] = {rows: [] for rows in SIZES}
        for _ in range(REPEATS):
            for rows, times in found.items():
                times.append(microseconds(model, rows))
    return {str(rows): statistics.median(times) for rows, times in found.items()}


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    before = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results = {}
    print("| model | " + " | ".join(map(str, SIZES)) + " | us at 4096 |\n|" + "---|" * 7)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        generate(Path(folder), 1000, 50_000)
        for name in MODELS:
            times = results[name] = measure(folder, name)
            cells = [f"{times[str(rows)] / times['4096']:.2f}" for rows in SIZES]
            print(f"| {name} | " + " | ".join(cells) + f" | {times['4096']:.2f} |", flush=True)
            if name in before:
                was = before[name]["1536"] / before[name]["4096"]
                print(f"  at 1536 rows {was:.2f} before, {times['1536'] / times['4096']:.2f} now")
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
