"""Every technique on every stock model of the installed RecBole: works, is refused, or why not.

    python benchmarks/technique_coverage.py                 # all, and writes docs/techniques/coverage.md
    python benchmarks/technique_coverage.py --models BPR SASRec            # these anew
    python benchmarks/technique_coverage.py --techniques ema               # a look; writes nothing

Each model is trained for one epoch on the packaged data set ``checkerboard``, plainly and with each
technique alone, from the same seed. ``yes``: the weights (for EMA: the evaluated ones; for techniques
that only watch: their figures) show that it acted; ``refused``: a sentence, listed below the table;
``NO EFFECT`` and ``CRASH`` are faults.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import tempfile
import warnings
from pathlib import Path

import torch
from recbole.utils import ModelType, init_seed

import recbole_adv
from recbole_adv import Config, discovery
from recbole_adv.errors import RecBoleAdvError
from recbole_adv.options import technique_names
from recbole_adv.quick_start import _data_and_model
from recbole_adv.trainer import trainer_class

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "technique_coverage.json"
TABLE = ROOT / "docs" / "techniques" / "coverage.md"
WATCHERS = ("divergence_guard", "monitor")

COMMON = {
    "data_path": str(ROOT / "dataset"),
    "state": "error",
    "use_gpu": False,
    "epochs": 1,
    "eval_step": 0,
    "learning_rate": 0.01,
    "embedding_size": 64,
    "hidden_size": 64,
    "MAX_ITEM_LIST_LENGTH": 8,
    "monitor_interval": 0,
    "topk": [10],
    "pretrain_epochs": 1,
}
INTERACTIONS = {"inter": ["user_id", "item_id", "timestamp"]}
FEATURES = {**INTERACTIONS, "user": ["user_id", "age_group"], "item": ["item_id", "shape"]}
KNOWLEDGE = {
    **INTERACTIONS,
    "kg": ["head_id", "relation_id", "tail_id"],
    "link": ["item_id", "entity_id"],
}
FULL = {"eval_args": {"mode": "full"}}
UNIFORM = {"distribution": "uniform", "sample_num": 1}
# The first that builds and trains is taken.
ATTEMPTS = {
    ModelType.GENERAL: [{"load_col": INTERACTIONS}],
    ModelType.TRADITIONAL: [{"load_col": INTERACTIONS}],
    ModelType.SEQUENTIAL: [
        {"load_col": INTERACTIONS, "train_neg_sample_args": None},
        {"load_col": INTERACTIONS, "train_neg_sample_args": UNIFORM, "loss_type": "BPR"},
        {"load_col": FEATURES, "train_neg_sample_args": None, "selected_features": ["shape"]}
        | {"item_attribute": "shape", "pooling_mode": "sum"},
        {"load_col": FEATURES, "train_neg_sample_args": UNIFORM, "metrics": ["Recall"]},
    ],
    ModelType.CONTEXT: [{"load_col": FEATURES, "train_neg_sample_args": UNIFORM, **FULL}],
    ModelType.KNOWLEDGE: [{"load_col": KNOWLEDGE}],
}
RANKING = {"metrics": ["Recall"], "valid_metric": "Recall@10"}

STAGES = {"S3Rec": "pretrain", "RaCT": "actor_pretrain"}
# What makes a technique act within an epoch of five steps.
ACTIVE = {
    "embedding_attack_start_epoch": 0,
    "clip_norm_max_norm": 1e-8,
    "clip_value_max_value": 1e-10,
    "clippy_absolute_threshold": 1e-4,
    "clippy_relative_threshold": 0.01,
    "clippy_embeddings": "rows",
    "agc_threshold": 1e-6,
    "monitor_every": 1,
    "gradient_noise_embeddings": True,
    "gradient_accumulation_batches": 2,
}


class Built:
    """A model's data, and the means to train it anew from one seed; ``trainer`` is the last one."""

    def __init__(self, name: str, settings: dict):
        quiet = {**COMMON, **RANKING, **ACTIVE, "run_dir": tempfile.mkdtemp()}
        quiet |= {"train_stage": STAGES[name]} if name in STAGES else {}
        for batch_size in (512, 16):  # some take users, of whom there are few, for rows
            quiet["train_batch_size"] = batch_size
            self.config = Config(name, "checkerboard", config_dict={**quiet, **settings})
            _, self.train, _, _, self.model = _data_and_model(self.config)
            if len(self.train) > 1:
                break
        self.start = {key: value.clone() for key, value in self.model.state_dict().items()}

    def fit(self, techniques: list[str]) -> tuple[dict, dict]:
        """Weights to evaluate and figures after one epoch."""
        self.config["techniques"] = techniques
        init_seed(self.config["seed"], True)
        with torch.random.fork_rng():
            model = self.config.model_class(self.config, self.train._dataset)
        model.load_state_dict(self.start)
        init_seed(self.config["seed"], True)
        for loader in (self.train, *vars(self.train).values()):
            generator = getattr(loader, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(self.config["seed"])
        trainer = self.trainer = trainer_class(self.config.model_class)(self.config, model)
        trainer.fit(self.train, None, verbose=False, saved=False)
        with trainer._evaluation_weights():
            weights = {key: value.clone() for key, value in model.state_dict().items()}
        # RecBole's pre-training makes no report.
        return weights, trainer.report._line or trainer.techniques.figures()


def build(name: str) -> tuple[Built | None, dict | None, str]:
    """The first settings by which the model builds and trains, and its plain weights."""
    model_class = discovery.find_model(name)
    reasons = []
    for settings in ATTEMPTS.get(getattr(model_class, "type", None), ()):
        try:
            built = Built(name, settings)
            return built, built.fit([])[0], ""
        except Exception as error:  # whatever the model and the versions here do
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            reasons.append(reason.replace(f"{ROOT}/", "")[:160])
    return None, None, reasons[0] if reasons else f"no settings for {model_class.type}"


def outcome(built: Built, plain: dict, technique: str) -> str:
    """``yes``, or what else came of a technique."""
    try:
        weights, figures = built.fit([technique])
    except RecBoleAdvError as error:
        return "refused: " + " ".join(str(error).split())
    except Exception as error:
        return "CRASH: " + " ".join(f"{type(error).__name__}: {error}".split())[:160]
    if technique in WATCHERS:
        acted = any(f"/{technique}_" in name for name in figures)
        same = all(value.equal(plain[name]) for name, value in weights.items())
        return "yes" if acted and same else "NO EFFECT" if same else "CHANGED RESULTS"
    if not all(value.isfinite().all() for value in weights.values() if value.is_floating_point()):
        finite = all(v.isfinite().all() for v in plain.values() if v.is_floating_point())
        return "NOT FINITE" if finite else "yes"
    moved = any(not value.equal(plain[name]) for name, value in weights.items())
    return "yes" if moved else "NO EFFECT"


def in_general(sentence: str, model: str) -> str:
    """A refusal without the names that are one model's."""
    sentence = re.sub(rf"\b{model}\b", "<model>", sentence)
    sentence = re.sub(r"got \['\w+'\]", "got [<technique>]", sentence)
    sentence = re.sub(r"all of .* are excluded", "all of its tensors are excluded", sentence)
    sentence = re.sub(
        r"finds no gradient in .*, on which", "finds no gradient in <tables>, on which", sentence
    )
    sentence = re.sub(r"targets: \[.*", "targets: [<name>]", sentence)
    return re.sub(r"set \w+( or \w+)* above 0", "set <its rate> above 0", sentence)


def table(results: dict, unbuilt: dict) -> str:
    """The page of the docs."""
    techniques = list(next(iter(results.values()), {}))
    notes: dict[str, int] = {}
    lines = [
        "# Which technique works on which model",
        "",
        "Made by `python benchmarks/technique_coverage.py`: each stock model trained for one epoch on",
        "the packaged data set, plainly and with each technique alone. `yes`: it trained and the technique",
        "showed; a number: refused with that sentence, before the first step or at it.",
        "",
        "| model | " + " | ".join(f"`{name}`" for name in techniques) + " |",
        "|---|" + "---|" * len(techniques),
    ]
    for model, row in results.items():
        cells = []
        for value in row.values():
            kind, _, sentence = value.partition(": ")
            if kind == "refused":
                sentence = in_general(sentence, model)
                value = str(notes.setdefault(sentence, len(notes) + 1))
            cells.append(value)
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    lines += ["", "Refused:", *(f"{number}. {note}" for note, number in notes.items())]
    lines += ["", "Not built here:", *(f"- {model}: {reason}" for model, reason in unbuilt.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=discovery.recbole_model_names())
    parser.add_argument("--techniques", nargs="*", default=list(technique_names()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    results, unbuilt, faults = {}, {}, 0
    for name in options.models:
        try:
            built, plain, reason = build(name)
        except RecBoleAdvError as error:
            built, reason = None, str(error)
        if built is None:
            unbuilt[name] = reason
            print(f"{name:<12} not built: {reason}", flush=True)
            continue
        results[name] = {t: outcome(built, plain, t) for t in options.techniques}
        bad = {
            t: v for t, v in results[name].items() if v.partition(":")[0] not in ("yes", "refused")
        }
        faults += len(bad)
        works = sum(value == "yes" for value in results[name].values())
        print(
            f"{name:<12} works: {works:>2}, refused: {len(results[name]) - works - len(bad)} {bad or ''}"
        )
    print(f"{len(results)} models, {faults} faults")
    if options.techniques == list(technique_names()):
        if RESULTS.is_file() and len(options.models) < len(discovery.recbole_model_names()):
            earlier = json.loads(RESULTS.read_text())  # some models anew
            results = {**earlier["results"], **results}
            unbuilt = {**earlier["not_built"], **unbuilt}
        versions = {"recbole_adv": recbole_adv.__version__, "torch": torch.__version__}
        data = {"versions": versions, "results": results, "not_built": unbuilt}
        RESULTS.write_text(json.dumps(data, indent=1) + "\n")
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(table(results, unbuilt))
    raise SystemExit(math.ceil(faults / (faults + 1)))


if __name__ == "__main__":
    main()
