"""Prepared data, kept on a machine for the length of a sweep: loaded and split once, not per trial.

A kept data set may be used again if every key that was read while it was made has the same value,
which is known exactly, since the keys are noted as they are read. A trial gets a copy of its own and
builds its loaders and samplers anew, so that it cannot tell the copy from data loaded afresh.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import pickle
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import recbole
from recbole.utils import init_seed

from recbole_adv.data.check import check_dataset
from recbole_adv.data.preparation import split_data
from recbole_adv.errors import DataError
from recbole_adv.prepared_run import in_words, load_data, load_dataset, make_loaders

_WHERE = {"model", "run_dir", "checkpoint_dir", "device"}
"""Keys that say where things are, or whose part in the data is noted otherwise."""
_OWN_CACHE = ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path")


def cache_folder(sweep: Path) -> Path:
    """Where this machine keeps the data of a sweep: a directory that only its owner may enter."""
    name = hashlib.sha256(str(sweep.resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"recbole_adv-{getpass.getuser()}" / name


def clear_cache(folder: Path) -> None:
    """Remove everything that this machine keeps there."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


class DataCache:
    """The data sets in ``folder``.

    Raises:
        DataError: if somebody else can write there; what is kept is unpickled, which can run code.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, config):
        """As :func:`recbole_adv.prepared_run.load_data`, from what is kept if it fits."""
        if any(config[key] for key in _OWN_CACHE):
            return load_data(config)
        self._make_folder()
        kept = self._find(config)
        if kept is None:
            with self._locked():  # another trial on this machine may be about to keep the same
                kept = self._find(config)
                if kept is None:
                    self._keep(config)
                    kept = self._find(config)
        assert kept is not None
        init_seed(config["seed"], config["reproducibility"])
        dataset, prepared = kept
        return dataset, *make_loaders(config, dataset, prepared)

    def _make_folder(self) -> None:
        for folder in (self.folder.parent, self.folder):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            about = folder.lstat()
            strangers = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if not stat.S_ISDIR(about.st_mode) or (
                hasattr(os, "getuid") and (about.st_uid != os.getuid() or strangers)
            ):
                raise DataError(
                    f"{folder} belongs to somebody else, or others may write there; remove it, or "
                    "set TMPDIR to a directory of your own"
                )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.folder / "lock", "w") as file:
            with suppress(ImportError):
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _find(self, config) -> tuple[Any, Any] | None:
        for path in sorted(self.folder.glob("*.data")):
            with open(path, "rb") as file:
                if _fits(pickle.load(file), config):
                    return _Reader(file, config).load()
        return None

    def _keep(self, config) -> None:
        """Load and split as :func:`recbole_adv.prepared_run.load_data` does, and keep the parts."""
        check_dataset(config)
        with _noting_reads(config) as read:
            init_seed(config["seed"], config["reproducibility"])
            dataset = load_dataset(config)
            prepared = in_words(config, lambda: split_data(config, dataset))
        identity = {key: config[key] for key in read - _WHERE}
        aside = self.folder / f"{uuid.uuid4().hex}.tmp"
        with open(aside, "wb") as file:
            pickle.dump({"read": identity, **_surroundings(config)}, file)
            _Writer(file, config).dump((dataset, prepared))
        os.replace(aside, aside.with_suffix(".data"))


def _surroundings(config) -> dict[str, Any]:
    """What else the data depend on: the kind of model, the files and the code that reads them."""
    kind = getattr(config.model_class, "backbone_class", None) or config.model_class
    files = sorted(Path(config["data_path"]).glob("*.*"))
    about = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {"kind": kind.__name__, "files": about, "recbole": recbole.__version__}


def _fits(header: dict[str, Any], config) -> bool:
    read = header["read"]
    now = {"read": {key: config[key] for key in read}, **_surroundings(config)}
    return header == now


class _Noted(dict):
    """A configuration's dictionary that notes which keys are asked for."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.read: set[str] = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.read.add(key)
        return super().get(key, default)

    def __contains__(self, key):
        self.read.add(key)
        return super().__contains__(key)


@contextmanager
def _noting_reads(config) -> Iterator[set[str]]:
    """The keys that are read from ``config`` inside."""
    noted = _Noted(config.final_config_dict)
    config.final_config_dict = noted
    try:
        yield noted.read
    finally:
        config.final_config_dict = dict(noted)


class _Writer(pickle.Pickler):
    """Leaves out the configuration, which the data hold on to."""

    def __init__(self, file, config) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.config = config

    def persistent_id(self, value):
        return "config" if value is self.config else None


class _Reader(pickle.Unpickler):
    """Puts the configuration of this trial in its place."""

    def __init__(self, file, config) -> None:
        super().__init__(file)
        self.config = config

    def persistent_load(self, name):
        return self.config
