"""Yahoo! R3, "Music ratings for User Selected and Randomly Selected songs" (version 1.0).

Lines ``user<TAB>song<TAB>rating``: 15 400 users' own ratings for training, and for 5 400 of them 10
songs that were drawn at random for the test.
"""

from __future__ import annotations

from recbole_adv.data.conversion.source import Source
from recbole_adv.data.conversion.tables import ITEM, USER, Count, Options, Tables
from recbole_adv.errors import DataError

PUBLISHED = {"train": Count(311704, 15400, 1000), "test": Count(54000, 5400, 1000)}
_FILE = "ydata-ymusic-rating-study-v1_0-{}.txt"
_COLUMNS = {"user": "int64", "song": "int64", "rating": "int64"}


def read(source: Source, options: Options) -> Tables:
    """The files of training and test."""
    inter = {}
    for part in PUBLISHED:
        name = _FILE.format(part)
        frame = source.table(
            name, _COLUMNS, "user<TAB>song<TAB>rating", sep="\t", header=None, names=list(_COLUMNS)
        )
        if not frame["rating"].between(1, 5).all():
            wrong = frame["rating"][~frame["rating"].between(1, 5)].iloc[0]
            raise DataError(f"{name} must hold ratings 1 to 5, got {wrong}; fetch it again")
        frame.columns = [USER, ITEM, "rating:float"]
        inter[part] = frame
    return Tables("yahoo-r3", inter, rating="rating:float", liked=4, published=dict(PUBLISHED))
