"""Memory of this process: its peak (Linux), and how it is kept in the middle of a training."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

from recbole_adv.host_memory import kept
from recbole_adv.trainer import AdvTrainer


def forget_peak() -> None:
    """From now on :func:`peak_mb` counts anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """The largest resident set in MB since :func:`forget_peak`."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def keep_as_in_fit(trainer) -> None:
    """From now on, what a step frees is kept as in ``trainer.fit()``; RecBole's has nothing like it."""
    wanted = isinstance(trainer, AdvTrainer) and bool(trainer.config["keep_memory"])
    _FOR_LIFE.enter_context(kept(wanted))


_FOR_LIFE = ExitStack()
