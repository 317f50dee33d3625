"""What Ray gains on two cores: twelve trials at once, two at a time, against one after another.

    python benchmarks/sweep_parallel.py              # EIIL on ml-100k, some minutes on two cores

The same search file three times, each as a user starts it, start-up and report included: by RecBole's
HyperTuning with one thread, by HyperTuning with as many threads as torch takes, and by Ray with two
trials at once of one thread each. The ratio is Ray's time by the shorter of the other two, all measured
in this run, and the scores of all twelve trials must be equal by all three.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "sweep_parallel.json"
SEARCH = """
learning_rate choice [0.001, 0.003, 0.01]
penalty_weight choice [0.1, 1.0]
inference_objective choice ['irm', 'rex']
"""
WAYS = {
    "one after another, one thread": (["--tool=hyperopt"], "1"),
    "one after another, all threads": (["--tool=hyperopt"], None),
    "Ray, two at once": (["--tool=ray", "--concurrency=2"], None),
}


def sweep(way: str, folder: Path, epochs: int) -> tuple[float, pandas.Series]:
    """Seconds of one sweep, and the scores of its trials by setting."""
    flags, threads = WAYS[way]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(ROOT), **({"OMP_NUM_THREADS": threads} if threads else {})}
    command = [sys.executable, "-m", "recbole_adv", "sweep", "-m", "EIIL", "-d", "ml-100k", *flags]
    command += [f"--params_file={folder / 'search.test'}", f"--sweep_dir={folder / way}"]
    command += [f"--epochs={epochs}", "--stopping_step=1000", "--use_gpu=False"]
    start = time.perf_counter()
    subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    table = pandas.read_csv(folder / way / "results.csv").set_index("id").sort_index()
    assert len(table) == 12 and (table["status"] == "done").all(), table
    return seconds, table["score"]


def main() -> None:
    """Run the three sweeps, print and keep the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=40, help="epochs of a trial")
    epochs = parser.parse_args().epochs
    seconds, scores = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "search.test").write_text(SEARCH)
        for way in WAYS:
            seconds[way], scores[way] = sweep(way, folder, epochs)
            print(f"{way}: {seconds[way]:.1f} s", file=sys.stderr)
    serial = min(value for way, value in seconds.items() if way != "Ray, two at once")
    first, *others = scores.values()
    result = {
        "trials": 12,
        "epochs": epochs,
        "cores": os.cpu_count(),
        "seconds": {way: round(value, 1) for way, value in seconds.items()},
        "ratio": round(seconds["Ray, two at once"] / serial, 3),
        "ratio_by_way": {w: round(seconds["Ray, two at once"] / s, 3) for w, s in seconds.items()},
        "same_scores": all(first.equals(other) for other in others),
    }
    before = json.loads(RESULTS.read_text()) if RESULTS.is_file() else None
    if before is not None:
        print(f"ratio before: {before['ratio']}", file=sys.stderr)
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
