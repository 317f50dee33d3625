"""``recbole-adv stability``: what one training row of one user does to the lists of the others."""

from __future__ import annotations

import argparse
import sys

from recbole_adv.command.shared import add_configuration, files_of, readable

_EPILOG = """\
A model is trained again, on the same seed, without a random row of the training data (drop) or with another
item in it (replace); the lists of all other test users are compared by Jaccard@k and rank-biased overlap,
k the largest of topk. 1 + changes x n_rows trainings for each seed.

  recbole-adv stability -m BPR -d ml-100k
  recbole-adv stability -m LightGCN -d ml-100k --changes drop --n_rows 10 --seeds 1 --topk=[20]

Every key of 'run' can be given as --key=value.
"""


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser(
        "stability",
        help="measure how lists change with a single training row",
        description="Train with one changed row and compare the lists of the other users.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_configuration(parser)
    add = parser.add_argument
    add(
        "--changes",
        nargs="+",
        metavar="NAME",
        default=["drop,replace"],
        help="drop, replace (both)",
    )
    add("--n_rows", default="3", metavar="N", help="rows, a training each (3)")
    add("--seeds", metavar="N", default="3", help="how many, from the seed on (3), or which: 1,2,3")
    add("--output", metavar="DIR", help="where to (runs/<model>-<dataset>-stability)")
    parser.set_defaults(function=_stability)


@readable()
def _stability(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv.robustness.stability import StabilityPlan, stability

    plan = StabilityPlan.of(vars(options))
    given = options.model, options.dataset, files_of(options)
    _, text = stability(plan, *given, settings=settings, say=_say)
    print(text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
