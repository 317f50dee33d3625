"""``recbole-adv sweep``: search for the best setting of a model."""

from __future__ import annotations

import argparse
import json
import sys

from recbole_adv.command.shared import add_configuration, files_of

_EPILOG = """\
A search file has a line for each key, as in RecBole, or the same as YAML:

  learning_rate loguniform -8,-3              choice: {learning_rate: [0.001, 0.01]}
  penalty_weight choice [0.1, 1, 10]          loguniform: {penalty_weight: [-3, 3]}

(the bounds of loguniform are natural logarithms). What is not searched is given as for 'run':

  recbole-adv sweep -m EIIL -d ml-100k --epochs=50
  recbole-adv sweep -m EIIL -d ml-100k --params_file=search.yaml --tool=ray --scheduler=asha
  recbole-adv sweep -m BPR -d my_data -c fixed.yaml --params_file=hyper.test --algo=random --seeds=5

Settings are compared on the validation data alone; --seeds runs the best ones again on other seeds
and tests those. The same command goes on with a sweep that was ended.
"""


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser(
        "sweep",
        help="search for the best setting of a model",
        description="Search over hyperparameters by RecBole's HyperTuning or by Ray Tune.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_configuration(parser)
    add = parser.add_argument
    add("--params_file", metavar="FILE", help="search file; some models have one of their own")
    add("--sweep_dir", metavar="DIR", help="where it is written (sweeps/<model>-<dataset>)")
    add("--tool", type=str.lower, default="hyperopt", help="hyperopt (HyperTuning) or ray")
    add(
        "--algo",
        type=str.lower,
        default="exhaustive",
        help="exhaustive (grid), random, or bayes (hyperopt: TPE)",
    )
    add("--max_evals", type=int, default=30, help="trials of random and bayes; members of pbt")
    add("--early_stop", type=int, help="end after so many trials without a better score")
    add("--retries", type=int, default=1, help="how often a trial that crashed is tried again")
    add("--seeds", type=int, default=0, help="run the best settings again on so many other seeds")
    add("--top", type=int, default=3, help="how many settings --seeds runs again")
    _add_ray(parser.add_argument_group("with --tool=ray"))
    parser.set_defaults(function=_sweep)


def _add_ray(group) -> None:
    add = group.add_argument
    add("--scheduler", type=str.lower, default="none", help="none, asha (prunes), or pbt")
    add("--grace_epochs", type=int, help="asha: epochs before any trial is pruned")
    add("--reduction_factor", type=float, default=3.0, help="asha: one of so many goes on")
    add("--perturbation_epochs", type=int, help="pbt: epochs between two changes of settings")
    add("--cpus_per_trial", type=float, default=1.0, help="CPU cores of a trial")
    add("--gpus_per_trial", type=float, help="GPUs of a trial, 0.25 for four trials on one")
    add("--concurrency", type=int, help="most trials at once")
    add(
        "--ray_address", "--ray-address", metavar="HOST:PORT", help="a cluster's; else this machine"
    )
    add("--dashboard", action="store_true", help="start Ray's dashboard on this machine")


def _sweep(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv.sweep import run_sweep
    from recbole_adv.sweep.options import NAMES
    from recbole_adv.trainer.report import finite

    try:
        result = run_sweep(
            options.model,
            options.dataset,
            files_of(options),
            params_file=options.params_file,
            sweep_dir=options.sweep_dir,
            command_line=settings,
            **{name: getattr(options, name) for name in NAMES},
        )
    except KeyboardInterrupt:
        print("recbole-adv: interrupted; the same command goes on with the sweep", file=sys.stderr)
        raise SystemExit(130) from None
    print(json.dumps(finite(result)))
