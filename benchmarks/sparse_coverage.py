"""Which tables of every stock model ``sparse_embeddings`` makes sparse, or why it is refused.

    python benchmarks/sparse_coverage.py            # all, and writes docs/sparse-embeddings-coverage.md
    python benchmarks/sparse_coverage.py --models BPR SASRec       # a look; writes nothing

Each model of the installed RecBole, and each of ours, is trained for an epoch on the packaged data set
``checkerboard``, with and without the key. Sequential models whose softmax reads all items are tried with
``loss_type: BPR`` too. A crash, weights that are nan, and weights that equal those of dense Adam to the
last bit, are faults.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator

import torch
from technique_coverage import ATTEMPTS, ROOT, UNIFORM, Built, build

from recbole_adv import discovery
from recbole_adv.errors import RecBoleAdvError
from recbole_adv.options import properties_dir

TABLE = ROOT / "docs" / "sparse-embeddings-coverage.md"
PAIRS = {"loss_type": "BPR", "train_neg_sample_args": UNIFORM}
HEAD = """\
# Which tables become sparse

Made by `python benchmarks/sparse_coverage.py`: each model trained for one epoch on the packaged data set
with `sparse_embeddings: True`. A model that is missing has no table that could be sparse, for the reason
at the end. EIIL, GroupDRO, IRM and VREx have the tables of their backbone. What it means:
[speed.md](speed.md).

| model | sparse | stays dense |
|---|---|---|
"""


def names() -> list[str]:
    """Stock models, and ours with tables of their own."""
    own = [file.stem for file in sorted((properties_dir() / "model").glob("*.yaml"))]
    own = [name for name in own if not hasattr(discovery.find_model(name), "over")]
    return [*discovery.recbole_model_names(), *own]


def built_models(name: str) -> Iterator[tuple[str, Built | None, dict | None, str]]:
    """Label, model, its densely trained weights or the reason why there are none."""
    try:
        built, plain, reason = build(name)
    except RecBoleAdvError as error:
        built, plain, reason = None, None, str(error)
    yield name, built, plain, reason
    if built is None or built.config["loss_type"] != "CE":
        return
    settings = next(s for s in ATTEMPTS[built.config["MODEL_TYPE"]] if "train_neg_sample_args" in s)
    try:
        paired = Built(name, {**settings, **PAIRS})
        yield f"{name}, `loss_type: BPR`", paired, paired.fit([])[0], ""
    except Exception:  # it has no such loss
        return


def outcome(built: Built, plain: dict) -> tuple[str, dict]:
    """``yes`` and the tables by kind, or what else came of it."""
    built.config["sparse_embeddings"] = True
    try:
        weights, _ = built.fit([])
    except RecBoleAdvError as error:
        return "refused: " + " ".join(str(error).split()), {}
    except Exception as error:  # a fault, whatever it is
        return "CRASH: " + " ".join(f"{type(error).__name__}: {error}".split())[:200], {}
    tables = built.trainer.loop.engine.gradients.sparse_tables
    numbers = [w for w in weights.values() if w.is_floating_point()]
    if not all(w.isfinite().all() for w in numbers):
        finite = all(v.isfinite().all() for v in plain.values() if v.is_floating_point())
        return "NOT FINITE" if finite else "yes", {"sparse": tables.sparse, "dense": tables.dense}
    if all(value.equal(plain[name]) for name, value in weights.items()):
        return "NO EFFECT", {}
    return "yes", {"sparse": tables.sparse, "dense": tables.dense}


def row(label: str, tables: dict) -> str:
    """A line of the table."""
    sparse = [f"`{name}`" for found in tables["sparse"].values() for name in found]
    dense = [f"`{n}` ({why})" for found in tables["dense"].values() for n, why in found.items()]
    return f"| {label} | {', '.join(sparse)} | {', '.join(dense)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    rows, refused, unbuilt, faults = [], [], [], 0
    for name in options.models or names():
        for label, built, plain, reason in built_models(name):
            if built is None:
                unbuilt.append(f"- {label}: {reason}")
                continue
            found, tables = outcome(built, plain)
            print(f"{label:<28} {found} {tables}", flush=True)
            if found == "yes":
                rows.append(row(label, tables))
            elif found.startswith("refused: "):
                refused.append(f"- {label}: {found.removeprefix('refused: ')}")
            else:
                faults += 1
    print(f"{len(rows)} sparse, {len(refused)} refused, {len(unbuilt)} not built, {faults} faults")
    if not options.models:
        parts = ["\n".join(rows), "\nRefused:", *refused, "\nNot built here:", *unbuilt]
        TABLE.write_text(HEAD + "\n".join(parts) + "\n")
    raise SystemExit(faults > 0)


if __name__ == "__main__":
    main()
