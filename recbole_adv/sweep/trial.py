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
from recbole_adv.sweep.ledger import SCORES
from recbole_adv.sweep.plan import Job, Plan
from recbole_adv.trainer.report import finite

Report = Callable[[dict[str, Any], Any, int], None]
"""Takes the figures after a validation, the trainer and its epoch."""


def run_job(
    plan: Plan, job: Job, report: Report | None = None, resume: str | None = None
) -> dict[str, Any]:
    """Train; returns fields of a record: ``status``, and results or the ``reason`` of the failure.

    Goes on from ``resume``, else from the job's own last checkpoint. A mistake in the setting (a
    :class:`RecBoleAdvError`) fails at once, anything else after ``plan.retries`` further attempts.
    """
    reason, last = "", plan.folder / job.folder / "last.pth"
    for _ in range(plan.retries + 1):
        start = resume or (str(last) if last.is_file() else None)
        try:
            return _train(plan, job, report, start, new_rates=resume is not None)
        except CheckpointError as error:
            if start != str(last):
                return _failed(error)
            reason = str(error)  # anew, without the checkpoint that cannot be used
            last.unlink(missing_ok=True)
        except RecBoleAdvError as error:
            return _failed(error)
        except Exception as error:
            reason = _failed(error)["reason"]
            with suppress(OSError):
                (plan.folder / job.folder / "error.txt").write_text(traceback.format_exc())
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


def _train(
    plan: Plan, job: Job, report: Report | None, resume: str | None, new_rates: bool
) -> dict[str, Any]:
    config, started, folder = plan.config(job), time.time(), plan.folder / job.folder
    if resume is None:
        (folder / SCORES).unlink(missing_ok=True)
    cache, seen = DataCache(plan.cache), {"epochs": 0}
    with prepared_run(config, resume, cache.load, new_rates) as run:
        trainer = run.trainer
        seen["epochs"] = trainer.start_epoch

        def validated(epoch: int, score: float) -> None:
            seen["epochs"] = epoch + 1
            figures = {"epochs": epoch + 1, "valid_score": float(score)}
            _append(folder / SCORES, {"epochs": epoch + 1, "score": score})
            if report is not None and epoch + 1 < trainer.epochs:  # the last one comes at the end
                best = float(trainer.best_valid_score)
                report({**figures, "best_valid_score": best}, trainer, epoch)

        score, valid = trainer.fit(
            run.train_data, run.valid_data, saved=True, show_progress=False, callback_fn=validated
        )
        test = trainer.evaluate(run.test_data, load_best_model=True) if job.test else None
    if not math.isfinite(score):
        return {"status": "failed", "reason": "no score of the validation was a finite number"}
    return {
        "status": "done",
        "score": float(score),
        "best_epoch": trainer.best_epoch,
        "epochs": seen["epochs"],
        "seconds": round(time.time() - started, 3),
        "valid": finite(dict(valid)),
        "test": test,
    }


def _append(file: Path, entry: dict[str, Any]) -> None:
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(finite(entry)) + "\n")
