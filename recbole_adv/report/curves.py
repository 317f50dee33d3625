"""The learning curves and the other figures of the epochs, as charts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from recbole_adv.plot.metrics import pages_of
from recbole_adv.report.blocks import Block, Chart, Charts, Details, Line, Section
from recbole_adv.report.methods import Method
from recbole_adv.report.results import parsed

_PAGES = {
    "techniques": "Figures of techniques",
    "norms": "Gradients and updates",
    "sharpness": "Sharpness",
    "model": "Figures of the model",
}


def curve_sections(methods: Sequence[Method]) -> list[Section]:
    """The losses of each player and the validation score; behind a line, everything else."""
    runs = [run.curves for method in methods for run in method.runs if run.curves]
    pages = pages_of(runs)
    first: list[Chart] = []
    parts: list[Chart] = []
    for panel, curves in pages.get("losses", {}).items():
        for label, name in curves.items():
            chart = _chart(methods, name, panel if label in panel else f"{panel} {label}")
            (first if label in ("loss", "objective") else parts).append(chart)
    by = {run.valid_metric for method in methods for run in method.runs}
    score = f"validation {by.pop()}" if len(by) == 1 else "validation score"
    first.append(_chart(methods, "valid_score", score))
    groupings = [str(g) for m in methods for g in m.settings.get("eval_groups") or ()]
    valid = [name for curves in pages.get("validation", {}).values() for name in curves.values()]
    whole = [n for n in valid if not parsed(n.removeprefix("valid/"), groupings)[1]]
    others = [_chart(methods, n, "validation " + n.removeprefix("valid/")) for n in whole]
    blocks: list[Block] = [*_drawn(methods, first)]
    for summary, charts in (("Parts of the losses", parts), ("All validation metrics", others)):
        if _drawn(methods, charts):
            blocks.append(Details(summary, _drawn(methods, charts)))
    sections = [Section("Learning curves", blocks)]
    further: list[Block] = []
    for page, title in _PAGES.items():
        charts = [
            _chart(
                methods, name, panel if label in panel or label == "all" else f"{panel}: {label}"
            )
            for panel, curves in pages.get(page, {}).items()
            for label, name in curves.items()
        ]
        if _drawn(methods, charts):
            further.append(Details(f"{title} ({len(charts)})", _drawn(methods, charts)))
    return [*sections, Section("Further figures", further)]


def _chart(methods: Sequence[Method], name: str, title: str) -> Chart:
    lines = []
    for place, method in enumerate(methods):
        for run in method.runs:
            if run.curves is None or name not in run.curves.curves:
                continue
            epochs, values = run.curves.curves[name]
            who = method.label if len(method.runs) == 1 else f"{method.label}, seed {run.seed}"
            lines.append(Line(place, who, epochs, values))
    return Chart(title, lines)


def _drawn(methods: Sequence[Method], charts: Sequence[Chart]) -> list[Block]:
    """The charts that have a value; none where there is none."""
    full = [c for c in charts if any(map(math.isfinite, (v for x in c.lines for v in x.values)))]
    return [Charts(full, [method.label for method in methods])] if full else []
