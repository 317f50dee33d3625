"""``recbole-adv run``: train, validate and test a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from recbole_adv.command.shared import add_configuration, files_of
from recbole_adv.errors import ConfigError

_EPILOG = """\
Every key of RecBole and of recbole_adv can be set by --key=value:

  recbole-adv run -m EIIL -d ml-100k --backbone=LightGCN --max_interval=3 --penalty_weight=10
  recbole-adv run -m BPR -d ml-100k --learning_rate=0.01 --topk=[10,20] --epochs=50
  recbole-adv run -m my_model.py:MyModel -d my_data --data_path=data/ -c my_settings.yaml
  recbole-adv run --resume runs/EIIL-ml-100k-20261121-104700-3f9a2c
  recbole-adv run -m BPR -d ml-100k --seeds=5
  recbole-adv run -m LightGCN -d ml-100k --nproc=2

Priority: command line > config files > model properties > defaults. Lists and dicts are written as
in Python, None as None. 'recbole-adv config -m EIIL -d ml-100k' prints every key with its value,
where that came from, and what it means.
"""


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser(
        "run",
        help="train, validate and test a model",
        description="Train a model, choose its best epoch on the validation data, test it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_configuration(parser)
    parser.add_argument(
        "--resume", metavar="PATH", help="go on with a run: its directory or a .pth file"
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        help="run N seeds from the configuration's on, or those given as 1,2,3: mean and error",
    )
    parser.add_argument(
        "--nproc", type=int, default=1, help="processes on this machine that train together"
    )
    parser.add_argument("--world_size", type=int, default=-1, help="processes on all machines")
    parser.add_argument("--ip", default="localhost", help="address of the first process's machine")
    parser.add_argument("--port", help="its port (default: a free one; of several machines 5678)")
    parser.add_argument(
        "--group_offset", type=int, default=0, help="number of this machine's first process"
    )
    parser.set_defaults(function=_run)


def _run(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv import processes
    from recbole_adv.launch import run_processes
    from recbole_adv.quick_start import run_recbole_adv
    from recbole_adv.seeds import SEEDS_FILE, resume_seeds, run_seeds
    from recbole_adv.trainer.report import finite

    several = options.nproc != 1 or options.world_size not in (-1, 1)
    if options.seeds and several:
        raise ConfigError(
            f"--seeds runs one process at a time, got --nproc {options.nproc}; leave one of them out"
        )
    given = options.model, options.dataset, files_of(options)
    if options.resume and Path(options.resume, SEEDS_FILE).is_file():
        if any(given) or options.seeds or settings:
            raise ConfigError(
                f"{options.resume!r} holds runs with several seeds, which go on as they are, got "
                "further settings; leave them out"
            )
        result = resume_seeds(options.resume)
    elif options.seeds:
        if options.resume:
            raise ConfigError(
                f"--seeds starts new runs, got --resume {options.resume!r}; leave one out"
            )
        result = run_seeds(options.seeds, *given, command_line=settings)
    elif several:
        named = ("nproc", "world_size", "ip", "port", "group_offset")
        result = run_processes(
            *given,
            resume=options.resume,
            command_line=settings,
            **{name: getattr(options, name) for name in named},
        )
    else:
        result = run_recbole_adv(*given, resume=options.resume, command_line=settings)
    place = processes.place()  # torchrun's
    if result is not None and (place is None or place.rank == 0):
        # The log goes to stderr; this line is for whoever reads the program's output.
        print(json.dumps(finite(result)))
