"""``recbole-adv leak-probe``: what the vectors of users tell of their attributes."""

from __future__ import annotations

import argparse
import sys

from recbole_adv.command.shared import readable

_EPILOG = """\
Probes learn an attribute from the frozen vectors of four fifths of the users and are scored on the rest:
AUC of two classes, micro-F1 of more, beside the majority class and probes of permuted labels.

  recbole-adv leak-probe --checkpoint runs/BPR-ml-100k-... --attribute gender
  recbole-adv leak-probe --checkpoint runs/base runs/filtered --attribute gender age occupation --output leak

Attributes are columns of <dataset>.user; numbers of many values are cut into quantiles (--bins). A model's
own method user_representation(), [n_users, D], says which vectors count; without it they are found
(docs/robustness.md). Written are scores.csv, report.json, report.md and leak.png.
"""


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser(
        "leak-probe",
        help="say how well an attribute of users can be read out of a model",
        description="Probe frozen user vectors for attributes of the users.",
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
    add("--attribute", nargs="+", required=True, metavar="NAME", help="columns of <dataset>.user")
    add("--bins", default="4", metavar="N", help="quantiles of an attribute of many numbers (4)")
    add("--seeds", default="5", metavar="N", help="how many splits (5), or which: 1,2,3")
    add("--output", metavar="DIR", help="where to (<run>-leak-probe)")
    parser.set_defaults(function=_leak_probe)


@readable()
def _leak_probe(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv.robustness.leak import LeakPlan, leak_probe

    _, text = leak_probe(LeakPlan.of(vars(options)), settings, say=_say)
    print(text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
