"""Test metrics of methods: means and standard errors, groups, and paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence

from recbole_adv.evaluation.keys import bigger_is_better
from recbole_adv.evaluation.summary import mean_and_error
from recbole_adv.report.blocks import Best, Block, Details, Table, Text
from recbole_adv.report.comparison import Comparison, compare, holm
from recbole_adv.report.methods import Arena, Method


def parsed(name: str, groupings: Sequence[str]) -> tuple[str, str, str, str]:
    """Test, grouping, group and metric of ``[test/][grouping/group/]metric``; "" is not there."""
    *front, metric = name.split("/")
    for place in (0, 1):
        if len(front) > place + 1 and front[place] in groupings:
            test = front[0] if place else ""
            return test, front[place], "/".join(front[place + 1 :]), metric
    return "/".join(front), "", "", metric


def summary(method: Method, metric: str) -> tuple[float, float, int] | None:
    """Mean, standard error (nan of one run) and number of runs of a test metric."""
    values = [value for value in method.values(metric).values() if value == value]
    return (*mean_and_error(values), len(values)) if values else None


def metric_blocks(arenas: Sequence[Arena]) -> list[Block]:
    """A table of all metrics for each test."""
    blocks: list[Block] = []
    for arena in arenas:
        tests: dict[str, list[str]] = {}
        for name in arena.metrics:
            test, grouping, _, _ = parsed(name, arena.groupings)
            if not grouping:
                tests.setdefault(test, []).append(name)
        for test, names in tests.items():
            what = f"{arena.test_name(test)} of {arena.dataset}{arena.tag}{_means(arenas)}"
            what += "; the best mean is bold" if len(arena.methods) > 1 else ""
            head = ["method", "seeds", *(name.rpartition("/")[2] for name in names)]
            blocks.append(Table(what, head, _rows(arena, names)))
    if _means(arenas) and any(len(m.tested()) == 1 for arena in arenas for m in arena.methods):
        blocks.append(Text("A method with a single seed has no standard error."))
    return blocks


def _means(arenas: Sequence[Arena]) -> str:
    """What the figures are, where some method has several seeds."""
    several = any(len(method.tested()) > 1 for arena in arenas for method in arena.methods)
    return ", mean ± standard error over seeds" if several else ""


def _rows(arena: Arena, names: Sequence[str]) -> list[list[str]]:
    columns = {name: [summary(method, name) for method in arena.methods] for name in names}
    rows = []
    for place, method in enumerate(arena.methods):
        cells = [_cell(columns[name], place, name) for name in names]
        rows.append([method.label, str(len(method.tested())), *cells])
    return rows


def _cell(column: Sequence[tuple[float, float, int] | None], place: int, name: str) -> str:
    found = column[place]
    if found is None:
        return "–"
    mean, error, _ = found
    written = f"{mean:.4f}" if math.isnan(error) else f"{mean:.4f} ± {error:.4f}"
    means = [each[0] for each in column if each is not None]
    best = max(means) if bigger_is_better(name) else min(means)
    return Best(written) if mean == best and min(means) < max(means) else written


def group_blocks(arenas: Sequence[Arena], metrics: Sequence[str]) -> list[Block]:
    """The metrics of groups: by the main metric, and by the others behind a line."""
    blocks: list[Block] = []
    for arena in arenas:
        tables: dict[str, list[Table]] = {}
        found: dict[tuple[str, str, str], list[str]] = {}
        for name in arena.metrics:
            test, grouping, _, metric = parsed(name, arena.groupings)
            if grouping:
                found.setdefault((metric, test, grouping), []).append(name)
        for (metric, test, grouping), names in found.items():
            caption = f"{arena.test_name(test)}{arena.tag}: {metric} by {grouping}"
            labels = [parsed(name, arena.groupings)[2] for name in names]
            head = ["method", "seeds", *labels]
            tables.setdefault(metric, []).append(Table(caption, head, _rows(arena, names)))
        shown = [m.lower() for m in metrics] or [arena.main_metric]
        first = [table for metric in tables if metric in shown for table in tables[metric]]
        rest = [table for metric in tables if metric not in shown for table in tables[metric]]
        if not first:
            first, rest = rest, []
        blocks += first
        if rest:
            blocks.append(Details(f"Groups by other metrics ({len(rest)} tables)", rest))
    if blocks:
        blocks.insert(0, Text(_GROUPS))
    return blocks


_GROUPS = (
    "The metrics of a group count its own targets, among all ranked items. Groups of popularity and "
    "activity have equal shares of the training rows; 0 is the rarest."
)
_HEAD = (
    *("method", "metric", "pairs", "difference", "95 % interval"),
    *("t test p", "p (Holm)", "Wilcoxon p", "p (Holm)"),
)


def comparison_blocks(arenas: Sequence[Arena], metrics: Sequence[str]) -> list[Block]:
    """Each method against the first, by paired tests."""
    blocks: list[Block] = []
    for arena in arenas:
        found = compare(arena, _full_names(arena, metrics))
        if not found:
            continue
        caption = f"Difference to {arena.methods[0].label}{arena.tag}, paired"
        blocks.append(Table(caption, _HEAD, _comparison_rows(found), frozenset({0, 1, 2})))
        blocks += [Text(text) for text in _explained(found)]
    return blocks


def _full_names(arena: Arena, metrics: Sequence[str]) -> list[str]:
    """The wanted metrics on every test."""
    wanted = [metric.lower() for metric in metrics] or [arena.main_metric.lower()]
    names = []
    for name in arena.metrics:
        test, grouping, group, metric = parsed(name, arena.groupings)
        own = f"{grouping}/{group}/{metric}" if grouping else metric
        if own.lower() in wanted or name.lower() in wanted:
            names.append(name)
    return names


def _comparison_rows(found: Sequence[Comparison]) -> list[list[str]]:
    by_t = holm([comparison.test.p_t for comparison in found])
    by_wilcoxon = holm([comparison.test.p_wilcoxon for comparison in found])
    rows = []
    for comparison, t, wilcoxon in zip(found, by_t, by_wilcoxon):
        test = comparison.test
        low_high = "–" if test.interval is None else "{:+.4f} to {:+.4f}".format(*test.interval)
        rows.append(
            [
                *(comparison.method.label, comparison.metric, f"{test.pairs} {comparison.over}"),
                *(f"{test.difference:+.4f}", low_high),
                *(p_value(test.p_t), p_value(t), p_value(test.p_wilcoxon), p_value(wilcoxon)),
            ]
        )
    return rows


def p_value(p: float | None) -> str:
    """Four places, which is more than it means."""
    if p is None:
        return "–"
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _explained(found: Sequence[Comparison]) -> list[str]:
    over = {comparison.over for comparison in found}
    texts = []
    if "users" in over:
        texts.append(
            "Pairs of users: each user's metric under both methods, the mean over the seeds of each. The "
            "test asks whether the difference would hold for other users of this kind, given these trained "
            "models; it says nothing of other seeds."
        )
    if "seeds" in over:
        texts.append(
            "Pairs of seeds: both methods with the same seed. With n pairs Wilcoxon's test cannot go below "
            "2^(1-n). Rankings of runs with save_user_metrics: True are compared over users."
        )
    tests = [c for c in found if c.test.p_t is not None]
    if tests:
        texts.append(
            "Student's t test is of the mean difference, Wilcoxon's of whether the ranks of the "
            "differences lean to one side; where a few pairs differ much they may disagree."
        )
    if len(tests) > 1:
        texts.append(
            f"Holm's correction is for all {len(tests)} comparisons of the table, each test on its own."
        )
    if len(tests) < len(found):
        texts.append("– : fewer than two pairs, or all differences the same; no test is possible.")
    return texts
