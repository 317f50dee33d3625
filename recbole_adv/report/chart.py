"""A chart of curves as inline SVG; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from recbole_adv.report.blocks import Chart, Line

N_COLOURS = 6
_DASHES = ("", "5 3", "1.5 2.5", "8 3 1.5 3")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 220, 52, 10, 10, 34
_MOST = 400  # points of a line; of a longer run every k-th epoch is drawn


def stroke(method: int) -> str:
    """Colour and dashes of a method: a class and an attribute. Only with more methods than colours
    do two share a colour, and then differ in their dashes."""
    dashes = _DASHES[(method // N_COLOURS) % len(_DASHES)]
    return f'class="line c{method % N_COLOURS}"' + (
        f' stroke-dasharray="{dashes}"' if dashes else ""
    )


def svg(chart: Chart, name: str) -> str:
    """The chart; name: of its title, unique in the page."""
    points = [(e, v) for x in chart.lines for e, v in zip(x.epochs, x.values) if math.isfinite(v)]
    low_x, high_x = min(e for e, _ in points), max(e for e, _ in points)
    y_ticks = ticks(min(v for _, v in points), max(v for _, v in points))
    across = _Scale(low_x, max(high_x, low_x + 1), _LEFT, _WIDTH - _RIGHT)
    up = _Scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{name}-t {name}-d">',
        f'<title id="{name}-t">{escape(chart.title)}</title>',
        f'<desc id="{name}-d">{escape(described(chart))}</desc>',
        *_axes(across, up, y_ticks, low_x, high_x),
        *(part for line in chart.lines for part in _line(line, across, up)),
        "</svg>",
    ]
    return "".join(parts)


class _Scale:
    """From a value to a place."""

    def __init__(self, low: float, high: float, start: float, end: float):
        self.low, self.start, self.factor = low, start, (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) * self.factor, 1)


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose two."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def _axes(across: _Scale, up: _Scale, y_ticks, low: int, high: int) -> Iterator[str]:
    for value in y_ticks:
        y = up(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 3.5}" text-anchor="end">{_label(value, y_ticks)}</text>'
    step = max(1, math.ceil((high - low) / 6))
    step = next(m for k in range(9) for m in (10**k, 2 * 10**k, 5 * 10**k) if m >= step)
    for epoch in range(math.ceil(low / step) * step, high + 1, step):
        x = across(epoch)
        yield f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{epoch}</text>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">epoch</text>'


def _label(value: float, y_ticks: Sequence[float]) -> str:
    step = y_ticks[1] - y_ticks[0]
    largest = max(abs(y_ticks[0]), abs(y_ticks[-1]))
    if largest >= 1e5 or largest < 1e-3:
        return "0" if value == 0 else f"{value:.3g}"
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    places += not math.isclose(round(step, places), step, rel_tol=1e-6)  # a step of 0.25
    return f"{value:.{places}f}"


def _line(line: Line, across: _Scale, up: _Scale) -> Iterator[str]:
    """A polyline for each stretch without a gap; a point where nothing is beside it."""
    every = max(1, math.ceil(len(line.epochs) / _MOST))
    stretch: list[str] = []
    last = len(line.epochs) - 1
    for place, (epoch, value) in enumerate(zip(line.epochs, line.values)):
        finite = math.isfinite(value)
        if finite and (place % every == 0 or place == last or not stretch):
            stretch.append(f"{across(epoch)},{up(value)}")
        if stretch and (not finite or place == last):
            if len(stretch) == 1:
                x, y = stretch[0].split(",")
                yield f'<circle class="dot c{line.method % N_COLOURS}" cx="{x}" cy="{y}" r="2.5"/>'
            else:
                yield f'<polyline {stroke(line.method)} points="{" ".join(stretch)}"/>'
            stretch = []


def described(chart: Chart) -> str:
    """The chart in words: where each curve begins and ends."""
    words = []
    for line in chart.lines:
        known = [(e, v) for e, v in zip(line.epochs, line.values) if math.isfinite(v)]
        if known:
            (first, start), (last, end) = known[0], known[-1]
            words.append(f"{line.name}: {start:.4g} in epoch {first}, {end:.4g} in epoch {last}")
    return "; ".join(words) + "."
