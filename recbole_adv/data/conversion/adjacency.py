"""Lists of items by user, ``user item item ...`` in each line, as LightGCN's code and its many heirs
have them: ``train.txt`` with ``test.txt``, ``valid.txt``, ``test_id.txt``, ``test_ood_1.txt`` ...
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_adv.data.conversion.source import Source
from recbole_adv.data.conversion.tables import ITEM, USER, Options, Tables
from recbole_adv.errors import DataError


def read(source: Source, options: Options) -> Tables:
    """``train.txt``, and ``valid.txt`` and ``test*.txt`` as far as they are there."""
    names = {Path(member).name for member in source.members}
    tests = sorted(n for n in names if n.startswith("test") and n.endswith(".txt"))
    if "train.txt" in names and not tests:
        raise DataError(
            f"there is no test in {source.path}, which holds {', '.join(sorted(names)[:12])}; write "
            "a folder with train.txt and test.txt (or test_id.txt, test_ood.txt)"
        )
    valid = ["valid.txt"] if "valid.txt" in names else []
    inter = {
        name.removesuffix(".txt"): _pairs(source, name) for name in ["train.txt", *valid, *tests]
    }
    path = source.path.resolve()
    tables = Tables(path.name if path.is_dir() else path.name.partition(".")[0], inter)
    for part, frame in inter.items():
        twice = int(frame.duplicated().sum())
        if twice:
            tables.notes.append(
                f"{twice} of {len(frame)} pairs of {part} stand there more than once"
            )
    return tables


def _pairs(source: Source, name: str) -> pd.DataFrame:
    rows = [line.split() for line in source.lines(name, "ascii")]
    flat = list(chain.from_iterable(rows))
    try:
        ids = np.array(flat, dtype=np.int64)
    except (ValueError, OverflowError):
        number, word = next(
            (n, word) for n, row in enumerate(rows, 1) for word in row if not word.isdecimal()
        )
        raise DataError(
            f"{name}, line {number} holds {word!r}; lines are 'user item item ...' in whole numbers"
        ) from None
    count = np.array([len(row) for row in rows])
    is_user = np.zeros(len(flat), dtype=bool)
    is_user[(count.cumsum() - count)[count > 0]] = True
    user = np.repeat(ids[is_user], count[count > 0] - 1)
    if not len(user):
        raise DataError(f"{name} holds no pair; lines are 'user item item ...'")
    return pd.DataFrame({USER: user, ITEM: ids[~is_user]})
