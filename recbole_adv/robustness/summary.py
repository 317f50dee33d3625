"""What attacks cost, in a few numbers: drops, their area, the strength that halves the metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from recbole_adv.evaluation.summary import mean_and_error
from recbole_adv.robustness.tables import Point


def table_of(points: Sequence[Point], strength: str) -> pd.DataFrame:
    """A row for each point.   strength: what its column is called."""
    return pd.DataFrame(
        [
            {
                "model": p.model,
                "attack": p.attack,
                strength: p.strength,
                "seed": p.seed,
                **p.figures,
            }
            for p in points
        ]
    )


def curves(points: Sequence[Point], figure: str) -> dict[tuple[str, str], list[dict[str, float]]]:
    """By model and attack, in the order of the points: strength, mean and standard error over seeds.

    Each curve begins at strength 0, the model as it is.
    """
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    clean: dict[str, list[float]] = {}
    for point in points:
        if point.attack == "none":
            clean.setdefault(point.model, []).append(point.figures[figure])
    for point in points:
        if point.attack != "none":
            own = found.setdefault((point.model, point.attack), {0.0: clean[point.model]})
            own.setdefault(point.strength, []).append(point.figures[figure])
    return {
        key: [
            dict(zip(("strength", "mean", "standard_error"), (x, *mean_and_error(values))))
            for x, values in sorted(of_strength.items())
        ]
        for key, of_strength in found.items()
    }


def drops(means: Sequence[float]) -> list[float]:
    """(M(0) - M(s)) / M(0), of means from strength 0 on; nan where M(0) is 0."""
    first = means[0]
    return [(first - mean) / first if first else math.nan for mean in means]


def mean_drop(strengths: Sequence[float], drop: Sequence[float]) -> float:
    """The area under the drop by the trapezoid rule, over the largest strength: a mean."""
    if len(strengths) < 2:
        return math.nan
    pairs = zip(strengths, strengths[1:], drop, drop[1:])
    return sum((b - a) * (p + q) / 2 for a, b, p, q in pairs) / strengths[-1]


def halving(strengths: Sequence[float], drop: Sequence[float]) -> float:
    """The first strength at which half is lost, between two points on the line; nan: at none."""
    for a, b, p, q in zip(strengths, strengths[1:], drop, drop[1:]):
        if q >= 0.5 > p:
            return a + (b - a) * (0.5 - p) / (q - p)
    return math.nan


def summary_of(points: Sequence[Point], metric: str) -> list[dict[str, Any]]:
    """A row for each model and attack, by a metric.

    ``drop``: by strength; ``mean_drop``, ``half_lost_at``; beside the first model, for the same
    attack: ``gain`` = 1 - mean_drop / its mean_drop, ``clean_price`` = 1 - M(0) / its M(0).
    """
    rows: list[dict[str, Any]] = []
    base: dict[str, dict[str, Any]] = {}
    for (model, attack), curve in curves(points, metric).items():
        strengths = [p["strength"] for p in curve]
        drop = drops([p["mean"] for p in curve])
        row: dict[str, Any] = {
            "model": model,
            "attack": attack,
            "clean": curve[0]["mean"],
            "drop": dict(zip(strengths[1:], drop[1:])),
            "mean_drop": mean_drop(strengths, drop),
            "half_lost_at": halving(strengths, drop),
        }
        first = base.setdefault(attack, row)
        if first is not row:
            row["gain"] = 1 - _ratio(row["mean_drop"], first["mean_drop"])
            row["clean_price"] = 1 - _ratio(row["clean"], first["clean"])
        rows.append(row)
    return rows


def _ratio(over: float, under: float) -> float:
    return over / under if under else math.nan
