"""Coat Shopping (Schnabel et al., ICML 2016): ratings of 290 users for 300 coats.

``train.ascii`` and ``test.ascii`` are matrices, users in lines, 0 for no rating: 24 coats that each
user chose, and 16 that were drawn for him. Users and items are numbered from 0, as in most codes.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from recbole_adv.data.conversion.source import Source
from recbole_adv.data.conversion.tables import ITEM, USER, Count, Options, Tables
from recbole_adv.errors import DataError

N_USERS, N_ITEMS = 290, 300
PUBLISHED = {"train": Count(6960, 290, 300), "test": Count(4640, 290, 300)}
_FEATURES = {"user": (USER, N_USERS), "item": (ITEM, N_ITEMS)}


def read(source: Source, options: Options) -> Tables:
    """``train.ascii``, ``test.ascii`` and, where there, ``user_item_features``."""
    inter = {part: _ratings(source, f"{part}.ascii") for part in PUBLISHED}
    tables = Tables("coat", inter, rating="rating:float", liked=4, published=dict(PUBLISHED))
    for kind in _FEATURES:
        if source.has(f"{kind}_features.ascii") and source.has(f"{kind}_features_map.txt"):
            tables.features[kind] = _features(source, kind)
        else:
            tables.notes.append(f"no {kind}_features.ascii with its map: no features of {kind}s")
    return tables


def _matrix(source: Source, name: str) -> np.ndarray:
    """A matrix of whole numbers; a DataError names the first line of another length."""
    lines = [line.split() for line in source.lines(name, "ascii")]
    widths = {len(line) for line in lines}
    if len(widths) != 1:
        first = len(lines[0]) if lines else 0
        number = next((n for n, line in enumerate(lines, 1) if len(line) != first), 1)
        raise DataError(
            f"{name} must be a matrix, got {len(lines[number - 1]) if lines else 0} numbers in line "
            f"{number} and {first} in line 1; fetch it again"
        )
    try:
        return np.array(lines, dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{name} must hold whole numbers ({error}); fetch it again") from error


def _ratings(source: Source, name: str) -> pd.DataFrame:
    matrix = _matrix(source, name)
    if matrix.shape != (N_USERS, N_ITEMS):
        raise DataError(
            f"{name} must have {N_USERS} lines of {N_ITEMS} ratings, got {matrix.shape[0]} of "
            f"{matrix.shape[1]}; fetch it again"
        )
    if not np.isin(matrix, range(6)).all():
        wrong = int(matrix[~np.isin(matrix, range(6))][0])
        raise DataError(f"{name} must hold ratings 1 to 5 and 0 for none, got {wrong}")
    user, item = matrix.nonzero()
    return pd.DataFrame({USER: user, ITEM: item, "rating:float": matrix[user, item]})


def _features(source: Source, kind: str) -> pd.DataFrame:
    """Columns of ones by the names in the map, ``group:value``, as one column for each group.

    Items have a gender, too; RecBole wants names that differ from those of users.
    """
    (column, n_rows), name = _FEATURES[kind], f"{kind}_features.ascii"
    matrix, titles = _matrix(source, name), source.lines(f"{kind}_features_map.txt")
    if matrix.shape != (n_rows, len(titles)):
        raise DataError(
            f"{name} must have {n_rows} lines of {len(titles)} numbers, one for each line of "
            f"{kind}_features_map.txt, got {matrix.shape[0]} of {matrix.shape[1]}; fetch both again"
        )
    frame = pd.DataFrame({column: np.arange(n_rows)})
    groups: dict[str, list[int]] = {}
    for place, title in enumerate(titles):
        groups.setdefault(title.partition(":")[0].strip(), []).append(place)
    for group, places in groups.items():
        values = [titles[p].partition(":")[2].strip().replace(" ", "_") for p in places]
        ones = matrix[:, places] == 1
        type_name = "token" if ones.sum(axis=1).max() <= 1 else "token_seq"
        title = f"{kind}_{group}" if group == "gender" and kind == "item" else group
        frame[f"{title}:{type_name}"] = [
            " ".join(value for value, one in zip(values, row) if one) for row in ones
        ]
    return frame
