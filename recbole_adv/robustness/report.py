"""The report of attacks on trained models: CSV, JSON, markdown and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_adv.evaluation.metrics import POPULARITY
from recbole_adv.robustness.draw import Line, Panel, draw
from recbole_adv.robustness.output import markdown, percent, plus_minus, write_json
from recbole_adv.robustness.summary import curves, drops, summary_of, table_of
from recbole_adv.robustness.tables import Point


def write_report(
    folder: Path, points: Sequence[Point], metric: str, strength: str, settings: Mapping[str, Any]
) -> str:
    """Write ``metrics.csv``, ``report.json``, ``report.md`` and, with matplotlib, PNGs.

    metric: what drops are told of; strength: ``epsilon`` or ``share``; settings: what was asked for,
    and of ``models`` by name their ``row_norms``.   Returns the markdown.
    """
    table_of(points, strength).to_csv(folder / "metrics.csv", index=False)
    summary = summary_of(points, metric)
    names = shown_figures(points, metric)
    found = {name: curves(points, name) for name in names}
    write_json(
        folder / "report.json",
        {
            "settings": dict(settings),
            "metric": metric,
            "summary": summary,
            "curves": [
                {"figure": name, "model": model, "attack": attack, "points": curve}
                for name, of_name in found.items()
                for (model, attack), curve in of_name.items()
            ],
            "points": [vars(point) for point in points],
        },
    )
    text = _text(found, names, summary, metric, strength)
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    draw(folder / "curves.png", _panels(found, names, strength), f"{metric} under attack")
    if "relative_mean" in names:
        draw(folder / "norms.png", _norm_panels(settings["models"]), "norms of rows")
    return text


def shown_figures(points: Sequence[Point], metric: str) -> list[str]:
    """The metric, popularity and what the attacks amounted to, as far as they were measured."""
    there = points[0].figures
    popular = [name for name in there if name.partition("@")[0] in POPULARITY]
    rest = ("train_loss", "relative_mean", "delta_mean", "delta_max", "replaced")
    return [metric, *popular, *(name for name in rest if name in there)]


def _text(found, names: Sequence[str], summary, metric: str, strength: str) -> str:
    rows = []
    names = [name for name in names if name != "delta_mean"]
    for number, (model, attack) in enumerate(found[metric]):
        of_metric = found[metric][model, attack]
        lost = drops([p["mean"] for p in of_metric])
        new = model not in [key[0] for key in list(found[metric])[:number]]
        for i, point in enumerate(of_metric):
            if i == 0 and not new:
                continue  # the model as it is, of which one row is enough
            cells = [model, attack if i else "none", f"{point['strength']:g}"]
            for name in names:
                p = found[name][model, attack][i]
                cells.append(plus_minus(p["mean"], p["standard_error"]))
                if name == metric:
                    cells.append(percent(lost[i]) if i else "")
            rows.append(cells)
    titles = ["model", "attack", strength]
    for name in names:
        titles += [name, "change"] if name == metric else [name]
    parts = [f"# {metric} under attack", "", markdown(titles, rows), ""]
    parts += ["Mean ± standard error over the seeds.", "", _summary(summary, strength)]
    return "\n".join(parts)


def _summary(summary: Sequence[Mapping[str, Any]], strength: str) -> str:
    titles = ["model", "attack", "clean", f"mean change up to the largest {strength}"]
    titles += [f"half lost at {strength}", "gain", "clean price"]
    rows = [
        [
            *(row["model"], row["attack"], row["clean"], percent(row["mean_drop"])),
            *(row["half_lost_at"], row.get("gain"), row.get("clean_price")),
        ]
        for row in summary
    ]
    return markdown(titles, rows)


def _panels(found, names: Sequence[str], strength: str) -> list[Panel]:
    """A colour for each attack, a style for each model; at the end the drop by the realised norm."""
    metric = names[0]
    models = list(dict.fromkeys(model for model, _ in found[metric]))
    attacks = list(dict.fromkeys(attack for _, attack in found[metric]))

    def line(key: tuple[str, str], x, y, error) -> Line:
        model, attack = key
        label = attack if len(models) == 1 else f"{attack}, {model}"
        return Line(label, x, y, error, attacks.index(attack), models.index(model))

    panels = []
    for name in names:
        if name in ("delta_mean", "delta_max"):
            continue
        lines = [
            line(
                key, *([p[part] for p in curve] for part in ("strength", "mean", "standard_error"))
            )
            for key, curve in found[name].items()
        ]
        panels.append(Panel(name, strength, lines))
    if "relative_mean" in names:
        lines = []
        for key, curve in found[metric].items():
            x = [p["mean"] for p in found["relative_mean"][key]]
            lines.append(line(key, x, drops([p["mean"] for p in curve]), [0.0] * len(x)))
        panels.append(Panel(f"drop of {metric}", "mean perturbation / row norm", lines))
    return panels


def _norm_panels(models: Mapping[str, Mapping[str, Any]]) -> list[Panel]:
    """For each table the histogram of its rows' norms, a line for each model."""
    tables = list(dict.fromkeys(name for model in models.values() for name in model["row_norms"]))
    panels = []
    for table in tables:
        lines = []
        for number, (model, described) in enumerate(models.items()):
            if table in described["row_norms"]:
                edges, share = (described["row_norms"][table][part] for part in ("edges", "share"))
                middle = [(a + b) / 2 for a, b in zip(edges, edges[1:])]
                lines.append(Line(model, middle, share, [0.0] * len(share), number))
        panels.append(Panel(table, "norm of a row (share of rows)", lines))
    return panels
