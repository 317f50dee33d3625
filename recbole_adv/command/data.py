"""``recbole-adv data convert``: RecBole's files from the original ones."""

from __future__ import annotations

import argparse

from recbole_adv.command.shared import takes_no_settings

_EPILOG = """\
  recbole-adv data convert coat --source coat.zip --min-rating 4
  recbole-adv data convert ml-1m --source ml-1m/
  recbole-adv data convert adjacency --source LightGCN/data/gowalla
  recbole-adv run -m BPR -c dataset/coat/coat.yaml

A source is the folder or the archive as it was published: Coat (train.ascii, test.ascii,
user_item_features), Yahoo! R3 (ydata-ymusic-rating-study-v1_0-train.txt and -test.txt), KuaiRec 2.0
(big_matrix.csv, small_matrix.csv, item_categories.csv, user_features.csv), MovieLens (100K, 1M, 10M,
20M, 25M, 32M), or lists 'user item item ...' (train.txt, test.txt and others like them).
"""


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser("data", help="convert data sets", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    parser = actions.add_parser(
        "convert",
        help="make RecBole's files from the original ones",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("format", help="coat, yahoo-r3, kuairec, ml-100k to ml-32m, or adjacency")
    parser.add_argument(
        "--source", required=True, help="the original files: a folder or an archive"
    )
    parser.add_argument(
        "--output", default="dataset", help="the data_path; files go to <output>/<name>/"
    )
    parser.add_argument("--name", help="of the data set, if not the format's")
    parser.add_argument(
        "--min-rating",
        type=float,
        metavar="R",
        help="keep rows rated at least R (KuaiRec: watch_ratio), without the ratings, for ranking",
    )
    parser.add_argument(
        "--valid-share",
        type=float,
        default=0.1,
        metavar="S",
        help="share of the training rows for validation, where none is published (0.1)",
    )
    parser.add_argument("--seed", type=int, default=2020, help="of that draw (2020)")
    parser.add_argument(
        "--no-check-counts", action="store_true", help="do not compare with the published counts"
    )
    parser.set_defaults(function=_convert)


def _convert(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv.data.conversion.convert import READERS, convert
    from recbole_adv.data.conversion.tables import Options, count_of, files_of
    from recbole_adv.errors import ConfigError, suggest

    takes_no_settings("data convert", settings)
    if options.format not in READERS:
        near = suggest(options.format, READERS) or f"; write one of {', '.join(READERS)}"
        raise ConfigError(f"there is no format {options.format!r}{near}")
    wanted = Options(options.min_rating, options.valid_share, options.seed, options.name)
    tables, folder = convert(
        options.format, options.source, options.output, wanted, not options.no_check_counts
    )
    text = (folder / f"{tables.name}.yaml").read_text(encoding="utf-8")
    for file, frame in files_of(tables).items():
        what = count_of(frame) if file.endswith(".inter") else f"{len(frame)} rows"
        print(f"{folder / file}: {what}")
    for note in tables.notes:
        print(f"note: {note}")
    model = "FM" if "threshold:" in text else "BPR"
    print(f"use it with: recbole-adv run -m {model} -c {folder / tables.name}.yaml")
    print(text, end="")
