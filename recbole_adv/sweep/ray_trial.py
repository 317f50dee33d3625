"""The two ends of a trial of Ray Tune: the function in a worker, and who notes what it reports."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from recbole_adv import ray_session
from recbole_adv.sweep.plan import Job, Plan
from recbole_adv.sweep.state import Sweep
from recbole_adv.sweep.trial import run_job

CODES, NAME = "codes", "trial"
"""Where the encoded setting lies in a trial's configuration: ``config["trial"]["codes"]``."""


def description(codes: dict[str, Any], job: Job) -> dict[str, Any]:
    """A job as Ray sees it."""
    return {CODES: codes, "id": job.id, "seed": job.seed, "test": job.test}


def job_of(plan: Plan, config: dict[str, Any]) -> Job:
    """The job of a trial's configuration."""
    given = config.get(NAME) or {CODES: config}  # a searcher's proposal is the codes alone
    setting = plan.space.decode(given[CODES])
    return Job(setting, given.get("seed"), given.get("test", False), given.get("id") or "")


def train(config: dict[str, Any], plan: Plan, keep_states: bool) -> None:
    """Ray's trainable: report each validation, and at the end the outcome.

    keep_states: hand Ray the state of training with each report, for population based training.
    """
    with suppress(OSError):
        os.chdir(plan.directory)  # relative paths in the configuration are the user's
    job = job_of(plan, config)

    def report(figures: dict[str, Any], trainer: Any, epoch: int) -> None:
        if not keep_states:
            ray_session.report(figures)
            return
        with ray_session.state_of(trainer, epoch) as folder:
            ray_session.report(figures, folder)

    with ray_session.checkpoint_to_resume() as resume:
        outcome = run_job(plan, job, report, resume)
    score = outcome.get("score", float("nan"))
    last = {"epochs": outcome.get("epochs", 0), "valid_score": score, "best_valid_score": score}
    ray_session.report({**last, "outcome": outcome, "done": True})


def note_taker(sweep: Sweep) -> Any:
    """Ray's callback that keeps the ledger."""
    from ray.tune import Callback

    class NoteTaker(Callback):
        def on_trial_start(self, iteration, trials, trial, **info):
            sweep.ledger.start(job_of(sweep.plan, trial.config))

        def on_trial_result(self, iteration, trials, trial, result, **info):
            if sweep.options.scheduler == "pbt":
                _note_setting(sweep, trial, result)

        def on_trial_complete(self, iteration, trials, trial, **info):
            sweep.ended(job_of(sweep.plan, trial.config), _outcome(sweep, trial.last_result))

        def on_trial_error(self, iteration, trials, trial, **info):
            outcome = {"status": "failed", "reason": _reason(trial)}
            sweep.ended(job_of(sweep.plan, trial.config), outcome)

    return NoteTaker()


def _outcome(sweep: Sweep, result: dict[str, Any]) -> dict[str, Any]:
    """How a trial ended that Ray did not see fail; without an outcome its scheduler ended it."""
    if "outcome" in result:
        return dict(result["outcome"])
    return {
        "status": "pruned",
        "score": result.get("best_valid_score"),
        "epochs": result.get("epochs", 0),
        "seconds": round(result.get("time_total_s", 0.0), 3),
    }


def _note_setting(sweep: Sweep, trial: Any, result: dict[str, Any]) -> None:
    """Population based training gives a trial another setting: from which epoch on, and which."""
    job = job_of(sweep.plan, trial.config)
    record = sweep.ledger.record(job)
    setting = dict(job.setting)
    if record is None or (record.schedule and record.schedule[-1][1] == setting):
        return
    record.schedule.append((max(result.get("epochs", 1) - 1, 0), setting))
    record.setting = setting
    sweep.ledger.write(record, job.folder)


def _reason(trial: Any) -> str:
    """The last thing Ray wrote of a trial whose process is gone, in one sentence."""
    text = ""
    with suppress(OSError, TypeError):
        with open(trial.error_file, encoding="utf-8") as file:
            text = file.read()
    text = text.rpartition("Failure # ")[2].partition("\n")[2]
    return " ".join(text.split())[:300] or "its process ended"
