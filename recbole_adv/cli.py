"""The command line: ``recbole-adv run|models|config``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from recbole_adv import __version__
from recbole_adv.errors import ConfigError, RecBoleAdvError

_RUN_EPILOG = """\
Every key of RecBole and of recbole_adv can be set by --key=value:

  recbole-adv run -m EIIL -d ml-100k --backbone=LightGCN --max_interval=3 --penalty_weight=10
  recbole-adv run -m BPR -d ml-100k --learning_rate=0.01 --topk=[10,20] --epochs=50
  recbole-adv run -m my_model.py:MyModel -d my_data --data_path=data/ -c my_settings.yaml
  recbole-adv run --resume runs/EIIL-ml-100k-20261121-104700-3f9a2c

Priority: command line > config files > model properties > defaults. Lists and dicts are written as
in Python, None as None. 'recbole-adv config -m EIIL -d ml-100k' prints every key with its value,
where that came from, and what it means.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 after a user's mistake, 1 after one of ours."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        with _quiet(debug):
            _command([argument for argument in arguments if argument != "--debug"])
    except KeyboardInterrupt:
        _complain("interrupted; --resume=<run directory> goes on from the last epoch that ended")
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


@contextmanager
def _readable() -> Iterator[None]:
    """Who reads our output may stop early, as ``| head`` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    run = commands.add_parser(
        "run",
        help="train, validate and test a model",
        description="Train a model, choose its best epoch on the validation data, test it.",
        epilog=_RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_configuration(run)
    run.add_argument(
        "--resume", metavar="PATH", help="go on with a run: its directory or a .pth file"
    )
    run.add_argument(
        "--nproc", type=int, default=1, help="processes on this machine (only 1 so far)"
    )
    run.add_argument("--world_size", type=int, default=-1, help="processes in all (RecBole's flag)")
    run.add_argument("--ip", default="localhost", help="address of the first (RecBole's flag)")
    run.add_argument("--port", default="5678", help="its port (RecBole's flag)")
    run.add_argument("--group_offset", type=int, default=0, help="rank offset (RecBole's flag)")
    run.set_defaults(function=_run)
    models = commands.add_parser("models", help="list the models", allow_abbrev=False)
    models.set_defaults(function=_models)
    config = commands.add_parser(
        "config",
        help="print the resolved configuration and where each value came from",
        allow_abbrev=False,
    )
    _add_configuration(config)
    config.set_defaults(function=_config)
    return parser


def _add_configuration(parser: argparse.ArgumentParser) -> None:
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


def _files(options: argparse.Namespace) -> list[str] | None:
    return options.config_files.split() if options.config_files else None


def _run(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv.quick_start import run_recbole_adv
    from recbole_adv.trainer.report import finite

    if options.nproc != 1 or options.world_size > 1:
        raise ConfigError(
            f"training on several processes is not supported yet, got nproc {options.nproc} and "
            f"world_size {options.world_size}; leave both out"
        )
    result = run_recbole_adv(
        options.model,
        options.dataset,
        _files(options),
        resume=options.resume,
        command_line=settings,
    )
    # The log goes to stderr; this line is for whoever reads the program's output.
    print(json.dumps(finite(result)))


@_readable()
def _models(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv import discovery

    if settings:
        raise ConfigError(f"'models' takes no argument, got {settings[0]!r}")
    print("Ours (each over any backbone: --backbone=LightGCN)")
    for name in discovery.own_model_names():
        line = (discovery.find_model(name).__doc__ or "").strip().splitlines()[0]
        print(f"  {name:<12} {_module_title(name) or line}")
    print("RecBole's")
    families: dict[str, list[str]] = {}
    for name in discovery.recbole_model_names():
        family = discovery.recbole_modules()[name.lower()].split(".")[2]
        families.setdefault(family.removesuffix("_recommender"), []).append(name)
    for family, names in families.items():
        print(f"  {family}: {', '.join(names)}")


def _module_title(name: str) -> str:
    """The first sentence of a model's module, without the model's name in front."""
    from recbole_adv import discovery

    text = sys.modules[discovery.find_model(name).__module__].__doc__ or ""
    return text.strip().splitlines()[0].partition(": ")[2]


@_readable()
def _config(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv.config import Config
    from recbole_adv.config_check import meanings

    config = Config(options.model, options.dataset, _files(options), command_line=settings)
    explained = meanings(config)
    for key, value in sorted(config.final_config_dict.items(), key=lambda item: item[0].lower()):
        source = config.source_of.get(key, "derived")
        meaning = f"  # {explained[key]}" if key in explained else ""
        print(f"{key}: {value!r}  [{source}]{meaning}")
