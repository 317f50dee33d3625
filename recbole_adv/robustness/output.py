"""A folder of results, written aside and renamed, never over another."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recbole_adv.errors import ConfigError, DataError
from recbole_adv.trainer.report import finite


def output_of(given: str | Path | None, beside: Path | None, suffix: str) -> Path:
    """Where results go: what was given, or ``<run>-<suffix>`` beside the run.

    Raises :class:`ConfigError` where something is there, or cannot be written, before any work.
    """
    if given is not None:
        folder = Path(given)
    elif beside is not None:
        folder = Path(f"{os.path.abspath(beside)}-{suffix}")
    else:
        raise ConfigError(f"several runs have no one folder for {suffix}; write --output DIR")
    if folder.exists():
        raise ConfigError(
            f"{str(folder)!r} is there already and is not written over; write another --output, or "
            "take it away"
        )
    above = next(p for p in folder.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(
            f"--output {str(folder)!r} cannot be written below {str(above)!r}; write another one"
        )
    return folder


@contextmanager
def written(folder: Path, keep: str | None = None) -> Iterator[Path]:
    """A folder to write to, renamed to ``folder`` at the end; gone if anything fails.

    keep: a pattern of files that are worth keeping after a failure, then under the name aside.
    """
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}.tmp")
    new = [path for path in aside.parents if not path.exists()]
    try:
        aside.mkdir(parents=True)
        yield aside
        os.replace(aside, folder)
    except BaseException as error:
        if keep is None or not any(aside.glob(keep)):
            _remove(aside, new)
        if isinstance(error, OSError):
            raise DataError(
                f"{folder} cannot be written ({error.strerror or error}); write another --output"
            ) from error
        raise


def _remove(aside: Path, new: Sequence[Path]) -> None:
    """What was written, and the folders that were made for it."""
    shutil.rmtree(aside, ignore_errors=True)
    for path in new:
        with suppress(OSError):
            path.rmdir()


def write_json(file: Path, data: Any) -> None:
    """Numbers that are none become null."""
    file.write_text(json.dumps(finite(data), indent=2) + "\n", encoding="utf-8")


def markdown(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; floats with four digits."""
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(map(shown, row)) + " |" for row in rows]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A cell: four digits of a float, nothing for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def plus_minus(mean: float, error: float) -> str:
    """Mean ± standard error; the mean alone of a single value."""
    return f"{mean:.4f}" if math.isnan(error) else f"{mean:.4f} ± {error:.4f}"


def percent(value: float) -> str:
    """A drop of .22 is -22.0 %."""
    return "" if math.isnan(value) else f"{-100 * value:+.1f} %"
