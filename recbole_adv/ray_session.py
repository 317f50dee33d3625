"""The trial of Ray Tune that this process is running, if any; Ray is not imported to find out."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LAST = "last.pth"
"""The checkpoint's file in the folder that Ray keeps."""


def trial_name() -> str | None:
    """The name of the trial of Ray Tune that this process runs, if it runs one."""
    if "ray.tune" not in sys.modules:
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is meant to only be")
        return _api().get_context().get_trial_name()


def report(metrics: Mapping[str, Any], state: str | None = None) -> None:
    """Hand the metrics to Ray, and with them a checkpoint: the folder of :data:`LAST`.

    Does not return if Ray ends the trial here.
    """
    api = _api()
    kept = api.Checkpoint.from_directory(state) if state is not None else None
    api.report(dict(metrics), checkpoint=kept)


@contextmanager
def checkpoint_to_resume() -> Iterator[str | None]:
    """The checkpoint from which Ray wants this trial to go on, inside; None to start anew."""
    kept = _api().get_checkpoint()
    if kept is None:
        yield None
    else:
        with kept.as_directory() as folder:
            yield str(Path(folder) / LAST)


@contextmanager
def state_of(trainer: Any, epoch: int) -> Iterator[str]:
    """A folder, inside, with the trainer's state at the end of this epoch."""
    from recbole_adv import checkpoint

    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(trainer._state(epoch), Path(folder) / LAST)
        yield folder


def driver_path(path: str) -> str:
    """A relative path as the script meant it: Ray gives each trial a working directory of its own."""
    return str(Path(os.environ.get("TUNE_ORIG_WORKING_DIR", ".")) / path)


def _api() -> Any:
    """Where Ray keeps the functions for use in a trial: ``ray.tune``, before Ray 2.43 ``ray.train``."""
    from ray import tune

    if hasattr(tune, "get_checkpoint"):
        return tune
    from ray import train

    return train
