"""The two ends of a trial of Ray Tune: the function in a worker, and who notes what it reports."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from recbole_adv import checkpoint, ray_session
from recbole_adv.sweep.ledger import LAST, SCHEDULE
from recbole_adv.sweep.plan import Job, Plan, setting_id
from recbole_adv.sweep.state import Sweep
from recbole_adv.sweep.trial import run_job

CODES, NAME = "codes", "trial"
"""Where the encoded setting lies in a trial's configuration: ``config["trial"]["codes"]``."""


def description(codes: dict[str, Any], job: Job) -> dict[str, Any]:
    """A job as Ray sees it."""
    return {CODES: codes, "id": job.id, "seed": job.seed, "test": job.test}


def name_of(plan: Plan, config: dict[str, Any]) -> str:
    """A trial's name, which stays when population based training gives it another's configuration."""
    given = config.get(NAME) or {"id": setting_id(plan.space.decode(config))}
    return given["id"] if given.get("seed") is None else f"{given['id']}-{given['seed']}"


def job_of(plan: Plan, name: str, config: dict[str, Any]) -> Job:
    """The job of the trial with this name and, by now, this configuration."""
    given = config.get(NAME) or {CODES: config}  # a searcher's proposal is the codes alone
    setting = plan.space.decode(given[CODES])
    return Job(setting, given.get("seed"), given.get("test", False), name.partition("-")[0])


def train(config: dict[str, Any], plan: Plan, keep_states: bool) -> None:
    """Ray's trainable: report each validation, and at the end the outcome.

    keep_states: hand Ray the state of training with each report, for population based training.
    """
    with suppress(OSError):
        os.chdir(plan.directory)  # relative paths in the configuration are the user's
    job = job_of(plan, ray_session.trial_name() or "", config)
    folder = plan.folder / job.folder

    def report(figures: dict[str, Any], trainer: Any, epoch: int) -> None:
        if not keep_states:
            ray_session.report(figures)
            return
        with ray_session.state_of(trainer, epoch) as state:
            shutil.copy(folder / SCHEDULE, state)
            ray_session.report(figures, state)

    with ray_session.checkpoint_to_resume() as state:
        if state is not None:
            _take_over(Path(state).parent, folder)
    outcome = run_job(plan, job, report)
    score = outcome.get("score", float("nan"))
    last = {"epochs": outcome.get("epochs", 0), "valid_score": score, "best_valid_score": score}
    ray_session.report({**last, "outcome": outcome, "done": True})


def _take_over(source: Path, folder: Path) -> None:
    """Go on from another trial's state as if it were one's own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SCHEDULE, LAST):
        checkpoint.copy(str(source / name), str(folder / name))


def note_taker(sweep: Sweep) -> Any:
    """Ray's callback that keeps the ledger."""
    from ray.tune import Callback

    def job(trial: Any) -> Job:
        return job_of(sweep.plan, str(trial), trial.config)

    class NoteTaker(Callback):
        def on_trial_start(self, iteration, trials, trial, **info):
            sweep.ledger.start(job(trial))

        def on_trial_complete(self, iteration, trials, trial, **info):
            sweep.ended(job(trial), _outcome(trial.last_result))

        def on_trial_error(self, iteration, trials, trial, **info):
            sweep.ended(job(trial), {"status": "failed", "reason": _reason(trial)})

    return NoteTaker()


def _outcome(result: dict[str, Any]) -> dict[str, Any]:
    """How a trial ended that Ray did not see fail; without an outcome its scheduler ended it."""
    if "outcome" in result:
        return dict(result["outcome"])
    return {
        "status": "pruned",
        "score": result.get("best_valid_score"),
        "epochs": result.get("epochs", 0),
        "seconds": round(result.get("time_total_s", 0.0), 3),
    }


def _reason(trial: Any) -> str:
    """The last thing Ray wrote of a trial whose process is gone, in one sentence."""
    text = ""
    with suppress(OSError, TypeError):
        with open(trial.error_file, encoding="utf-8") as file:
            text = file.read()
    text = text.rpartition("Failure # ")[2].partition("\n")[2]
    return " ".join(text.split())[:300] or "its process ended"
