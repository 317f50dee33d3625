"""Means and standard errors over runs that differ in their seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import pandas as pd


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, s / sqrt(n) with s of n - 1 (nan of a single value)."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def means_and_errors(results: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """``mean`` and ``standard_error`` of each metric that all results have, in their order."""
    names = [name for name in results[0] if all(name in result for result in results)]
    found = {}
    for name in names:
        mean, error = mean_and_error([result[name] for result in results])
        found[name] = {"mean": mean, "standard_error": error}
    return found


def table_of(runs: Mapping[int, Mapping[str, Mapping[str, float]]]) -> pd.DataFrame:
    """A row for each seed, a column ``<valid or test>/<metric>`` for each figure.

    runs: RecBole's results (``best_valid_result``, ``test_result``) by seed.
    """
    rows = []
    for seed, run in runs.items():
        row: dict[str, float] = {"seed": seed}
        for part, key in (("valid", "best_valid_result"), ("test", "test_result")):
            row |= {f"{part}/{name}": value for name, value in (run[key] or {}).items()}
        rows.append(row)
    return pd.DataFrame(rows)


def as_markdown(summary: Mapping[str, Mapping[str, float]], n_runs: int) -> str:
    """Mean and standard error of each metric, as a table."""
    lines = [f"| metric | mean ± standard error of {n_runs} seeds |", "|---|---|"]
    for name, figures in summary.items():
        lines.append(f"| {name} | {figures['mean']:.4f} ± {figures['standard_error']:.4f} |")
    return "\n".join(lines)
