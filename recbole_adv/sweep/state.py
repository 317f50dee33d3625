"""A sweep while it runs: its plan, options and ledger, and what it says of trials that end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from recbole_adv.sweep.ledger import Ledger, Record
from recbole_adv.sweep.options import Options
from recbole_adv.sweep.plan import Job, Plan


class Sweep:
    """What both tools work on."""

    def __init__(self, plan: Plan, options: Options, ledger: Ledger) -> None:
        self.plan, self.options, self.ledger = plan, options, ledger
        self._stream = sys.stderr  # tools redirect it while they print what is of no use
        self._expected = self._ended = 0
        self._said: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks, for a way of resuming that is not used here."""
        return {**vars(self), "_stream": None}

    def expect(self, count: int) -> None:
        """How many trials there will be, for what is said of them."""
        self._expected, self._ended, self._said = count, 0, set()

    def known(self, job: Job) -> Record | None:
        """The record of a job that needs no run: it is done, or was pruned and would be again."""
        record = self.ledger.record(job)
        kept = ("done", "pruned") if self.options.scheduler == "asha" else ("done",)
        if record is None or record.status not in kept or (job.test and record.test is None):
            return None
        self._say(record, job, "before")
        return record

    def ended(self, job: Job, outcome: Mapping[str, Any]) -> Record:
        """Note how a job ended, and say it."""
        record = self.ledger.finish(job, outcome)
        self._say(record, job, "")
        return record

    def _say(self, record: Record, job: Job, when: str) -> None:
        if job.folder in self._said:
            return
        self._said.add(job.folder)
        self._ended += 1
        metric = self.plan.metric
        what = f"{metric} {record.score:.4f}" if record.score is not None else record.reason
        status = f"{record.status} {when}".strip()
        setting = ", ".join(f"{key}={value}" for key, value in record.setting.items())
        seed = "" if job.seed is None else f", seed={job.seed}"
        line = f"[{self._ended}/{self._expected}] {status}: {what} ({setting}{seed})"
        print(line, file=self._stream, flush=True)
