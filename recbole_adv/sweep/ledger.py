"""What a sweep has on disk: a record of each trial, whole or not at all, as soon as there is one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from recbole_adv.errors import ConfigError
from recbole_adv.sweep.plan import Job, Plan
from recbole_adv.trainer.report import finite

RECORD, SCORES, SCHEDULE, LAST = "trial.json", "scores.jsonl", "schedule.json", "last.pth"
_NO_RESULT = {"show_progress", "state", "use_gpu", "gpu_id", "worker", "checkpoint_interval"}
"""Keys that change no result, and so may change when a sweep is started again."""


@dataclass
class Record:
    """A trial: a setting and what became of it.

    id: that of the setting it began with; setting: the one it has in its best epoch; status:
    ``running`` (or ended with the sweep), ``done``, ``pruned``, ``failed``; score and valid: those of
    the best epoch; epochs: how many were trained; reason: why it failed; schedule: the settings it
    had, of which population based training makes several, each with its first epoch.
    """

    id: str
    setting: dict[str, Any]
    seed: int | None = None
    status: str = "running"
    score: float | None = None
    best_epoch: int | None = None
    epochs: int = 0
    seconds: float = 0.0
    valid: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] | None = None
    reason: str | None = None
    started: str = ""
    schedule: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)


class Ledger:
    """The records in a sweep's directory.

    Raises:
        ConfigError: if the directory holds another sweep, or one that is running.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The directory, inside, is this sweep's alone."""
        folder = self.plan.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(folder / ".lock", "w")
        except OSError as error:
            raise ConfigError(
                f"sweep_dir {str(folder)!r} cannot be written ({error.strerror}); write another one"
            ) from error
        with lock:
            _take(lock, folder)
            self._check_same()
            yield

    def _check_same(self) -> None:
        """Trials of one directory differ in what is searched and in nothing else."""
        plan, file = self.plan, self.plan.folder / "sweep.json"
        fixed = {key: value for key, value in plan.fixed.items() if key not in _NO_RESULT}
        about = {"model": plan.model, "dataset": plan.dataset, "metric": plan.metric, **fixed}
        about = json.loads(json.dumps(finite(about), default=repr))
        if file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            for key in sorted({**before, **about}):
                if before.get(key) != about.get(key):
                    raise ConfigError(
                        f"{str(plan.folder)!r} holds a sweep with {key}: {before.get(key)!r}, got "
                        f"{about.get(key)!r}; write the same, or another --sweep_dir"
                    )
        _write(file, about)

    def record(self, job: Job) -> Record | None:
        """What is known of a job."""
        return _read(self.plan.folder / job.folder)

    def start(self, job: Job) -> Record:
        """Note that a job runs, again if it ran before."""
        record = self.record(job) or Record(job.id, dict(job.setting), job.seed)
        record.status, record.reason = "running", None
        record.started = record.started or datetime.now().isoformat(timespec="microseconds")
        self.write(record, job.folder)
        return record

    def write(self, record: Record, folder: str) -> None:
        """Keep a record; the curve stays in its own file."""
        content = {k: v for k, v in asdict(record).items() if k != "curve"}
        _write(self.plan.folder / folder / RECORD, content)

    def finish(self, job: Job, outcome: Mapping[str, Any]) -> Record:
        """Note how a job ended; a checkpoint that nobody needs any more goes."""
        record = self.record(job) or self.start(job)
        for key, value in outcome.items():
            setattr(record, key, value)
        folder = self.plan.folder / job.folder
        self.write(record, job.folder)
        if record.status in ("done", "pruned"):
            for file in folder.glob("*.pth"):
                if file.name == LAST or not job.test:
                    file.unlink()
        return record

    def records(self, stage: str = "trials") -> list[Record]:
        """All records of ``trials`` or ``seeds``, in the order in which they were started."""
        folders = (self.plan.folder / stage).glob("*/")
        found = [record for folder in folders if (record := _read(folder)) is not None]
        return sorted(found, key=lambda record: record.started)

    def best(self, records: list[Record], count: int) -> list[Record]:
        """The best different settings by the score of the validation, the best first; ties by id."""
        done = sorted((r for r in records if r.status == "done"), key=lambda r: r.id)
        found: list[Record] = []
        for record in sorted(done, key=lambda r: r.score, reverse=self.plan.bigger):
            if all(record.setting != other.setting for other in found):
                found.append(record)
        return found[:count]


def _take(lock, folder: Path) -> None:
    """Hold the lock until this process ends, however it ends; systems without locks go without."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another sweep runs in {str(folder)!r}; wait for it, or write another --sweep_dir"
            ) from error


def read_schedule(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """The settings of a trial so far, each with its first epoch."""
    try:
        text = (folder / SCHEDULE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [(epoch, setting) for epoch, setting in json.loads(text)]


def write_schedule(folder: Path, schedule: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    """Keep the settings of a trial."""
    _write(folder / SCHEDULE, schedule)


def read_curve(folder: Path) -> list[tuple[int, float]]:
    """Scores by the number of epochs trained; an epoch that was trained again counts once."""
    curve: dict[int, float] = {}
    with suppress(FileNotFoundError):
        for line in (folder / SCORES).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # the last line of a process that was killed
                entry = json.loads(line)
                curve[entry["epochs"]] = entry["score"]
    return sorted((n, score) for n, score in curve.items() if score is not None)


def _read(folder: Path) -> Record | None:
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Record(**content, curve=read_curve(folder))


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".tmp")
    aside.write_text(json.dumps(finite(content), indent=2) + "\n", encoding="utf-8")
    os.replace(aside, file)
