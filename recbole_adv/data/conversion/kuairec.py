"""KuaiRec (Gao et al., CIKM 2022): what users watched (big matrix, for training), and all that 1 411
users think of 3 327 videos (small matrix, for the test).

The counts are those of version 2.0; the first one had another video in the big matrix.
"""

from __future__ import annotations

import pandas as pd

from recbole_adv.data.conversion.source import Source
from recbole_adv.data.conversion.tables import ITEM, USER, Count, Options, Tables

PUBLISHED = {"train": Count(12530806, 7176, 10728), "test": Count(4676570, 1411, 3327)}
_FILES = {"train": "big_matrix.csv", "test": "small_matrix.csv"}
_COLUMNS = {"user_id": "int64", "video_id": "int64", "watch_ratio": "float64", "timestamp": "float"}
_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")


def read(source: Source, options: Options) -> Tables:
    """Both matrices and, where there, ``item_categories.csv`` and ``user_features.csv``."""
    inter = {}
    for part, name in _FILES.items():
        frame = source.table(name, _COLUMNS, ",".join(_COLUMNS), usecols=list(_COLUMNS))
        frame.columns = [USER, ITEM, "watch_ratio:float", "timestamp:float"]
        inter[part] = frame
    tables = Tables("kuairec", inter, rating="watch_ratio:float", liked=2)
    tables.published = dict(PUBLISHED)
    columns = ["user_id", "item_id"] + (["watch_ratio"] if options.min_rating is None else [])
    tables.load_col = {"inter": columns}
    without = int(inter["test"]["timestamp:float"].isna().sum())
    if without:
        tables.notes.append(
            f"{without} rows of the small matrix have no timestamp, so none is loaded"
        )
    _add_features(source, tables)
    ranked = set(inter["test"][ITEM])
    never = sorted(set(inter["train"][ITEM]) - ranked)
    if never:
        tables.features["eval_mask.item"] = pd.DataFrame({ITEM: never})
        tables.notes.append(
            f"eval_mask.item holds the {len(never)} videos outside of the small matrix"
        )
    return tables


def _add_features(source: Source, tables: Tables) -> None:
    if source.has("item_categories.csv"):
        columns = {"video_id": "int64", "feat": "str"}
        frame = source.table("item_categories.csv", columns, "video_id,feat", usecols=list(columns))
        feat = frame["feat"].str.strip("[] ").str.replace(",", " ").str.split().str.join(" ")
        tables.features["item"] = pd.DataFrame({ITEM: frame["video_id"], "feat:token_seq": feat})
    else:
        tables.notes.append("no item_categories.csv: no features of items")
    if not source.has("user_features.csv"):
        tables.notes.append("no user_features.csv: no features of users")
        return
    with source.open("user_features.csv") as file:
        names = file.readline().decode("utf-8").strip().split(",")
    kinds = {name: "float64" if name in _NUMBERS else "str" for name in names}
    frame = source.table(
        "user_features.csv", kinds | {"user_id": "int64"}, "user_id,...", keep_default_na=False
    )
    frame.columns = [
        USER if n == "user_id" else f"{n}:{'float' if n in _NUMBERS else 'token'}" for n in frame
    ]
    tables.features["user"] = frame
