"""One run, one directory: log, checkpoints, TensorBoard, configuration and results."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import colorlog
import yaml
from recbole.utils.logger import log_colors_config

from recbole_adv import processes
from recbole_adv.errors import CheckpointError, ConfigError
from recbole_adv.trainer.report import finite

_ANSI = re.compile(r"\x1B(?:[@-Z\\-_]|\[[0-?]*[ -/]*[@-~])")
_LEVELS = ("debug", "info", "warning", "error", "critical")
# What belongs to this run alone, not to a configuration that is to be run again.
_NOT_RERUN = {"run_dir", "model_source"}
SEEDS_FILE = "seeds.json"
"""What makes a directory one of several runs: the list of their seeds."""


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _ANSI.sub("", super().format(record))


class RunDirectory:
    """The directory ``config["run_dir"]`` and what is written there.

    ``run.log``, ``config.yaml`` (ready for ``--config_files``), ``metrics.jsonl`` (one line an
    epoch), ``result.json``, ``tensorboard/``, ``model.pth`` (the best model) and ``last.pth`` (the
    end of the last epoch), the last two in ``checkpoint_dir`` if that is set.

    Of several processes the first one writes; the others say what is an error.

    Raises:
        CheckpointError: if it cannot be written.
        ConfigError: for a new run in the directory of another one.
    """

    def __init__(self, config, resumed: bool = False):
        self.config, self.resumed = config, resumed
        self.path = Path(config["run_dir"])

    @contextmanager
    def created(self) -> Iterator[None]:
        """The directories, inside; gone again if the run fails before its first epoch has ended."""
        if not processes.is_first():
            yield
            return
        if not self.resumed:
            check_unused(self.path)
        folders = {key: Path(self.config[key]) for key in ("run_dir", "checkpoint_dir")}
        new = [p for f in folders.values() for p in (f, *f.parents) if not p.exists()]
        before, trained = self._written_early(), self._trained()
        try:
            for key, folder in folders.items():
                self._create(key, folder)
            yield
        except BaseException:
            if self._trained() == trained:
                self._remove(self._written_early() - before, new)
            raise

    @staticmethod
    def _create(key: str, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".write-test-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise CheckpointError(
                f"{key} {str(folder)!r} cannot be written ({error.strerror}); write another one"
            ) from error

    def _written_early(self) -> set[Path]:
        """What a run writes before it trains."""
        names = ("run.log", "config.yaml", "split.*", "*.tmp", "tensorboard", "tensorboard/**/*")
        return {file for name in names for file in self.path.glob(name)}

    def _trained(self) -> list[tuple]:
        """What shows that an epoch has ended."""
        folders = {self.path, Path(self.config["checkpoint_dir"])}
        files = [f for folder in folders for f in (*folder.glob("*.pth"), folder / "metrics.jsonl")]
        stats = ((str(file), file.stat()) for file in files if file.is_file())
        return sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)

    @staticmethod
    def _remove(files: set[Path], folders: list[Path]) -> None:
        """Take away files, and folders that are then empty."""
        for path in sorted(files | set(folders), key=lambda path: -len(path.parts)):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Log to the console and to ``run.log`` inside, through RecBole's root logger."""
        level = str(self.config["state"] or "info").lower()
        level = level.upper() if level in _LEVELS else "INFO"
        console = logging.StreamHandler(sys.stderr)
        console.setFormatter(
            colorlog.ColoredFormatter(
                "%(log_color)s%(asctime)-15s %(levelname)s  %(message)s",
                "%d %b %H:%M",
                log_colors=log_colors_config,
            )
        )
        file: logging.Handler = logging.NullHandler()
        if processes.is_first():
            file = logging.FileHandler(self.path / "run.log", encoding="utf-8")
        else:
            level = "ERROR"
        file.setFormatter(
            _PlainFormatter("%(asctime)-15s %(levelname)s  %(message)s", "%a %d %b %Y %H:%M:%S")
        )
        root = logging.getLogger()
        before, level_before = root.handlers[:], root.level
        # Handlers that a notebook or an earlier library left there would double every line.
        root.handlers[:] = [h for h in before if type(h) is not logging.StreamHandler]
        root.handlers += [console, file]
        root.setLevel(level)
        try:
            with warnings.catch_warnings():
                # RecBole's calls of deprecated functions are nothing its users can mend.
                for category in (FutureWarning, DeprecationWarning, UserWarning):
                    warnings.filterwarnings("ignore", category=category, module="recbole")
                source = self.config.source_of.get("run_dir")
                root.info(f"run directory: {self.path} ({source})")
                yield
        finally:
            root.handlers[:] = before
            root.setLevel(level_before)
            file.close()

    def write_config(self) -> None:
        """``config.yaml``: what was given and what was derived for this run, ready to run again.

        A run that goes on in its directory keeps what was given before.
        """
        config, given = self.config, _given_in(self.path) if self.resumed else {}
        given |= {k: v for k, v in config.external_config_dict.items() if k not in _NOT_RERUN}
        source = config["model_source"]
        given |= {"model": source if ":" in (source or "") else config["model"]}
        given |= {"dataset": config["dataset"], "seed": config["seed"]}
        self._write("config.yaml", yaml.safe_dump(finite(given), sort_keys=False))

    def write_result(self, result: dict[str, Any]) -> None:
        """``result.json``."""
        self._write("result.json", json.dumps(finite(result), indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        if not processes.is_first():
            return
        aside = self.path / f"{name}.tmp"
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, self.path / name)


def _given_in(folder: Path) -> dict[str, Any]:
    """The ``config.yaml`` of a run; nothing of a directory without one."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def checkpoint_in(folder: Path) -> Path | None:
    """The checkpoint from which the run in a directory goes on, also in a ``checkpoint_dir`` of its own."""
    name, apart = folder.absolute().name, Path(_given_in(folder).get("checkpoint_dir") or folder)
    files = (folder / "last.pth", folder / "model.pth", apart / f"{name}-last.pth")
    return next((file for file in (*files, apart / f"{name}.pth") if file.is_file()), None)


def why_no_checkpoint(folder: Path) -> str:
    """What to say of a directory in which :func:`checkpoint_in` finds none, and what to do."""
    given, shown = _given_in(folder), _shown(folder)
    trained = (folder / "metrics.jsonl").is_file()
    if not given or (trained and "checkpoint_dir" in given):
        return f"there is no checkpoint in {shown!r}; write the path of a .pth file"
    before = "it wrote a checkpoint" if trained else "its first epoch ended"
    again = "" if trained else "by its command, or "
    return (
        f"the run in {shown!r} stopped before {before}, so that there is nothing to go on from; start "
        f"it anew {again}with -c {shown}/config.yaml"
    )


def check_unused(folder: Path) -> None:
    """Raise :class:`ConfigError` where there is a run, whose files another one would overwrite."""
    marks = ("metrics.jsonl", SEEDS_FILE, "*.pth")
    if not any(file for mark in marks for file in folder.glob(mark)):
        return
    shown, model = _shown(folder), _given_in(folder).get("model")
    go_on = f"write --resume={shown} to go on with it, or another run_dir"
    if checkpoint_in(folder) is None and not (folder / SEEDS_FILE).is_file():
        go_on = "write another run_dir, or take it away, as it has no checkpoint to go on from"
    raise ConfigError(f"run_dir {shown!r} holds a run{f' of {model}' if model else ''}; {go_on}")


@contextmanager
def interrupt_explained(folder: Path) -> Iterator[None]:
    """An interrupt says, as ``KeyboardInterrupt``'s text, how the run in the directory goes on."""
    try:
        yield
    except KeyboardInterrupt as error:
        text = "interrupted before the first epoch ended; give the command again"
        if (folder / SEEDS_FILE).is_file():
            text = f"interrupted; --resume={_shown(folder)} goes on with the seeds that are missing"
        elif checkpoint_in(folder) is not None:
            text = f"interrupted; --resume={_shown(folder)} goes on from the last epoch that ended"
        elif (folder / "metrics.jsonl").is_file():
            text = "interrupted before a checkpoint was written; start anew with another run_dir"
        error.args = (text,)
        raise


def _shown(folder: Path) -> str:
    """A path as one would write it here."""
    folder, here = folder.absolute(), Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
