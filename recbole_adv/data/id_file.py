"""Files of users and items beside the data: pools, masks, test sets, environments.

A file is like RecBole's atomic files: a first line of names with or without types
(``user_id:token<TAB>item_id:token``), then one line for each pair, in the tokens of the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from recbole_adv.errors import DataError


class IdRows(NamedTuple):
    """What a file says, as ids of the data: rows with an unknown user or item are left out.

    user: [n] int64, or None for a file of items; item: [n] int64; more: further columns as strings,
    by name; n_unknown: how many rows were left out; n_rows: of how many.
    """

    user: np.ndarray | None
    item: np.ndarray
    more: dict[str, np.ndarray]
    n_unknown: int
    n_rows: int


def is_path(value: str) -> bool:
    """Whether a value is meant as a file; else it names a column or a part of the split."""
    return "/" in value or "\\" in value or "." in value or Path(value).is_file()


def read_ids(path: str, dataset, key: str, users: str = "needed", more=()) -> IdRows:
    """The users and items of a file.

    dataset: RecBole's, whose names of columns, separator and tokens hold; key: what the file was
    named by, for messages; users: ``needed``, or ``optional`` where a file of items will do;
    more: names of further columns.

    Raises:
        DataError: the file is missing, has other columns, or none of its rows is known.
    """
    wanted = [dataset.uid_field, dataset.iid_field, *more]
    separator = dataset.config["field_separator"] or "\t"
    frame = _read(path, key, separator, dataset.config["encoding"] or "utf-8")
    frame.columns = [str(name).partition(":")[0] for name in frame.columns]
    if users == "optional" and dataset.uid_field not in frame:
        wanted.remove(dataset.uid_field)
    missing = [name for name in wanted if name not in frame]
    if missing:
        raise DataError(
            f"{key} {path!r} must have the columns {', '.join(wanted)}, got "
            f"{', '.join(map(repr, frame.columns))}; write a first line "
            f"{separator.join(f'{name}:token' for name in wanted)!r}"
        )
    known = np.ones(len(frame), dtype=bool)
    ids = {}
    for field in wanted[: len(wanted) - len(more)]:
        found = frame[field].map(dataset.field2token_id[field])
        known &= found.notna().to_numpy()
        ids[field] = found
    if not known.any():
        raise DataError(
            f"{key} {path!r} has {len(frame)} rows, none of which has "
            f"{' and '.join(ids)} of {dataset.dataset_name!r}; write the names used in its files"
        )
    columns = {field: found[known].to_numpy(dtype=np.int64) for field, found in ids.items()}
    return IdRows(
        columns.get(dataset.uid_field),
        columns[dataset.iid_field],
        {name: frame[name][known].to_numpy(dtype=str) for name in more},
        int((~known).sum()),
        len(frame),
    )


def _read(path: str, key: str, separator: str, encoding: str) -> pd.DataFrame:
    try:
        return pd.read_csv(
            path, sep=separator, dtype=str, encoding=encoding, keep_default_na=False, engine="c"
        )
    except (OSError, ValueError) as error:  # what pandas raises for a broken file are ValueErrors
        raise DataError(
            f"{key} {path!r} cannot be read ({' '.join(str(error).split())[:120]}); write the path "
            "of a file with a first line of names and a line for each row"
        ) from error
