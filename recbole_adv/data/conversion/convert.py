"""Convert a data set: read, check, split off a validation, write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from recbole_adv.data.conversion import adjacency, coat, kuairec, movielens, yahoo_r3
from recbole_adv.data.conversion.source import Source
from recbole_adv.data.conversion.tables import (
    Options,
    Tables,
    check_counts,
    draw_valid,
    keep_positives,
    note_leaks,
    write_tables,
)
from recbole_adv.errors import ConfigError

READERS: dict[str, Callable[[Source, Options], Tables]] = {
    "coat": coat.read,
    "yahoo-r3": yahoo_r3.read,
    "kuairec": kuairec.read,
    **{name: movielens.reader(name) for name in movielens.PUBLISHED},
    "adjacency": adjacency.read,
}


def convert(
    name: str, source: str, data_path: str, options: Options, with_counts: bool = True
) -> tuple[Tables, Path]:
    """Write ``data_path/<name>/`` from the original files in ``source``.

    Returns what was written, and the folder.

    Raises:
        DataError: a file is missing, broken, cut short or another one; ConfigError: an option.
    """
    if not 0 < options.valid_share < 1:
        raise ConfigError(
            f"--valid-share must lie between 0 and 1, got {options.valid_share:g}; write 0.1"
        )
    tables = READERS[name](Source(source), options)
    if with_counts:
        check_counts(tables)
    tables.name = options.name or tables.name
    keep_positives(tables, options.min_rating)
    draw_valid(tables, options.valid_share, options.seed)
    note_leaks(tables)
    return tables, write_tables(tables, data_path)
