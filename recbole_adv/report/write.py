"""A report from the directories of runs to its two files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from recbole_adv.errors import ConfigError, DataError
from recbole_adv.report import markdown, page
from recbole_adv.report.content import document
from recbole_adv.report.runs import PAGES, read_runs


def write_report(
    paths: Sequence[Path], output: Path | None = None, metrics: Sequence[str] = ()
) -> list[Path]:
    """Write the page and the markdown; returns the two files.

    paths: directories of runs, of several seeds, or of sweeps; the first run's method is the
    baseline. output: the page, ``report.html`` beside the runs if None; the markdown has the same
    name with ``.md``. metrics: to compare by. Raises a RecBoleAdvError in one sentence.
    """
    if output is not None and (output.suffix not in PAGES or output.is_dir()):
        raise ConfigError(
            f"--output must be a file such as report.html, got {str(output)!r}; the markdown stands "
            "beside it"
        )
    runs, notes = read_runs(paths)
    report = document(runs, notes, metrics)
    target = output or _beside(paths) / "report.html"
    files = {
        target.with_suffix(".htm" if target.suffix == ".htm" else ".html"): page.render(report),
        target.with_suffix(".md"): markdown.render(report),
    }
    for file, text in files.items():
        _write(file, text)
    return list(files)


def _beside(paths: Sequence[Path]) -> Path:
    """What the named directories have in common; that of a single one is itself."""
    folders = [str((path if path.is_dir() else path.parent).resolve()) for path in paths]
    return Path(os.path.commonpath(folders))


def _write(file: Path, text: str) -> None:
    aside = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, file)
    except OSError as error:
        raise DataError(
            f"{file} cannot be written ({error.strerror}); write another --output"
        ) from error
