"""The plots of a sweep: one HTML page (plotly), and PNG files where matplotlib is installed."""

from __future__ import annotations

import html
import importlib.util
import math
from collections.abc import Sequence
from logging import getLogger
from typing import Any

from recbole_adv.sweep.ledger import Record
from recbole_adv.sweep.plan import Plan
from recbole_adv.sweep.space import Choice, Range

_CURVES = 40
_FITS = 16  # letters of a name that have room beside the next one


def draw(plan: Plan, records: Sequence[Record]) -> None:
    """``plots.html``, and ``scores.png``, ``parallel.png``, ``curves.png``."""
    scored = [r for r in records if r.score is not None and math.isfinite(r.score)]
    if not scored:
        return
    axes = [_axis(plan, name, scored) for name in plan.space.dimensions]
    if _there("plotly"):
        _draw_html(plan, scored, axes)
    else:
        getLogger(__name__).warning("no plots.html: plotly is not installed")
    if _there("matplotlib"):
        _draw_png(plan, scored, axes)
    else:
        getLogger(__name__).info("no PNG plots: run pip install 'recbole_adv[plot]'")


def _there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


class _Axis:
    """A searched key as an axis: positions of the trials, and what to write at which position."""

    def __init__(
        self, name: str, at: list[float], ticks: list[tuple[float, str]], log: bool
    ) -> None:
        self.name, self.at, self.ticks, self.log = name, at, ticks, log

    @property
    def linear(self) -> list[float]:
        """The positions on an axis without a scale of its own."""
        return [math.log10(x) for x in self.at] if self.log else self.at

    @property
    def linear_ticks(self) -> list[tuple[float, str]]:
        """Where to write what on that axis."""
        return [(math.log10(x), text) for x, text in self.ticks] if self.log else self.ticks


def _axis(plan: Plan, name: str, records: Sequence[Record]) -> _Axis:
    """Choices stand side by side in the order of the file; numbers where they are."""
    dimension = plan.space.dimensions[name]
    values = [record.setting.get(name) for record in records]
    if isinstance(dimension, Choice):
        known = list(dimension.values)
        known += [value for value in values if value not in known]  # of an earlier search file
        ticks = [(float(place), str(value)) for place, value in enumerate(known)]
        return _Axis(name, [float(known.index(value)) for value in values], ticks, False)
    assert isinstance(dimension, Range)
    numbers = [float(value) for value in values]
    low, high = min(numbers), max(numbers)
    log = dimension.kind == "loguniform" and low > 0
    steps = [low + (high - low) * k / 4 for k in range(5)]
    if log:
        steps = [low * (high / low) ** (k / 4) for k in range(5)]
    return _Axis(name, numbers, [(step, f"{step:.3g}") for step in steps], log)


def _label(record: Record) -> str:
    return ", ".join(f"{key}={value}" for key, value in record.setting.items())


def _curves(plan: Plan, records: Sequence[Record]) -> list[Record]:
    """The trials whose curves are drawn: the best, if there are many."""
    return sorted(records, key=lambda r: r.score, reverse=plan.bigger)[:_CURVES]


# --- HTML ---------------------------------------------------------------------------------------


def _draw_html(plan: Plan, records: Sequence[Record], axes: Sequence[_Axis]) -> None:
    import plotly.io

    title = html.escape(f"{plan.model.rpartition(':')[2]} on {plan.dataset}")
    parts = [_html_scores(plan, records, axes), _html_parallel(plan, records, axes)]
    parts.append(_html_curves(plan, records))
    figures = [
        plotly.io.to_html(part, full_html=False, include_plotlyjs=number == 0)
        for number, part in enumerate(parts)
    ]
    page = "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
    page += f"<title>{title}</title></head><body style='font-family: sans-serif'>"
    text = page + f"<h1>Sweep of {title}</h1>" + "\n".join(figures) + "</body></html>\n"
    aside = plan.folder / "plots.tmp"
    aside.write_text(text, encoding="utf-8")
    aside.replace(plan.folder / "plots.html")


def _html_scores(plan: Plan, records: Sequence[Record], axes: Sequence[_Axis]) -> Any:
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(axes), shared_yaxes=True)
    texts, scores = [_label(record) for record in records], [record.score for record in records]
    for column, axis in enumerate(axes, start=1):
        dots = Scatter(x=axis.linear, y=scores, text=texts, mode="markers", showlegend=False)
        dots.marker.color = "#1f77b4"
        figure.add_trace(dots, row=1, col=column)
        places, words = zip(*axis.linear_ticks)
        figure.update_xaxes(
            title_text=axis.name, tickvals=places, ticktext=words, row=1, col=column
        )
    figure.update_yaxes(title_text=plan.metric, row=1, col=1)
    return figure.update_layout(title="Score against each key")


def _html_parallel(plan: Plan, records: Sequence[Record], axes: Sequence[_Axis]) -> Any:
    from plotly.graph_objects import Figure, Parcoords

    scores = [record.score for record in records]
    lines = []
    for axis in axes:
        places, words = zip(*axis.linear_ticks)
        lines.append({"label": axis.name, "values": axis.linear, "tickvals": places})
        lines[-1]["ticktext"] = words
    lines.append({"label": plan.metric, "values": scores})
    colours = {"color": scores, "colorscale": "Viridis", "showscale": True}
    figure = Figure(Parcoords(line=colours, dimensions=lines))
    return figure.update_layout(title="Parallel coordinates")


def _html_curves(plan: Plan, records: Sequence[Record]) -> Any:
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for record in _curves(plan, records):
        if record.curve:
            epochs, scores = zip(*record.curve)
            figure.add_trace(Scatter(x=epochs, y=scores, mode="lines", name=_label(record)))
    longest = max((record.epochs for record in records), default=1)
    figure.update_xaxes(title_text="epochs trained", dtick=max(1, longest // 10))
    figure.update_yaxes(title_text=plan.metric)
    return figure.update_layout(title="Learning curves")


# --- PNG ----------------------------------------------------------------------------------------


def _draw_png(plan: Plan, records: Sequence[Record], axes: Sequence[_Axis]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pictures = {
        "scores": ((3.2 * len(axes), 3.2), _png_scores),
        "parallel": ((1.8 * (len(axes) + 1), 3.6), _png_parallel),
        "curves": ((6.4, 4.0), _png_curves),
    }
    for name, (size, fill) in pictures.items():
        figure = Figure(figsize=(max(size[0], 4.0), size[1]), layout="constrained")
        FigureCanvasAgg(figure)
        fill(figure, plan, records, axes)
        aside = plan.folder / f"{name}.tmp"
        figure.savefig(aside, format="png", dpi=120)
        aside.replace(plan.folder / f"{name}.png")


def _png_scores(figure: Any, plan: Plan, records: Sequence[Record], axes: Sequence[_Axis]) -> None:
    scores = [record.score for record in records]
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes):
        panel.plot(axis.linear, scores, "o", alpha=0.7)
        places, words = zip(*axis.linear_ticks)
        panel.set_xticks(places, words, rotation=30, ha="right")
        panel.set_xlabel(axis.name)
    panels[0].set_ylabel(plan.metric)


def _png_parallel(
    figure: Any, plan: Plan, records: Sequence[Record], axes: Sequence[_Axis]
) -> None:
    from matplotlib import colormaps

    scores = [record.score for record in records]
    score_axis = _Axis(
        plan.metric, scores, [(s, f"{s:.4f}") for s in (min(scores), max(scores))], False
    )
    panel, shown = figure.subplots(), [*axes, score_axis]
    scaled = [_scaled(axis.linear, axis) for axis in shown]
    height = _scaled(scores, score_axis)
    order = sorted(range(len(records)), key=lambda n: height[n] if plan.bigger else -height[n])
    for number in order:  # the best on top
        line = [column[number] for column in scaled]
        panel.plot(range(len(shown)), line, color=colormaps["viridis"](height[number]), alpha=0.8)
    for place, axis in enumerate(shown):
        panel.axvline(place, color="0.7", linewidth=0.8, zorder=0)
        ticks = axis.linear_ticks
        for high, (_, word) in zip(_scaled([at for at, _ in ticks], axis), ticks):
            ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
            beside = {"xytext": (4, 0), "textcoords": "offset points"}
            panel.annotate(word, (place, high), fontsize=7, va="center", bbox=ground, **beside)
    names = [axis.name for axis in shown]
    turned = {"rotation": 20, "ha": "right"} if max(map(len, names)) > _FITS else {}
    panel.set_xticks(range(len(shown)), names, **turned)
    panel.tick_params(length=0)
    panel.set_yticks([])
    panel.set_xlim(-0.1, len(shown) - 1 + 0.35)  # room for the numbers of the last one
    for spine in panel.spines.values():
        spine.set_visible(False)


def _scaled(values: Sequence[float], axis: _Axis) -> list[float]:
    """Positions from 0 to 1 between the outermost of an axis; in the middle if there is only one."""
    ends = [at for at, _ in axis.linear_ticks] + list(axis.linear)
    low, high = min(ends), max(ends)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def _png_curves(figure: Any, plan: Plan, records: Sequence[Record], axes: Sequence[_Axis]) -> None:
    from matplotlib.ticker import MaxNLocator

    panel = figure.subplots()
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    shown = _curves(plan, [record for record in records if record.curve])
    for number, record in enumerate(reversed(shown)):
        best = number == len(shown) - 1
        style = {"linewidth": 2.0, "color": "C0", "label": _label(record)} if best else {}
        style = style or {"linewidth": 0.9, "color": "0.6", "alpha": 0.7}
        panel.plot(*zip(*record.curve), **style)
    panel.set_xlabel("epochs trained")
    panel.set_ylabel(plan.metric)
    if shown:
        panel.legend(fontsize=7)
