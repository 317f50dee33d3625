"""One trial, in whatever process: train with a setting, report each validation, say how it ended."""

from __future__ import annotations

import gc
import json
import math
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from recbole_adv.errors import CheckpointError, RecBoleAdvError
from recbole_adv.prepared_run import prepared_run
from recbole_adv.sweep.data_cache import DataCache
from recbole_adv.sweep.ledger import LAST, SCORES, read_schedule, write_schedule
from recbole_adv.sweep.plan import Job, Plan
from recbole_adv.trainer.report import finite

Report = Callable[[dict[str, Any], Any, int], None]
"""Takes the figures after a validation, the trainer and its epoch."""


def run_job(plan: Plan, job: Job, report: Report | None = None) -> dict[str, Any]:
    """Train; returns fields of a record: ``status``, and results or the ``reason`` of the failure.

    Goes on from the last checkpoint in the job's directory. A mistake in the setting (a
    :class:`RecBoleAdvError`) fails at once, anything else after ``plan.retries`` further attempts.
    """
    reason, folder = "", plan.folder / job.folder
    for _ in range(plan.retries + 1):
        resumed = (folder / LAST).is_file()
        try:
            return _train(plan, job, report, resumed)
        except RecBoleAdvError as error:
            if not (resumed and isinstance(error, CheckpointError)):
                return _failed(error)
            reason = str(error)
            (folder / LAST).unlink(missing_ok=True)  # anew, without what cannot be used
        except Exception as error:
            reason = _failed(error)["reason"]
            with suppress(OSError):
                (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        finally:
            _release()
    return {"status": "failed", "reason": reason}


def _failed(error: Exception) -> dict[str, str]:
    """A failure in one sentence."""
    text = " ".join(str(error).split())
    if not isinstance(error, RecBoleAdvError):
        text = f"{type(error).__name__}: {text}"
    return {"status": "failed", "reason": text[:500]}


def _release() -> None:
    """Give memory back before another trial starts in this process."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _train(plan: Plan, job: Job, report: Report | None, resumed: bool) -> dict[str, Any]:
    config, started, folder = plan.config(job), time.time(), plan.folder / job.folder
    schedule = read_schedule(folder) if resumed else []
    if not resumed:  # anew, in a directory that may hold what an attempt without a checkpoint left
        for file in (folder / SCORES, folder / "metrics.jsonl", *folder.glob("*.pth")):
            file.unlink(missing_ok=True)
    changed = bool(schedule) and schedule[-1][1] != job.setting
    cache, epochs = DataCache(plan.cache), 0
    with prepared_run(
        config, str(folder / LAST) if resumed else None, cache.load, new_rates=changed
    ) as run:
        trainer = run.trainer
        epochs = trainer.start_epoch
        if changed or not schedule:
            schedule.append((epochs, dict(job.setting)))
            write_schedule(folder, schedule)

        def validated(epoch: int, score: float) -> None:
            nonlocal epochs
            epochs = epoch + 1
            _append(folder / SCORES, {"epochs": epochs, "score": score})
            if report is not None and epochs < trainer.epochs:  # the last one comes at the end
                best = float(trainer.best_valid_score)
                figures = {"epochs": epochs, "valid_score": float(score), "best_valid_score": best}
                report(figures, trainer, epoch)

        score, valid = trainer.fit(
            run.train_data, run.valid_data, saved=True, show_progress=False, callback_fn=validated
        )
        test = run.test(load_best_model=True) if job.test else None
    if not math.isfinite(score):
        return {"status": "failed", "reason": "no score of the validation was a finite number"}
    return {
        "status": "done",
        "setting": [setting for start, setting in schedule if start <= trainer.best_epoch][-1],
        "schedule": schedule,
        "score": float(score),
        "best_epoch": trainer.best_epoch,
        "epochs": epochs,
        "seconds": round(time.time() - started, 3),
        "valid": finite(dict(valid)),
        "test": test,
    }


def _append(file: Path, entry: dict[str, Any]) -> None:
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(finite(entry)) + "\n")
