"""Curves and bars as PNG; matplotlib is imported here, and what it draws is left out without it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

_COLUMNS, _WIDTH, _HEIGHT = 3, 4.6, 3.4  # panels in a row, inches of a panel
_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Line:
    """x, y: of the points; error: half the height of the band, nan for none; colour, style: counted."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float]
    colour: int
    style: int = 0


@dataclass(frozen=True)
class Panel:
    """Axes with lines, or with bars (``bins`` of a histogram are drawn by their counts)."""

    title: str
    x_label: str
    lines: Sequence[Line]


def draw(file: Path, panels: Sequence[Panel], title: str) -> bool:
    """Write the panels as one PNG; False where matplotlib is missing."""
    figure = _figure(len(panels), title)
    if figure is None:
        return False
    axes = figure.subplots(math.ceil(len(panels) / _COLUMNS), min(_COLUMNS, len(panels)))
    axes = axes.flatten() if hasattr(axes, "flatten") else [axes]
    for axis, panel in zip(axes, panels):
        for line in panel.lines:
            _line(axis, line)
        axis.set_title(panel.title, fontsize="medium")
        axis.set_xlabel(panel.x_label, fontsize="small")
        axis.tick_params(labelsize="small")
        axis.grid(alpha=0.3)
        axis.ticklabel_format(axis="y", useOffset=False)
    axes[0].legend(fontsize="x-small")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(file, format="png", dpi=120)
    return True


def draw_bars(
    file: Path,
    groups: Sequence[str],
    bars: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
) -> bool:
    """Bars with error bars, one of each name in each group; False where matplotlib is missing.

    bars: by name the heights and their errors, one for each group.
    """
    figure = _figure(1, title, width=max(_WIDTH, 1.2 * len(groups) * max(len(bars), 2) / 2))
    if figure is None:
        return False
    axis, width = figure.subplots(), 0.8 / len(bars)
    for number, (name, (heights, errors)) in enumerate(bars.items()):
        place = [g + (number - (len(bars) - 1) / 2) * width for g in range(len(groups))]
        known = [0.0 if math.isnan(e) else e for e in errors]
        axis.bar(place, heights, width, yerr=known, capsize=2, label=name)
    axis.set_xticks(range(len(groups)), groups, fontsize="small")
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize="x-small")
    figure.savefig(file, format="png", dpi=120)
    return True


def _figure(n_panels: int, title: str, width: float = _WIDTH):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        getLogger().warning(
            "no PNG is drawn, for matplotlib is not installed (pip install 'recbole_adv[plot]')"
        )
        return None
    figure = Figure(layout="constrained")
    columns, rows = min(_COLUMNS, n_panels), math.ceil(n_panels / _COLUMNS)
    figure.set_size_inches(width * columns, _HEIGHT * rows + 0.4)
    figure.suptitle(title)
    return figure


def _line(axis, line: Line) -> None:
    colour = f"C{line.colour % 10}"
    style = _STYLES[line.style % len(_STYLES)]
    axis.plot(line.x, line.y, color=colour, linestyle=style, marker=".", label=line.label)
    if any(error > 0 for error in line.error):
        known = [0.0 if math.isnan(error) else error for error in line.error]
        low, high = zip(*((y - e, y + e) for y, e in zip(line.y, known)))
        axis.fill_between(line.x, low, high, color=colour, alpha=0.2, linewidth=0)
