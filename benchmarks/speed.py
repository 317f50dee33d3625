"""All figures of speed in one command: docs/speed-figures.md.

    python benchmarks/speed.py             # measures, some hours on two quiet cores, then writes
    python benchmarks/speed.py --tables    # only writes the page from benchmarks/results/

Each benchmark stores its own table and prints what changed since the last.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "speed-figures.md"
SCRIPTS = ("epoch", "large_epoch", "loader_parity", "item_count", "minmax_step", "attack_step")
SCRIPTS += ("kept_memory", "processes", "sampler_memory", "evaluation")
HEAD = """# Figures of speed

Written by `python benchmarks/speed.py` from `benchmarks/results/`. One thread of a CPU unless a row says
otherwise; no GPU was at hand, so there is no column for one. A ratio is of times taken in turns in one run,
ours by RecBole's; below 1 is faster than RecBole. EIIL, which RecBole
does not have, stands against RecBole's Trainer on its backbone, BPR. See [speed.md](speed.md) for what the keys do.
"""
WHY = {
    "BPR": "What a BPR step adds to that is scattering the gradients of the batch into dense tables and "
    "the calls of some thirty small operations",
    "EIIL": "The max player's own forward and backward pass and the terms of its objective come on top, "
    "all small operations",
    "LightGCN": "Its sparse products gather a row for each edge and run far below the speed of a dense "
    "product, whatever the trainer does",
    "SASRec": "Attention, dropout and the softmax over all items run in the model, which is RecBole's",
    "DeepFM": "Its linear layers with batch norm and the look-ups field by field run in the model, which "
    "is RecBole's",
}


def results(name: str):
    """What a benchmark stored; None before its first run."""
    file = HERE / "results" / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def table(heads: list[str], rows: list[list[str]]) -> str:
    """In markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def epochs() -> str:
    """Whole epochs on ml-100k, and where their time goes."""
    ways = ("AdvTrainer", "tensor", "tensor, fused")
    found = results("epoch") or []
    rows = [
        [row["data"], row["model"], f"{row['RecBole s']:.2f}"]
        + [f"{row[way]:.2f} ± {row[f'{way} spread']:.2f}" for way in ways]
        for row in found
    ]
    heads = ["data", "model", "RecBole, s", "`recbole` loader", "`tensor`", "`tensor`, fused"]
    said = [where_it_goes(row, step_ms(row)) for row in found]
    return "## An epoch on ml-100k\n\n" + table(heads, rows) + "\n" + "".join(said)


def step_ms(row: dict) -> float:
    """Milliseconds of a step of the way `tensor`, without the loader."""
    epoch = row["tensor"] * row["RecBole s"]
    return 1000 * epoch * (1 - row["parts"]["loader"]) / row["batches"]


def large_epochs() -> str:
    """Epochs on 1M and 10M interactions."""
    rows, said = [], []
    for row in results("large_epoch") or []:
        for way, found in row["ways"].items():
            cells = [row["data"], row["model"], way, f"{found['load s']:.2f}"]
            cells += [f"{found['step ms']:.1f}", f"{found['epoch s']:.1f}", f"{found['ratio']:.2f}"]
            rows.append([*cells, f"{found['peak MB']:.0f}" if "peak MB" in found else ""])
        said.append(where_it_goes(row, row["ways"]["tensor"]["step ms"]))
    older = [r for r in results("large_epoch") or [] if "keep_memory" not in r]
    names = ", ".join(f"{row['model']} at {row['data']}" for row in older)
    heads = ["data", "model", "way", "loader, s", "step, ms", "epoch, s", "ratio", "peak, MB"]
    text = (
        "## An epoch on generated data\n\n1M: 6,000 users x 4,000 items, batches of 2048; 10M: 100,000 "
        "x 50,000, batches of 8192. SASRec reads sequences of 50 items, at 10M of 20 by batches of 4096. "
        "At 1M the epochs of BPR, EIIL and DeepFM are whole ones, and a step is what the loader leaves of "
        "them; all others are put together of the loader's time and that of all steps.\n\n"
    )
    if older:
        text += f"Without `keep_memory`, and with all ways in one process: {names}.\n\n"
    return text + table(heads, rows) + "\n" + "".join(said)


def where_it_goes(row: dict, step_ms: float) -> str:
    """Two sentences on a row."""
    parts = ", ".join(f"{name} {100 * max(share, 0):.0f} %" for name, share in row["parts"].items())
    if "bound ms" not in row:  # measured before bounds were
        return ""
    kind = max(row["bound ms"], key=row["bound ms"].get)
    least = row["bound ms"][kind]
    what = {"memory": "Adam's passes over its tables", "arithmetic": "its products"}[kind]
    why = next(text for name, text in WHY.items() if row["model"].startswith(name))
    return (
        f"- {row['data']}, {row['model']}: of `tensor`'s time {parts}. By {what} a step takes "
        f"{least:.2g} ms at least ({kind}) and it takes {step_ms:.2g}. {why}.\n"
    )


def item_count() -> str:
    """How the cost of a step grows with the number of items."""
    rows = results("item_count")
    return "" if rows is None else "## A step by the number of items\n\n" + rows["markdown"] + "\n"


def processes() -> str:
    """Two processes against one."""
    rows = [
        [row["model"], str(row["batch"]), row["kind"], f"{row['one process, s per batch']:.4f}"]
        + [f"{row['ratio']:.2f} ± {row['spread']:.2f}"]
        for row in results("processes") or []
    ]
    text = (
        "## Two processes against one\n\nOne thread each, 1M interactions; seconds of the clock. "
        "`equal global batch`: the same steps, shared; `equal process batch`: each of the two reads as "
        "many rows as the one, so there are half the steps.\n\n"
    )
    heads = ["model", "batch of one process", "two processes", "one, s per batch", "two / one"]
    return text + table(heads, rows)


def minmax() -> str:
    """What a second player costs."""
    rows = [
        [row["what"], row["data"], row["model"], f"{row['ratio']:.2f} ± {row['spread']:.2f}"]
        for row in results("minmax_step") or []
    ]
    text = (
        "## Min and max against min alone\n\n`epoch, one player` is against RecBole's Trainer.\n\n"
    )
    return text + table(["what", "data", "model", "ratio"], rows)


def kept_memory() -> str:
    """What ``keep_memory`` gains and costs."""
    rows = [
        [row["model"], f"{row['plain_ms']:.1f}", f"{row['ratio']:.2f} ± {row['spread']:.2f}"]
        + [" to ".join(f"{n:,.0f}" for n in row[key]) for key in ("pages", "peak_mb")]
        for row in results("kept_memory") or []
    ]
    text = (
        "## A step with memory kept from the last\n\nml-100k, `keep_memory: True` by `False`; pages that "
        "the system hands out in a step, and the peak of memory, without and with.\n\n"
    )
    return text + table(["model", "step without, ms", "ratio", "pages", "peak, MB"], rows)


def techniques() -> str:
    """What a technique adds to a step."""
    rows = [
        [row["technique"], row["model"], f"{row['plain_ms']:.1f}"]
        + [f"{row['ratio']:.2f} ± {row['spread']:.2f}", f"{row['extra_mb']:+.0f}"]
        for row in results("attack_step") or []
    ]
    text = (
        "## A step with a technique\n\n60,000 users x 40,000 items, by the plain step; memory is the peak "
        "over that of plain training.\n\n"
    )
    heads = ["technique", "model", "plain step, ms", "ratio", "memory, MB"]
    return text + table(heads, rows)


def samplers() -> str:
    """Memory of the samplers."""
    found = results("sampler_memory")
    rows = [
        [name]
        + [f"{found[which][name]:.1f}" for which in ("RecBole", "tensor")]
        + [f"{found['ratio'][name]:.3f}"]
        for name in found["ratio"]
    ]
    text = (
        f"## Samplers\n\n{found['rows']:,} interactions, {found['users']:,} users, {found['items']:,} "
        "items; `all` with the used items of every user of validation and test.\n\n"
    )
    return text + table(["", "RecBole", "ours", "ratio"], rows)


def parity() -> str:
    """Whether both loaders train alike."""
    rows = [
        [row["model"], f"{row['losses, recbole'][-1]:.4f}", f"{row['losses, tensor'][-1]:.4f}"]
        + [f"{row['ndcg@10, recbole']:.4f}"]
        + [f"{row['ndcg@10, difference']:+.4f} ± {row['ndcg@10, standard error']:.4f}"]
        + [f"{row['smallest p']:.3f}", str(row["tests"]), "yes" if row["equal"] else "no"]
        for row in results("loader_parity") or []
    ]
    text = (
        "## The two loaders train alike\n\nOn ml-100k, five seeds, paired: the loss of the last epoch and "
        "NDCG@10 on the test data. Of the t-tests of every epoch's loss and of both metrics the smallest "
        "p is held against 0.01 by their number.\n\n"
    )
    heads = ["model", "last loss, RecBole", "ours", "NDCG@10, RecBole", "ours less that"]
    return text + table([*heads, "smallest p", "tests", "alike"], rows)


def page() -> str:
    """The whole text."""
    parts = [HEAD, epochs(), large_epochs(), parity(), item_count(), minmax()]
    parts += [techniques(), kept_memory(), processes(), samplers()]
    return "\n".join(part for part in parts if part)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    options = parser.parse_args()
    for name in () if options.tables else SCRIPTS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-W", "ignore", str(HERE / f"{name}.py")], check=True)
    PAGE.write_text("\n".join(line.rstrip() for line in page().splitlines()) + "\n")


if __name__ == "__main__":
    main()
