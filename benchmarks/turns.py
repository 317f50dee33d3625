"""Processes that take turns: each has built one thing and does with it what it is asked to.

Whoever shares a process with another shares its heap, and what one has freed is there for the other. So what
is to be compared stands in processes of its own, and one waits while another runs.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch


class Worker:
    """A process that holds ``build(*arguments)``, which is done when ``__init__`` returns.

    ``build`` and what it is asked are functions of a module; arguments and answers are pickled.
    """

    def __init__(self, build: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, build, arguments), daemon=True)
        self._process.start()
        other.close()
        self._answer()

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(built, *arguments)``, in the process."""
        with suppress(BrokenPipeError):  # said below
            self._pipe.send((function, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            raise SystemExit(
                f"a worker ended with code {code}" + " (memory ran out?)" * (code == -9)
            ) from None

    def end(self) -> None:
        self._pipe.send(None)
        self._process.join()


def _serve(pipe, build: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    built = build(*arguments)
    pipe.send(True)
    while (asked := pipe.recv()) is not None:
        function, arguments = asked
        pipe.send(function(built, *arguments))
