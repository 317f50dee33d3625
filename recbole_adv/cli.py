"""The command line: ``recbole-adv <command>``; each command is a module of recbole_adv.command."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from recbole_adv import __version__, command
from recbole_adv.errors import ConfigError, RecBoleAdvError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 after a user's mistake, 1 after one of ours."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        with _quiet(debug):
            _command([argument for argument in arguments if argument != "--debug"])
    except KeyboardInterrupt as interrupt:
        _complain(str(interrupt) or "interrupted; give the command again")
        return 130
    except RecBoleAdvError as error:
        if debug:
            raise
        _complain(str(error))
        return 2
    except Exception as error:
        if debug:
            raise
        _complain(f"{type(error).__name__}: {error}"[:500] + " (--debug shows where)")
        return 1
    return 0


def _command(arguments: list[str]) -> None:
    parser = build_parser()
    options, settings = parser.parse_known_args(arguments)
    if options.command is None:
        parser.print_help()
    else:
        options.function(options, settings)


def _complain(sentence: str) -> None:
    print("recbole-adv:", " ".join(sentence.split()), file=sys.stderr)


@contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Without the warnings about RecBole's own code, of which a user can mend nothing."""
    with warnings.catch_warnings():
        if not debug and not sys.warnoptions:
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
            warnings.filterwarnings("ignore", message=r"torch\.sparse\.", module=r"recbole\.")
        yield


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A mistake is one sentence, as everywhere, in place of usage and exit."""
        raise ConfigError(f"{message}; '{self.prog} --help' shows what to write")


def run_main(arguments: Sequence[str] | None = None) -> int:
    """``run_recbole_adv.py``: the command ``run``."""
    return main(["run", *(sys.argv[1:] if arguments is None else arguments)])


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="recbole-adv",
        description="Train adversarial and invariant recommenders on RecBole.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name in command.NAMES:
        importlib.import_module(f"recbole_adv.command.{name}").add(commands)
    return parser
