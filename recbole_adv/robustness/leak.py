"""The command ``leak-probe``: what users' vectors tell of their attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_adv.errors import ConfigError
from recbole_adv.evaluation.summary import mean_and_error
from recbole_adv.model_state import random_state
from recbole_adv.robustness.attributes import check_attributes, labels_of, read_attribute
from recbole_adv.robustness.draw import draw_bars
from recbole_adv.robustness.output import markdown, output_of, plus_minus, write_json, written
from recbole_adv.robustness.plan import count_of, seeds_of
from recbole_adv.robustness.probe import PROBES, measure_of, probe
from recbole_adv.robustness.representation import user_vectors
from recbole_adv.robustness.trained import Trained, configuration_of, main_metric, names_of, trained


@dataclass(frozen=True)
class LeakPlan:
    """Which models are probed for which attributes; bins: of attributes that are numbers."""

    checkpoints: tuple[str, ...]
    attributes: tuple[str, ...]
    seeds: tuple[int, ...]
    bins: int = 4
    output: str | None = None

    @classmethod
    def of(cls, given) -> LeakPlan:
        """From the flags by name, checked."""
        words = [word for part in given["attribute"] for word in part.split(",") if word]
        if not words or len(set(words)) < len(words):
            raise ConfigError(
                f"--attribute must be different columns of the users' file, got {words!r}; write "
                "--attribute gender"
            )
        return cls(
            tuple(given["checkpoint"]),
            tuple(words),
            tuple(seeds_of(given["seeds"])),
            count_of("--bins", given["bins"], 2),
            given["output"],
        )


def leak_probe(
    plan: LeakPlan, settings: Sequence[str] = (), say: Callable[[str], Any] = lambda line: None
) -> tuple[Path, str]:
    """Probe models, and write the report; returns the folder and the report as markdown."""
    beside = Path(plan.checkpoints[0]) if len(plan.checkpoints) == 1 else None
    if beside is not None and not beside.is_dir():
        beside = beside.with_suffix("")
    folder = output_of(plan.output, beside, "leak-probe")
    configs = [configuration_of(path, settings, {}) for path in plan.checkpoints]
    for config in configs:
        check_attributes(config, list(plan.attributes))
    rows: list[dict[str, Any]] = []
    with written(folder) as aside:
        for path, config, name in zip(plan.checkpoints, configs, names_of(plan.checkpoints)):
            with trained(path, config, name) as run:
                rows += _rows(run, plan, say)
        text = _write(aside, rows, plan)
    return folder, f"{text}\n\n{folder}"


def _rows(run: Trained, plan: LeakPlan, say: Callable[[str], Any]) -> list[dict[str, Any]]:
    before, rows = run.digest(), []
    metric = main_metric(run.config, None)
    utility = run.evaluate(random_state())[metric]
    user, vectors = user_vectors(run)
    train = run.parts["train"]
    tokens = train.id2token(train.uid_field, user.numpy())
    for name in plan.attributes:
        attribute = read_attribute(run.config, name, plan.bins)
        kept, labels, note = labels_of(attribute, tokens)
        shared = {
            **{"model": run.name, "attribute": name, "classes": len(set(labels))},
            **{"users": int(kept.sum()), "measure": measure_of(labels), "note": note},
            **{"metric": metric, "utility": utility},
        }
        say(f"{run.name}: {name}, {shared['classes']} classes, {shared['users']} users. {note}")
        for probed in probe(vectors.numpy()[kept], labels, plan.seeds):
            rows.append({**shared, **vars(probed)})
    assert run.digest() == before, f"{run.name} has not come back as it was"
    return rows


def _write(folder: Path, rows: list[dict[str, Any]], plan: LeakPlan) -> str:
    frame = pd.DataFrame(rows)
    frame.to_csv(folder / "scores.csv", index=False)
    summary = _summary(frame)
    write_json(folder / "report.json", {"settings": vars(plan), "summary": summary, "scores": rows})
    text = _text(summary, len(plan.seeds))
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    groups = list(dict.fromkeys(f"{row['attribute']}\n{row['model']}" for row in summary))
    bars = {}
    for name in PROBES:
        own = [row[name] for row in summary]
        bars[name] = [s["mean"] for s in own], [s["standard_error"] for s in own]
        own = [row[f"{name}_permuted"] for row in summary]
        bars[f"{name}, permuted"] = [s["mean"] for s in own], [s["standard_error"] for s in own]
    bars["majority"] = [row["majority"]["mean"] for row in summary], [0.0] * len(summary)
    draw_bars(folder / "leak.png", groups, bars, "AUC (two classes) or micro-F1 of probes")
    return text


def _summary(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each attribute and model."""
    rows = []
    shared = ["classes", "users", "measure", "metric", "utility", "note"]
    for (attribute, model), own in frame.groupby(["attribute", "model"], sort=False):
        row = {"attribute": attribute, "model": model, **own.iloc[0][shared].to_dict()}
        row["majority"] = _spread(own["majority"])
        for name in PROBES:
            of_probe = own[own["probe"] == name]
            row[name] = _spread(of_probe["score"])
            row[f"{name}_permuted"] = _spread(of_probe["permuted"])
        rows.append(row)
    return rows


def _spread(values) -> dict[str, float]:
    return dict(zip(("mean", "standard_error"), mean_and_error(list(values))))


def _text(summary: Sequence[dict[str, Any]], n_seeds: int) -> str:
    def cell(spread: dict[str, float]) -> str:
        return plus_minus(spread["mean"], spread["standard_error"])

    probes = [part for name in PROBES for part in (name, f"{name}_permuted")]
    titles = ["attribute", "model", "measure", "classes", "users", "majority"]
    titles += [name.replace("_", ", ") for name in probes]
    titles += [str(summary[0]["metric"])]
    rows = [
        [
            *(row[key] for key in ("attribute", "model", "measure", "classes", "users")),
            *(cell(row[name]) for name in ("majority", *probes)),
            f"{row['utility']:.4f}",
        ]
        for row in summary
    ]
    notes = [
        f"{row['attribute']}, {row['model']}: {row['note']}." for row in summary if row["note"]
    ]
    said = f"Mean ± standard error over {n_seeds} splits of the users. What is above 'permuted' is known."
    parts = ["# What users' vectors tell", "", markdown(titles, rows), "", said, *notes]
    return "\n".join(parts)
