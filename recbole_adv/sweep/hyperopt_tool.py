"""The search by RecBole's ``HyperTuning``, one trial at a time."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any

from recbole.trainer import HyperTuning

from recbole_adv.sweep.ledger import Record
from recbole_adv.sweep.plan import Job
from recbole_adv.sweep.state import Sweep
from recbole_adv.sweep.worker import Worker


class HyperoptTool:
    """Searches and runs jobs; its worker lives from the first trial to the end of the block."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._worker = Worker(sweep.plan)

    def __enter__(self) -> HyperoptTool:
        return self

    def __exit__(self, *error) -> None:
        self._worker.close()

    def search(self) -> None:
        """Search; trials that the ledger knows are told to the search and not run again."""
        from hyperopt.exceptions import AllTrialsFailed

        sweep = self.sweep
        grid = sweep.plan.space.grid() if sweep.options.search == "grid" else []
        count = len(grid) or sweep.options.max_evals
        sweep.expect(count)
        tuning = _Tuning(
            lambda codes, files: _result(sweep, self._run(sweep.plan.job(codes))),
            space=sweep.plan.space.hyperopt(),
            algo=_algorithm(sweep, grid),
            max_evals=count,
        )
        tuning.early_stop_fn = _patience(sweep.options.early_stop)
        # What RecBole and hyperopt print is of encoded settings; the sweep says what ended.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            with suppress(AllTrialsFailed):
                tuning.run()

    def run(self, jobs: Sequence[Job]) -> None:
        """Run these jobs, without a search."""
        self.sweep.expect(len(jobs))
        for job in jobs:
            self._run(job)

    def _run(self, job: Job) -> Record:
        record = self.sweep.known(job)
        if record is None:
            self.sweep.ledger.start(job)
            record = self.sweep.ended(job, self._worker.run(job))
        return record


class _Failed(Exception):
    """A trial without a score."""


def _result(sweep: Sweep, record: Record) -> dict[str, Any]:
    """What ``HyperTuning`` wants of an objective; it has no use for the test data."""
    if record.status != "done":
        raise _Failed
    return {
        "model": sweep.plan.model,
        "best_valid_score": record.score,
        "valid_score_bigger": sweep.plan.bigger,
        "best_valid_result": record.valid,
        "test_result": None,
    }


class _Tuning(HyperTuning):
    """``HyperTuning`` that goes on after a trial without a score."""

    def trial(self, params):
        """RecBole's method."""
        from hyperopt import STATUS_FAIL

        try:
            return super().trial(params)
        except _Failed:
            return {"status": STATUS_FAIL}


def _algorithm(sweep: Sweep, grid: Sequence[dict[str, Any]]) -> Callable:
    """hyperopt's algorithm by the sweep's seed and the number of the trial.

    So a sweep that is started again proposes what it proposed before (``HyperTuning`` itself draws a
    seed each time), and a grid is walked through to its end (RecBole's ``exhaustive_search`` draws
    until it has drawn nothing new a thousand times).
    """
    from functools import partial

    from hyperopt import rand, tpe

    if sweep.options.search == "grid":
        return partial(_next_of, grid)
    startup = sweep.options.startup
    suggest = rand.suggest if sweep.options.search == "random" else tpe.suggest
    more = {} if suggest is rand.suggest else {"n_startup_jobs": startup}

    def algorithm(new_ids, domain, trials, seed):
        return suggest(new_ids, domain, trials, sweep.plan.seed + new_ids[0], **more)

    return algorithm


def _next_of(grid: Sequence[dict[str, Any]], new_ids, domain, trials, seed) -> list[dict]:
    """hyperopt's documents of the grid's settings with these numbers."""
    from hyperopt.base import miscs_update_idxs_vals

    documents = []
    for number in new_ids:
        misc = {"tid": number, "cmd": domain.cmd, "workdir": domain.workdir}
        values = {name: [code] for name, code in grid[number].items()}
        miscs_update_idxs_vals([misc], dict.fromkeys(values, [number]), values)
        documents += trials.new_trial_docs([number], [None], [domain.new_result()], [misc])
    return documents


def _patience(count: int | None) -> Callable | None:
    """hyperopt's early stopping: after so many trials without a better score; None never stops."""
    if count is None:
        return None

    def stop(trials, *state):
        losses = [trial["result"].get("loss") for trial in trials.trials]
        scored = [(loss, number) for number, loss in enumerate(losses) if loss is not None]
        return bool(scored) and len(losses) - 1 - min(scored)[1] >= count, state

    return stop
