"""``recbole-adv poison``: what fake users do to a model that is trained with them."""

from __future__ import annotations

import argparse
import sys

from recbole_adv.command.shared import add_configuration, files_of, readable

_EPILOG = """\
Fake users join the training data after the split, each with as many items as a real one, the targets
among them; the others are
  random     any items           bandwagon  a part of them the most popular items
  pga        those that promote the targets most on a matrix factorisation (white box)

  recbole-adv poison -m BPR -d ml-100k
  recbole-adv poison -m LightGCN -d ml-100k --attacks random pga --share 0.01 0.05 --seeds 5
  recbole-adv poison -m BPR -d ml-100k --techniques="['embedding_attack']" --output defended
  recbole-adv poison -m SASRec -d ml-100k --target_items 1682 1681 -c sasrec.yaml

Every key of 'run' can be given as --key=value. A model is trained for every seed, attack and share, and
on the clean data; (attacks x shares + 1) x seeds trainings. T-HR@k and T-NDCG@k say how often the targets
stand in the lists of real users who do not have them (docs/robustness.md).
"""


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser(
        "poison",
        help="train a model on data with fake users and measure what they achieve",
        description="Train with fake users who promote target items, and without.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_configuration(parser)
    add = parser.add_argument
    add(
        "--attacks", nargs="+", metavar="NAME", default=["random,bandwagon,pga"], help="(all three)"
    )
    add("--share", nargs="+", metavar="S", default=["0.01"], help="fake users by real users (0.01)")
    add("--n_targets", metavar="N", help="targets, drawn out of the least popular fifth (5)")
    add("--target_items", nargs="+", metavar="ITEM", help="the targets, as the data name them")
    add("--profile_size", metavar="M", help="items of a fake user (the mean of real users)")
    add("--popular_share", metavar="P", default="0.5", help="of bandwagon's fillers (0.5)")
    add("--seeds", metavar="N", default="3", help="how many, from the seed on (3), or which: 1,2,3")
    add("--metric", metavar="NAME", help="what drops are told of (valid_metric)")
    add("--output", metavar="DIR", help="where to (runs/<model>-<dataset>-poison)")
    add("--keep_checkpoints", action="store_true", help="keep the weights of every training")
    parser.set_defaults(function=_poison)


@readable()
def _poison(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv.robustness.poison import PoisonPlan, poison

    plan = PoisonPlan.of(vars(options))
    given = options.model, options.dataset, files_of(options)
    _, text = poison(plan, *given, settings=settings, say=_say)
    print(text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
