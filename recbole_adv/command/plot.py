"""``recbole-adv plot``: draw the curves of runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from recbole_adv.command.shared import readable, takes_no_settings
from recbole_adv.errors import ConfigError

_EPILOG = """\
Written are, as far as metrics.jsonl has something for them: losses.png (each player's loss and its parts),
validation.png, norms.png (gradients and updates), sharpness.png, techniques.png (attack, Clippy, events of
the divergence guard ...) and model.png (what the model logs of its own).

  recbole-adv plot runs/EIIL-ml-100k-20261121-104700-3f9a2c
  recbole-adv plot runs/BPR-* --output bpr-plots        several runs in the same axes
"""


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser(
        "plot",
        help="draw the curves of runs as PNG (needs matplotlib)",
        description="Draw losses, validation metrics, norms and figures of techniques over the epochs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", type=Path, help="a run's directory, or its metrics.jsonl"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to; one run's own directory if left out"
    )
    parser.set_defaults(function=_plot)


@readable()
def _plot(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv.plot.draw import draw_runs
    from recbole_adv.plot.metrics import read_run

    takes_no_settings("plot", settings)
    runs = [read_run(path) for path in options.runs]
    names = [run.name for run in runs]
    for path, run in zip(options.runs, runs):
        if names.count(run.name) > 1:  # runs/a/seed-1 and runs/b/seed-1
            run.name = str(path)
    folder = options.output
    if folder is None:
        if len(runs) > 1:
            raise ConfigError(
                f"{len(runs)} runs are drawn in the same axes and belong to no one's directory; "
                "write --output DIR"
            )
        only = options.runs[0]
        folder = only if only.is_dir() else only.parent
    for file in draw_runs(runs, folder):
        print(file)
