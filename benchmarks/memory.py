"""Memory of this process: its peak (Linux), and how it is kept in the middle of a training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_adv.host_memory import kept
from recbole_adv.trainer import AdvTrainer


def forget_peak() -> None:
    """From now on :func:`peak_mb` counts anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """The largest resident set in MB since :func:`forget_peak`."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


@contextmanager
def as_in_fit(trainer, step: Callable[[], object]) -> Iterator[None]:
    """Inside it is as between two steps of ``trainer.fit()``; ``step`` is one of them.

    Our trainer has what earlier steps freed, RecBole's what the C library lets it have.
    """
    with kept(isinstance(trainer, AdvTrainer) and bool(trainer.config["keep_memory"])):
        if isinstance(trainer, AdvTrainer):
            step()
        yield
