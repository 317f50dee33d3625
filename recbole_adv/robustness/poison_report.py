"""The report of ``poison``: CSV, JSON, markdown and curves over the share of fake users."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_adv.robustness.draw import Line, Panel, draw
from recbole_adv.robustness.output import markdown, percent, plus_minus, write_json
from recbole_adv.robustness.summary import curves, drops, table_of
from recbole_adv.robustness.tables import Point


def write_report(
    folder: Path, points: Sequence[Point], metric: str, settings: Mapping[str, Any]
) -> str:
    """Write ``metrics.csv``, ``report.json``, ``report.md`` and ``curves.png``; returns the markdown."""
    table_of(points, "share").to_csv(folder / "metrics.csv", index=False)
    names = [metric, *(name for name in points[0].figures if name.startswith("t-"))]
    found = {name: curves(points, name) for name in names}
    write_json(
        folder / "report.json",
        {
            "settings": dict(settings),
            "metric": metric,
            "curves": [
                {"figure": name, "attack": attack, "points": curve}
                for name, of_name in found.items()
                for (_, attack), curve in of_name.items()
            ],
            "points": [vars(point) for point in points],
        },
    )
    text = _text(found, names, points)
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    draw(folder / "curves.png", _panels(found, names), f"{points[0].model} with fake users")
    return text


def _text(found, names: Sequence[str], points: Sequence[Point]) -> str:
    metric, rows = names[0], []
    n_fake = {(p.attack, p.strength): p.figures["fake_users"] for p in points}
    for number, key in enumerate(found[metric]):
        lost = drops([p["mean"] for p in found[metric][key]])
        for i, point in enumerate(found[metric][key]):
            if i == 0 and number:
                continue  # the clean data are the same for every attack
            attack = key[1] if i else "none"
            cells = [attack, f"{point['strength']:g}", f"{n_fake[attack, point['strength']]:g}"]
            for name in names:
                p = found[name][key][i]
                cells.append(plus_minus(p["mean"], p["standard_error"]))
                if name == metric:
                    cells.append(percent(lost[i]) if i else "")
            rows.append(cells)
    titles = ["attack", "share", "fake users", metric, "change", *names[1:]]
    n_seeds = len({point.seed for point in points})
    return "\n".join(
        [
            f"# {points[0].model} with fake users",
            "",
            markdown(titles, rows),
            "",
            f"Mean ± standard error over {n_seeds} seeds; real users only. t-...: the target items in the "
            "lists of real users who have them in no part of the data.",
        ]
    )


def _panels(found, names: Sequence[str]) -> list[Panel]:
    panels = []
    for name in names:
        lines = []
        for number, ((_, attack), curve) in enumerate(found[name].items()):
            x, y, error = (
                [p[part] for p in curve] for part in ("strength", "mean", "standard_error")
            )
            if not all(map(math.isnan, y)):
                lines.append(Line(attack, x, y, error, number))
        panels.append(Panel(name, "fake users / real users", lines))
    return panels
