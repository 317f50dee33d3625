"""Draws the curves of runs with matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from recbole_adv.errors import ConfigError, DataError
from recbole_adv.plot.metrics import Pages, Run, pages_of

_COLUMNS, _WIDTH, _HEIGHT = 3, 4.6, 3.2  # panels in a row, inches of a panel
_STYLES = ("-", "--", ":", "-.")
_FEW = 30  # epochs up to which each is marked
_WIDE = 50.0  # the largest value by the smallest, from which an axis of norms is logarithmic


def draw_runs(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write a PNG for each page of the curves of some runs, drawn over each other.

    Returns the files. Raises :class:`ConfigError` without matplotlib, :class:`DataError` where
    nothing can be drawn or written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "plotting needs matplotlib, which is not installed; run pip install 'recbole_adv[plot]'"
        ) from None
    pages = pages_of(runs)
    if not pages:
        raise DataError(f"{', '.join(run.name for run in runs)}: no figure that could be drawn")
    written = []
    for page in pages:
        figure = Figure(layout="constrained")
        _fill(figure, runs, page, pages)
        written.append(folder / f"{page}.png")
        _save(figure, written[-1])
    return written


def _save(figure, file: Path) -> None:
    aside = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(aside, format="png", dpi=120)
        os.replace(aside, file)
    except OSError as error:
        raise DataError(
            f"{file} cannot be written ({error.strerror}); write another --output"
        ) from error


def _fill(figure, runs: Sequence[Run], page: str, pages: Pages) -> None:
    panels = pages[page]
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure.set_size_inches(_WIDTH * columns, _HEIGHT * rows + 0.4)
    figure.suptitle(runs[0].name if len(runs) == 1 else page)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (panel, curves) in zip(axes, panels.items()):
        _panel(axis, runs, curves)
        only = next(iter(curves)) if len(curves) == 1 else panel
        axis.set_title(panel if only in panel else f"{panel}: {only}", fontsize="medium")
        if page == "norms":
            _scale(axis)
        if page == "losses":
            _mark_rollbacks(axis, runs)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="x-small")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)


def _panel(axis, runs: Sequence[Run], curves: Mapping[str, str]) -> None:
    """A style for each curve, and a colour for each, or, where there are several runs, for each run."""
    several = len(runs) > 1
    for r, run in enumerate(runs):
        for c, (label, name) in enumerate(curves.items()):
            if name not in run.curves:
                continue
            epochs, values = run.curves[name]
            said = [run.name] if several else []
            said += [label] if len(curves) > 1 else []
            axis.plot(
                epochs,
                values,
                color=f"C{(r if several else c) % 10}",
                linestyle=_STYLES[c % len(_STYLES)],
                marker="." if len(epochs) <= _FEW else "",
                label=" ".join(said) or None,
            )
    axis.set_xlabel("epoch", fontsize="small")
    axis.tick_params(labelsize="small")
    axis.grid(alpha=0.3)
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _scale(axis) -> None:
    """A logarithmic axis where the values are positive and far apart."""
    values = [v for line in axis.get_lines() for v in line.get_ydata() if math.isfinite(v)]
    if values and min(values) > 0 and max(values) / min(values) > _WIDE:
        axis.set_yscale("log")


def _mark_rollbacks(axis, runs: Sequence[Run]) -> None:
    for r, run in enumerate(runs):
        for i, epoch in enumerate(run.epochs_with("/divergence_guard_rollback")):
            colour = f"C{r}" if len(runs) > 1 else "black"
            label = None if i else "rollback" + (f" {run.name}" if len(runs) > 1 else "")
            axis.axvline(epoch, color=colour, linestyle=":", linewidth=1, label=label)
