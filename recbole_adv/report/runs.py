"""What the directory of a run tells, read once; also of the runs of seeds and of a sweep."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas
import yaml

from recbole_adv.errors import DataError
from recbole_adv.evaluation import user_metrics
from recbole_adv.plot.metrics import FILE, Run, read_run
from recbole_adv.seeds import SEEDS_FILE
from recbole_adv.sweep.ledger import RECORD

PAGES = (".html", ".htm", ".md")
"""The endings of a report's files."""
_SWEEP, _BEST_TRIALS = "sweep.json", 12


@dataclass
class RunFacts:
    """A run.

    name: its path, as short as it can be; settings: of ``config.yaml``; curves: None before the end
    of the first epoch; result: None of a run that has not ended; split: of ``split.json``; reason:
    why it failed, where that is known.
    """

    folder: Path
    name: str
    settings: dict[str, Any]
    curves: Run | None
    result: dict[str, Any] | None
    split: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None

    @property
    def model(self) -> str:
        """The model's name; of one in a file, the class."""
        return str(self.settings.get("model") or "?").rpartition(":")[2]

    @property
    def dataset(self) -> str:
        return str(self.settings.get("dataset") or "?")

    @property
    def seed(self) -> Any:
        return self.settings.get("seed")

    @property
    def valid_metric(self) -> str:
        """What the model was selected by, in lower case."""
        given = (self.result or {}).get("valid_metric") or self.settings.get("valid_metric")
        return str(given or "MRR@10").lower()  # RecBole's default

    @property
    def test(self) -> dict[str, float]:
        """The test metrics by name, empty where there are none."""
        found = (self.result or {}).get("test_result") or {}
        return {k: v for k, v in found.items() if isinstance(v, (int, float))}

    @property
    def test_identity(self) -> str:
        """The same for runs that were tested on the same pairs of user and item."""
        split = self.split
        own = split.get("fingerprints", {}).get(split.get("test", "test"))
        if own is not None:
            return str(own)
        known = {key: split.get(key) for key in ("parts", "settings")}  # a run of an older version
        return json.dumps([known, self.settings.get("eval_args"), self.seed], sort_keys=True)

    @cached_property
    def of_users(self) -> dict[str, pandas.DataFrame]:
        """The metrics of each user by test, where the run kept them."""
        return user_metrics.load(self.folder)


def read_runs(paths: Iterable[Path]) -> tuple[list[RunFacts], list[str]]:
    """The runs of some directories, and what is to be said of those that are left out.

    A directory of several seeds stands for its runs, that of a sweep for its repetitions or, where
    it has none, its best trials. Raises :class:`DataError` in one sentence.
    """
    runs: dict[Path, RunFacts] = {}
    notes: list[str] = []
    named = list(paths)
    # An earlier report lies among what runs/* names.
    given = [path for path in named if path.suffix not in PAGES or path.is_dir()] or named
    for path in given:
        for folder in _folders(path, notes):
            runs.setdefault(folder.resolve(), _read(folder))
    return list(runs.values()), notes


def _folders(path: Path, notes: list[str]) -> list[Path]:
    if path.is_file() and path.name == FILE:
        path = path.parent
    if (path / SEEDS_FILE).is_file():
        return _of_seeds(path, notes)
    if (path / _SWEEP).is_file():
        return _of_sweep(path, notes)
    if _is_run(path):
        return [path]
    if not path.is_dir():
        raise DataError(f"there is no run {path}; name a run's directory, such as runs/BPR-...")
    inside = sorted(folder for folder in path.glob("*/") if _is_run(folder))
    hint = f"name the runs in it, such as {inside[0]}" if inside else "name a run's directory"
    raise DataError(
        f"{path} is no directory of a run, which has a config.yaml and a {FILE} or a result.json; "
        f"{hint}"
    )


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and any(
        (path / name).is_file() for name in (FILE, "result.json", "last.pth", "run.log")
    )


def _of_seeds(path: Path, notes: list[str]) -> list[Path]:
    listed = _json(path / SEEDS_FILE)
    numbers = listed.get("seeds") if isinstance(listed, dict) else None
    if not isinstance(numbers, list):
        raise DataError(f"{path / SEEDS_FILE} is no list of seeds; run them again")
    folders = [path / f"seed-{number}" for number in numbers]
    missing = [folder.name for folder in folders if not _is_run(folder)]
    if missing:
        notes.append(f"{path}: {', '.join(missing)} has not begun and is left out.")
    found = [folder for folder in folders if _is_run(folder)]
    if not found:
        raise DataError(f"none of the seeds of {path} has begun; run them first")
    return found


def _of_sweep(path: Path, notes: list[str]) -> list[Path]:
    bigger = _bigger(str(_json(path / _SWEEP).get("metric")))
    repeated = sorted(folder for folder in path.glob("seeds/*/") if _is_run(folder))
    if repeated:
        notes.append(
            f"Of the sweep {path} these are the settings that were repeated on seeds, the best by the "
            "validation first."
        )
        return _best_first(repeated, bigger)
    trials = sorted(folder for folder in path.glob("trials/*/") if _is_run(folder))
    scored = [(_json(folder / RECORD), folder) for folder in trials if (folder / RECORD).is_file()]
    done = [(r["score"], f) for r, f in scored if isinstance(r, dict) and r.get("status") == "done"]
    if not done:
        raise DataError(f"the sweep {path} has no trial that ended; let it go on first")
    done.sort(key=lambda pair: pair[0], reverse=bigger)
    notes.append(
        f"Of the sweep {path} these are the best {len(done[:_BEST_TRIALS])} of {len(done)} trials by "
        "the validation; a sweep tests only what --seeds repeats, so there is no test metric."
    )
    return [folder for _, folder in done[:_BEST_TRIALS]]


def _best_first(folders: list[Path], bigger: bool) -> list[Path]:
    """The repetitions ``<setting>-<seed>`` by the mean score of their setting."""
    scores: dict[str, list[float]] = {}
    for folder in folders:
        record = _json(folder / RECORD) if (folder / RECORD).is_file() else {}
        own = scores.setdefault(folder.name.rpartition("-")[0], [])
        own += [record["score"]] if record.get("status") == "done" else []
    last = -math.inf if bigger else math.inf
    mean = {name: fmean(own) if own else last for name, own in scores.items()}
    # Sorting is stable: the seeds of a setting keep their order.
    return sorted(folders, key=lambda f: mean[f.name.rpartition("-")[0]], reverse=bigger)


def _bigger(metric: str) -> bool:
    from recbole_adv.evaluation.keys import bigger_is_better

    return bigger_is_better(metric)


def _read(folder: Path) -> RunFacts:
    settings = _settings(folder / "config.yaml")
    curves = read_run(folder) if (folder / FILE).is_file() else None
    split = _json(folder / "split.json") if (folder / "split.json").is_file() else {}
    result, reason = None, None
    if (folder / "result.json").is_file():
        result = _json(folder / "result.json")
    elif (folder / RECORD).is_file():  # of a sweep
        record = _json(folder / RECORD)
        reason = record.get("reason")
        if record.get("status") == "done":
            result = {"best_valid_score": record["score"], "best_valid_result": record["valid"]}
            result["test_result"] = record.get("test")
    named = [(result or {}).get(key) or {} for key in ("best_valid_result", "test_result")]
    if not all(isinstance(figures, dict) for figures in named):
        raise DataError(f"{folder / 'result.json'} holds no results by name; run it again")
    return RunFacts(folder, str(folder), settings, curves, result, split, reason)


def _settings(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        where = " ".join(str(error).split())[:150]
        raise DataError(f"{file} cannot be read: {where}; mend it, or leave the run out") from error
    if not isinstance(found, dict):
        raise DataError(
            f"{file} holds no settings, got {found!r:.60}; mend it, or leave the run out"
        )
    return found


def _json(file: Path) -> Any:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}; mend it, or leave the run out") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} must hold figures by name, got {str(found)[:60]!r}; run it again")
    return found
