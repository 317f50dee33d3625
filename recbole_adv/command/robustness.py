"""``recbole-adv robustness``: what attacks cost a trained model."""

from __future__ import annotations

import argparse
import sys

from recbole_adv.command.shared import readable

_EPILOG = """\
Attacks on the embedding tables, found by the mean gradient of the training loss, never of the test:
  random  noise of length epsilon in each row, the control      fgsm  one step along the gradient
  pgd     K steps, each row kept in the ball of radius epsilon
  box     K steps, each element clipped to +-epsilon (MSAP's; its rows get longer than epsilon)

  recbole-adv robustness --checkpoint runs/BPR-ml-100k-...
  recbole-adv robustness --checkpoint runs/base runs/defended --output compared   one table and plot
  recbole-adv robustness --checkpoint runs/base --attacks random pgd --epsilon 0.05 0.1 0.2 --relative
  recbole-adv robustness --checkpoint runs/base --topk=[10,20] --metrics=['NDCG'] --metric NDCG@20

Items of the histories that a sequential model reads, replaced at evaluation:
  random  by any other item      similar  by one whose embedding is near
  gradient  where and by what its own first choice loses most to first order (HotFlip)

  recbole-adv robustness --checkpoint runs/SASRec-ml-100k-... --history random similar gradient --share 0.1 0.3

Other keys, as --key=value, change the configuration in the checkpoint. The model and its file stay
as they are. Written are metrics.csv, report.json, report.md and curves.png (docs/robustness.md).
"""


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser(
        "robustness",
        help="measure what attacks on embeddings or histories cost a trained model",
        description="Evaluate trained models under perturbed embeddings or corrupted histories.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        nargs="+",
        required=True,
        metavar="RUN",
        help="runs' directories or .pth files",
    )
    add("--attacks", nargs="+", metavar="NAME", help="of random, fgsm, pgd, box (all)")
    add("--epsilon", nargs="+", metavar="E", help="radii (0.1 0.25 0.5 1 2; relative .05 .1 .2 .5)")
    add("--relative", action="store_true", help="epsilon in units of a table's mean row norm")
    add("--steps", default="10", metavar="K", help="of pgd and box (10)")
    add("--targets", nargs="+", metavar="REGEX", help="parameters to attack (all embedding tables)")
    add("--history", nargs="+", metavar="NAME", help="of random, similar, gradient")
    add("--share", nargs="+", metavar="P", help="of a history that is replaced (.1 .2 .3 .5)")
    add("--seeds", default="3", metavar="N", help="how many (3), or which: 1,2,3")
    add("--metric", metavar="NAME", help="what drops are told of (the run's valid_metric)")
    add("--output", metavar="DIR", help="where to (<run>-robustness or <run>-history)")
    parser.set_defaults(function=_robustness)


@readable()
def _robustness(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv.robustness.run import robustness

    _, text = robustness(plan_of(options), settings, say=_say)
    print(text)


def plan_of(options: argparse.Namespace):
    """The flags, checked."""
    from recbole_adv.robustness.plan import Plan

    return Plan.of(vars(options))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
