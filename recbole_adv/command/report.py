"""``recbole-adv report``: what runs did, as a page of HTML and as markdown."""

from __future__ import annotations

import argparse
from pathlib import Path

from recbole_adv.command.shared import readable, takes_no_settings

_EPILOG = """\
The page holds settings, test metrics, groups, learning curves and the split, and needs no network. Runs
that differ only by their seed are one method, with mean and standard error. Methods are compared with
that of the first run by paired tests: over users where the runs kept them (save_user_metrics: True).

  recbole-adv report runs/EIIL-ml-100k-20261121-104700-3f9a2c
  recbole-adv report runs/bpr runs/eiil runs/apr             of --seeds runs; runs/bpr is the baseline
  recbole-adv report sweeps/EIIL-ml-100k --output eiil.html
  recbole-adv report runs/* --metric recall@20 --metric item_popularity/worst/ndcg@10
"""


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser(
        "report",
        help="compare runs on one page (HTML and markdown)",
        description="Write a report on runs: settings, curves, metrics, paired comparison.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", type=Path, help="directory of a run, of seeds, of a sweep"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="report.html beside the runs if left out"
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="compare by this test metric; the one that selected the model if left out",
    )
    parser.set_defaults(function=_report)


@readable()
def _report(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv.report.write import write_report

    takes_no_settings("report", settings)
    for file in write_report(options.runs, options.output, options.metric):
        print(file)
