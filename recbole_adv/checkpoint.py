"""Checkpoints are data, never code: a file holds no classes, and nothing in it is executed.

It is RecBole's dictionary (``config``, ``epoch``, ``state_dict``, ``optimizer`` ...) as plain data
(:mod:`recbole_adv.plain_data`), so that ``torch.load(weights_only=True)`` reads it with no
allow-list and the stock ``evaluate`` and ``resume_checkpoint`` work on it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import uuid
import warnings
import zipfile
from collections.abc import Iterator
from logging import getLogger
from pathlib import Path
from typing import Any, BinaryIO

import torch

from recbole_adv import legacy_checkpoint
from recbole_adv.errors import CheckpointError
from recbole_adv.plain_data import decode, encode

__all__ = [
    "config_as_data",
    "copy",
    "decode",
    "encode",
    "load",
    "load_weights",
    "other_parameter",
    "save",
    "trainer_state",
]


def config_as_data(config: Any) -> dict[str, Any]:
    """The settings of a RecBole Config, or of its dictionary, encoded.

    A value that is no data (a function, a logger) is left out and named in a warning.
    """
    settings = config if isinstance(config, dict) else config.final_config_dict
    data = {}
    for key, value in settings.items():
        try:
            data[key] = encode(value, f"config.{key}")
        except CheckpointError as error:
            getLogger(__name__).warning("left out of the checkpoint: %s", error)
    return data


def other_parameter(model: Any) -> dict[str, Any]:
    """``model.other_parameter()`` without the model's own layers.

    Their weights are in ``state_dict``; RecBole lists one here for GRU4RecF, SASRecF, FDSA, DIN and
    DIEN all the same.
    """
    layers = {id(layer) for layer in model.modules()}
    return {k: v for k, v in (model.other_parameter() or {}).items() if id(v) not in layers}


def trainer_state(trainer: Any, epoch: int) -> dict[str, Any]:
    """RecBole's keys of a checkpoint, for a stock trainer."""
    return {
        "config": config_as_data(trainer.config),
        "epoch": epoch,
        "cur_step": trainer.cur_step,
        "best_valid_score": trainer.best_valid_score,
        "state_dict": trainer.model.state_dict(),
        "other_parameter": other_parameter(trainer.model),
        "optimizer": trainer.optimizer.state_dict(),
    }


def save(state: dict[str, Any], path: str | os.PathLike) -> None:
    """Encode ``state`` and write it to ``path``, whole or not at all.

    It is written beside ``path`` and renamed: a crash never costs the checkpoint that was there.
    """
    try:
        tree = encode(state)
    except RecursionError:
        raise CheckpointError("the checkpoint holds something that contains itself") from None
    target = os.path.realpath(path)
    aside = os.path.join(os.path.dirname(target), f".{uuid.uuid4().hex}.tmp")
    try:
        with open(aside, "xb") as file:
            torch.save(tree, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = getattr(cause, "strerror", None) or str(cause).partition("\n")[0]
        raise CheckpointError(
            f"the checkpoint {os.fspath(path)} cannot be written: {reason}; make room for it or "
            "choose another checkpoint_dir"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(aside)


def load(path: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of ours or of RecBole's own and decode it; nothing in it is executed.

    A file that stock RecBole wrote holds classes; it is read with inert stand-ins for them
    (:mod:`recbole_adv.legacy_checkpoint`). Raises CheckpointError, in one sentence.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            _check_container(file)
            tree = _read(file, map_location)
        return _checked(decode(tree))
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}; check the path") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a directory; name the .pth file in it") from None
    except (CheckpointError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error


def _check_container(file: BinaryIO) -> None:
    """Tell an empty or broken file and a stranger's zip from what torch may have written.

    torch itself does not look at the checksums: flipped bits would be weights.
    """
    head = file.read(4)
    if not head:
        raise CheckpointError("it is empty; the run that wrote it was cut short")
    if head == b"PK\x03\x04":
        try:
            archive = zipfile.ZipFile(file)
            broken = archive.testzip() if _writes_checksums() else None
        except (zipfile.BadZipFile, EOFError, NotImplementedError):
            broken = "its end"
        if broken:
            raise CheckpointError(f"it is cut short or damaged (at {broken}); use another copy")
        if not any(name.endswith("/data.pkl") for name in archive.namelist()):
            raise CheckpointError("it is no checkpoint but another program's zip file")
    file.seek(0)


def _writes_checksums() -> bool:
    """Whether this program's ``torch.save`` does; torch >= 2.6 can be told not to."""
    return getattr(torch.serialization, "get_crc32_options", lambda: True)()


def _read(file: BinaryIO, map_location: Any) -> Any:
    """What torch reads as data; where that fails, what the restricted reader makes of the file."""
    try:
        with _no_allow_list(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Detected pickle protocol 4"
            return torch.load(file, map_location=map_location, weights_only=True, mmap=False)
    except pickle.UnpicklingError:
        file.seek(0)
        return legacy_checkpoint.read(file, map_location)
    except Exception as error:  # a damaged file raises anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"it is no checkpoint, or a damaged one ({reason:.160})") from error


@contextlib.contextmanager
def _no_allow_list() -> Iterator[None]:
    """Disregard what the program allow-listed: RecBole's Config on that list evaluates strings."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def _checked(tree: Any) -> dict[str, Any]:
    if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
        return tree
    held = f"a {type(tree).__name__}"
    if isinstance(tree, dict):
        held = "the keys " + (", ".join(map(str, list(tree)[:4])) or "none")
    raise CheckpointError(
        f"it is a torch file but no RecBole checkpoint: no 'state_dict', but {held}"
    )


def load_weights(model, state: dict[str, Any], file: str) -> None:
    """Put ``state`` into ``model``; one sentence where they do not fit."""
    try:
        model.load_state_dict(state["state_dict"])
    except (RuntimeError, AttributeError, TypeError) as error:
        detail = " ".join(str(error).split()).removeprefix("Error(s) in loading state_dict for ")
        raise CheckpointError(
            f"{file} does not fit this model, or this data set: {detail:.200}"
        ) from error
    model.load_other_parameter(state.get("other_parameter"))


def copy(source: str, target: str) -> None:
    """A second name for a file that is never changed in place, or a copy where that is not possible."""
    aside = f"{target}.tmp"
    Path(aside).unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
    os.replace(aside, target)
