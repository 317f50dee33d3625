"""What several commands need."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from recbole_adv.errors import ConfigError


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """The flags ``--model``, ``--dataset`` and ``--config_files``."""
    parser.add_argument(
        "-m",
        "--model",
        help="a name ('recbole-adv models' lists them), file.py:Class or package.module:Class",
    )
    parser.add_argument(
        "-d", "--dataset", help="a dataset in data_path (default dataset/), or ml-100k"
    )
    parser.add_argument(
        "-c",
        "--config_files",
        help="YAML files, separated by spaces within one argument",
        metavar="FILES",
    )


def files_of(options: argparse.Namespace) -> list[str] | None:
    """The files of ``--config_files``."""
    return options.config_files.split() if options.config_files else None


def takes_no_settings(command: str, settings: Sequence[str]) -> None:
    """Refuse what is left on the command line."""
    if settings:
        raise ConfigError(f"{command!r} takes no argument, got {settings[0]!r}")


@contextmanager
def readable() -> Iterator[None]:
    """Who reads our output may stop early, as ``| head`` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
