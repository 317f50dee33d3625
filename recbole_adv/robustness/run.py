"""The command ``robustness``: every model under every attack, and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from recbole.utils import ModelType

from recbole_adv.errors import ConfigError
from recbole_adv.model_state import random_state
from recbole_adv.robustness.history import history_points
from recbole_adv.robustness.output import output_of, written
from recbole_adv.robustness.plan import Plan
from recbole_adv.robustness.report import write_report
from recbole_adv.robustness.tables import Point, TableAttack, row_norms, table_points
from recbole_adv.robustness.trained import (
    Trained,
    can_rank,
    configuration_of,
    main_metric,
    names_of,
    trained,
)
from recbole_adv.technique.attack.tables import embedding_tables


def robustness(
    plan: Plan, settings: Sequence[str] = (), say: Callable[[str], Any] = lambda line: None
) -> tuple[Path, str]:
    """Attack models, and write the report; ``settings``: ``--key=value``; ``say``: progress.

    Returns the folder and the report as markdown. The models are, bit for bit, what they were.
    """
    beside = Path(plan.checkpoints[0]) if len(plan.checkpoints) == 1 else None
    if beside is not None and not beside.is_dir():
        beside = beside.with_suffix("")
    suffix = "history" if plan.on_history else "robustness"
    folder = output_of(plan.output, beside, suffix)
    configs = [configuration_of(path, settings, {}) for path in plan.checkpoints]
    metric = _check(plan, configs)
    points: list[Point] = []
    models: dict[str, dict[str, Any]] = {}
    names = names_of(plan.checkpoints)
    with written(folder) as aside:
        for path, config, name in zip(plan.checkpoints, configs, names):
            if can_rank(config) and config["eval_args"]["mode"] in ("full", _FULL):
                config["popularity_metrics"] = True
            with trained(path, config, name) as run:
                models[name] = _described(run, path)
                for point in _points(run, plan):
                    points.append(point)
                    say(_line(point, metric))
        strength = "share" if plan.on_history else "epsilon"
        text = write_report(aside, points, metric, strength, {**vars(plan), "models": models})
    return folder, f"{text}\n\n{folder}"


_FULL = {"valid": "full", "test": "full"}


def _check(plan: Plan, configs: Sequence[Any]) -> str:
    """What can be refused before data is loaded; returns the metric."""
    first = configs[0]
    for path, config in zip(plan.checkpoints, configs):
        if config["dataset"] != first["dataset"]:
            raise ConfigError(
                f"{path} was trained on {config['dataset']!r} and {plan.checkpoints[0]} on "
                f"{first['dataset']!r}, which no table can compare; give each a report of its own"
            )
        if config["eval_args"] != first["eval_args"]:
            raise ConfigError(
                f"{path} was split and tested by eval_args {config['eval_args']} and "
                f"{plan.checkpoints[0]} by {first['eval_args']}, which no table can compare; give each a "
                "report of its own"
            )
        if plan.on_history and config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
            raise ConfigError(
                f"--history corrupts what a sequential model reads, got {config['model']} in {path}; "
                "leave --history out, or give a run of SASRec, GRU4Rec ..."
            )
        if plan.on_history:
            config["train_loader"] = "recbole"  # sequences as a table, which can be changed
    metrics = {main_metric(config, plan.metric) for config in configs}
    if len(metrics) > 1:
        raise ConfigError(
            f"the runs were chosen by {' and '.join(sorted(metrics))}; say by --metric which counts"
        )
    return metrics.pop()


def _points(run: Trained, plan: Plan) -> Iterator[Point]:
    before, numbers = run.digest(), random_state()
    if plan.on_history:
        yield from history_points(run, plan.kinds, plan.strengths, plan.seeds, numbers)
    else:
        attack = TableAttack(run, plan.relative, plan.steps, plan.targets)
        yield from table_points(attack, plan.kinds, plan.strengths, plan.seeds)
    assert run.digest() == before, f"{run.name} has not come back as it was"


def _described(run: Trained, path: str) -> dict[str, Any]:
    """What a report must say of a model so that it can be told which one it was."""
    keys = {key: run.config[key] for key in ("model", "dataset", "seed", "eval_args")}
    tables = embedding_tables(run.model, list(run.player.parameters))
    return {**keys, "file": path, "sha256": run.digest(), "row_norms": row_norms(tables)}


def _line(point: Point, metric: str) -> str:
    return (
        f"{point.model}: {point.attack} {point.strength:g}, seed {point.seed}: {metric} "
        f"{point.figures[metric]:.4f}"
    )
