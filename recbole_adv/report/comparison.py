"""Paired tests of two methods, by scipy, over users or over seeds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from recbole_adv.report.methods import Arena, Method, pairs_of_runs
from recbole_adv.report.runs import RunFacts


@dataclass(frozen=True)
class PairedTest:
    """Two paired samples, compared.

    pairs: how many; difference: the mean of first - second; interval: its 95 % confidence interval
    by Student's t; p_t, p_wilcoxon: two-sided. None where they cannot be said: of fewer than two
    pairs, or of differences that are all the same.
    """

    pairs: int
    difference: float
    interval: tuple[float, float] | None = None
    p_t: float | None = None
    p_wilcoxon: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline by one metric; over: ``users`` or ``seeds``."""

    method: Method
    metric: str
    over: str
    test: PairedTest


def paired_test(first: ArrayLike, second: ArrayLike) -> PairedTest:
    """Student's t test and Wilcoxon's signed-rank test (zero differences left out) of pairs."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    delta = a - b
    if len(delta) < 2 or np.ptp(delta) <= 1e-12:
        return PairedTest(len(delta), float(delta.mean()) if len(delta) else float("nan"))
    found = stats.ttest_rel(a, b)
    interval = found.confidence_interval(0.95)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small samples with ties; the p-value is then approximate
        p_wilcoxon = float(stats.wilcoxon(a, b).pvalue)
    return PairedTest(
        len(delta),
        float(delta.mean()),
        (float(interval.low), float(interval.high)),
        float(found.pvalue),
        p_wilcoxon,
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction; None, which is no test, stays None and does not count.

    Of m p-values in ascending order the k-th becomes max over j <= k of min(1, (m - j + 1) p_j).
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = largest
    return adjusted


def compare(arena: Arena, metrics: Sequence[str]) -> list[Comparison]:
    """Each method against the first one by each metric that both have.

    metrics: full names; the pairs are users where all runs of a comparison kept their metrics.
    """
    baseline, found = arena.methods[0], []
    for metric in metrics:
        for method in arena.methods[1:]:
            comparison = _compare(method, baseline, metric)
            if comparison is not None:
                found.append(comparison)
    return found


def _compare(method: Method, baseline: Method, metric: str) -> Comparison | None:
    pairs = [
        (mine, theirs)
        for mine, theirs in pairs_of_runs(method, baseline)
        if metric in mine.test and metric in theirs.test
    ]
    if not pairs:
        return None
    of_users = _users(pairs, metric)
    if of_users is not None:
        return Comparison(method, metric, "users", paired_test(*of_users))
    seeds = [(mine, theirs) for mine, theirs in pairs if mine.seed == theirs.seed]
    values = [[run.test[metric] for run in runs] for runs in zip(*seeds)] or [[], []]
    if not seeds:  # other seeds: a difference of means, and no test
        means = [np.mean(list(m.values(metric).values())) for m in (method, baseline)]
        return Comparison(method, metric, "seeds", PairedTest(0, float(means[0] - means[1])))
    return Comparison(method, metric, "seeds", paired_test(*values))


def _users(
    pairs: Sequence[tuple[RunFacts, RunFacts]], metric: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """The metric of each user that all runs have, the mean over the runs of each side."""
    name, _, column = metric.rpartition("/")
    sides = []
    for side in zip(*pairs):
        runs = {id(run): run for run in side}.values()
        tables = [run.of_users.get(name) for run in runs]
        if any(table is None or column not in table for table in tables):
            return None
        sides.append([table[column] for table in tables if table is not None])
    users = sides[0][0].index
    for column_of_run in [*sides[0], *sides[1]]:
        users = users.intersection(column_of_run.index)
    if not len(users):
        return None
    first, second = (np.mean([c.loc[users].to_numpy() for c in side], axis=0) for side in sides)
    return first, second
