"""A process that runs trials one after another, so that a crash ends one of them and no sweep."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection, wait
from typing import Any

from recbole_adv.sweep.plan import Job, Plan
from recbole_adv.sweep.trial import run_job


class Worker:
    """Runs jobs of a plan in a process of its own, which lives until it dies or is closed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._process: Any = None
        self._connection: Connection | None = None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def run(self, job: Job) -> dict[str, Any]:
        """How the job ended; a process that dies is a failure, tried again like any other."""
        outcome: dict[str, Any] = {}
        for _ in range(self.plan.retries + 1):
            if self._process is None:
                self._start()
            assert self._connection is not None
            try:
                self._connection.send(job)
                return self._connection.recv()
            except (EOFError, OSError):
                self._process.join()
                outcome = {"status": "failed", "reason": _epitaph(self._process.exitcode)}
                self._process = None
        return outcome

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.plan))
        self._process.start()
        theirs.close()


def _epitaph(code: int | None) -> str:
    text = f"its process ended with exit code {code}"
    if code is not None and code < 0:
        text = f"its process was ended by {signal.Signals(-code).name}"
        text += " (is there enough memory?)" if -code == signal.SIGKILL else ""
    return text


def _serve(connection: Connection, plan: Plan) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    sys.stderr = open(os.devnull, "w")  # every trial has its own run.log
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(run_job(plan, job))


def _die_with_parent() -> None:
    """A trial of a sweep that was killed must not go on beside the same trial of the next one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
