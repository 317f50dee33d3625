"""What ``metrics.jsonl`` of a run holds, as curves, and on which page each belongs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_adv.errors import DataError
from recbole_adv.options import technique_names

FILE = "metrics.jsonl"
_LEFT_OUT = re.compile(r"epoch|\w+_seconds|valid_score|\w+/(steps|turns|monitor_loss\d*)")
_LOSS = re.compile(r"(loss|objective)\d*")
_NORM = re.compile(r"(?:monitor_)?(gradient_norm|update_norm|update_ratio)(?:/(.+))?")
_SHARPNESS = re.compile(r"monitor_(sharpness(?:_residual)?|rise_.+)")


@dataclass
class Run:
    """The epochs of a run, in order, and its curves: epochs and values by the name of the figure.

    A value that was no number is nan, a gap.
    """

    name: str
    epochs: list[int] = field(default_factory=list)
    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)

    def epochs_with(self, ending: str) -> list[int]:
        """Those in which a figure whose name ends so was above 0."""
        found = [curve for name, curve in self.curves.items() if name.endswith(ending)]
        return sorted({e for epochs, values in found for e, v in zip(epochs, values) if v > 0})


def read_run(path: Path) -> Run:
    """The run of a directory, or of a file like its ``metrics.jsonl``.

    Of an epoch that is there twice, since a run went on from an earlier one, the later counts.
    Raises :class:`DataError` in one sentence.
    """
    file = path / FILE if path.is_dir() else path
    lines = {line["epoch"]: line for line in _lines(path, file)}
    if not lines:
        raise DataError(f"{file} is empty; a run writes it from the end of its first epoch on")
    run = Run(file.resolve().parent.name, sorted(lines))
    for epoch in run.epochs:
        for name, value in _numbers(lines[epoch]):
            epochs, values = run.curves.setdefault(name, ([], []))
            epochs.append(epoch)
            values.append(value)
    return run


def _lines(path: Path, file: Path) -> Iterator[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(_missing(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}; name a run's directory") from error
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{file}, line {number}: no JSON ({error.msg}); mend it or take it out"
            ) from error
        if not isinstance(found, dict) or type(found.get("epoch")) is not int:
            raise DataError(
                f"{file}, line {number}: no figures of an epoch, got {line[:60]!r}; name a run's "
                f"directory or its {FILE}"
            )
        yield found


def _missing(path: Path) -> str:
    if not path.is_dir():
        return f"there is no run {path}; name a run's directory, such as runs/BPR-ml-100k-..."
    inside = sorted(file.parent for file in path.glob(f"*/{FILE}"))
    hint = (
        f"name one of the runs in it, such as {inside[0]}" if inside else "name a run's directory"
    )
    return f"{path} holds no {FILE}, which a run writes from its first epoch on; {hint}"


def _numbers(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line by name; ``valid/recall@10`` of a dict, ``mass[0]`` of a list."""
    for key, value in line.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _numbers(value, f"{name}/")
        elif isinstance(value, list):
            yield from _numbers({f"{name}[{i}]": item for i, item in enumerate(value)})
        elif value is None:
            yield name, math.nan
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)


@dataclass(frozen=True)
class Place:
    """Where a curve is drawn: a file, a panel in it, and the curve's label there."""

    page: str
    panel: str
    label: str


def place_of(name: str) -> Place | None:
    """Where the figure of this name is drawn; None: nowhere."""
    if _LEFT_OUT.fullmatch(name):
        return None
    player, slash, rest = name.partition("/")
    if player == "valid":
        return Place("validation", rest, rest)
    if not slash:
        return Place("model", re.sub(r"\[\d+\]", "", name), name)
    if _LOSS.fullmatch(rest):
        return Place("losses", player, rest)
    if rest == "gain":
        return Place("losses", f"{player} gain", rest)
    if rest == "monitor_nonfinite":
        return Place("norms", f"{player} nonfinite", rest)
    if norm := _NORM.fullmatch(rest):
        return Place("norms", f"{player} {norm[1]}", norm[2] or "all")
    if sharpness := _SHARPNESS.fullmatch(rest):
        return Place("sharpness", f"{player} {sharpness[1].split('_')[0]}", sharpness[1])
    return _of_technique(player, rest)


def _of_technique(player: str, rest: str) -> Place:
    names = [name for name in technique_names() if rest.startswith(f"{name}_")]
    if not names:
        return Place("techniques", f"{player} {rest}", rest)
    technique = max(names, key=len)
    figure = rest.removeprefix(f"{technique}_")
    if technique == "divergence_guard" and figure != "rate_factor":
        return Place("techniques", f"{player} {technique}: events", figure)
    return Place("techniques", f"{player} {technique}: {figure.partition('/')[0]}", figure)


Pages = dict[str, dict[str, dict[str, str]]]


def pages_of(runs: Sequence[Run]) -> Pages:
    """By page and panel, the names of the curves of all runs by their labels."""
    pages: Pages = {}
    for name in dict.fromkeys(name for run in runs for name in run.curves):
        place = place_of(name)
        if place is not None:
            pages.setdefault(place.page, {}).setdefault(place.panel, {})[place.label] = name
    return pages
