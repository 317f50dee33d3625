"""The MovieLens data sets of GroupLens, in their three forms of files.

100K: ``u.data``, ``u.user``, ``u.item``; 1M and 10M: ``.dat`` files with ``::``; from 20M on CSV.
Columns are those of RecBole's own copies.
"""

from __future__ import annotations

import pandas as pd

from recbole_adv.data.conversion.source import Source
from recbole_adv.data.conversion.tables import ITEM, USER, Count, Options, Tables
from recbole_adv.errors import DataError

PUBLISHED = {
    "ml-100k": Count(100000, 943, 1682),
    "ml-1m": Count(1000209, 6040, 3706),
    "ml-10m": Count(10000054, 69878, 10677),
    "ml-20m": Count(20000263, 138493, 26744),
    "ml-25m": Count(25000095, 162541, 59047),
    "ml-32m": Count(32000204, 200948, 84432),
}
_RATING = {"user": "int64", "item": "int64", "rating": "float64", "timestamp": "int64"}
_GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir "
    "Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()


def reader(name: str):
    """The function ``read`` of one of the data sets."""
    form = {"ml-100k": _read_100k, "ml-1m": _read_dat, "ml-10m": _read_dat}.get(name, _read_csv)

    def read(source: Source, options: Options) -> Tables:
        tables = Tables(name, {}, rating="rating:float", published={"": PUBLISHED[name]})
        form(source, tables)
        tables.inter[""].columns = [USER, ITEM, "rating:float", "timestamp:float"]
        return tables

    return read


def _read_100k(source: Source, tables: Tables) -> None:
    tables.inter[""] = source.table(
        "u.data",
        _RATING,
        "user<TAB>item<TAB>rating<TAB>timestamp",
        sep="\t",
        header=None,
        names=list(_RATING),
    )
    users = _split(source, "u.user", "|", 5, "latin-1")
    tables.features["user"] = _users(users, ["age", "gender", "occupation", "zip_code"])
    movies = _split(source, "u.item", "|", 5 + len(_GENRES), "latin-1")
    genres = [[g for g, flag in zip(_GENRES, row[5:]) if flag == "1"] for row in movies]
    tables.features["item"] = _movies([(r[0], r[1]) for r in movies], genres)


def _read_dat(source: Source, tables: Tables) -> None:
    # A '::' is two separators of one character, which the fast reader can take.
    tables.inter[""] = source.table(
        "ratings.dat",
        _RATING,
        "user::item::rating::timestamp",
        sep=":",
        header=None,
        names=[name for column in _RATING for name in (column, f"after_{column}")][:-1],
    )
    if tables.name == "ml-1m":
        users = _split(source, "users.dat", "::", 5, "latin-1")
        tables.features["user"] = _users(users, ["gender", "age", "occupation", "zip_code"])
    encoding = "latin-1" if tables.name == "ml-1m" else "utf-8"
    movies = _split(source, "movies.dat", "::", 3, encoding)
    tables.features["item"] = _movies(
        [(r[0], r[1]) for r in movies], [_listed(r[2]) for r in movies]
    )


def _read_csv(source: Source, tables: Tables) -> None:
    columns = dict(zip(("userId", "movieId", "rating", "timestamp"), _RATING.values()))
    tables.inter[""] = source.table(
        "ratings.csv", columns, ",".join(columns), usecols=list(columns)
    )
    columns = {"movieId": "str", "title": "str", "genres": "str"}
    movies = source.table("movies.csv", columns, ",".join(columns), keep_default_na=False)
    genres = [_listed(text) for text in movies["genres"]]
    tables.features["item"] = _movies(zip(movies["movieId"], movies["title"]), genres)


def _split(source: Source, name: str, separator: str, width: int, encoding: str) -> list[list[str]]:
    """The lines of a small file; its values may hold quotation marks, which mean nothing."""
    rows = [line.split(separator) for line in source.lines(name, encoding)]
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise DataError(
                f"{name}, line {number} must have {width} values between {separator!r}, got "
                f"{len(row)}; fetch it again"
            )
    return rows


def _users(rows: list[list[str]], names: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[USER, *(f"{name}:token" for name in names)])


def _listed(text: str) -> list[str]:
    return [] if text == "(no genres listed)" else text.split("|")


def _movies(titles, genres) -> pd.DataFrame:
    """Items with the year that ends the title, as in ``Toy Story (1995)``, in a column of its own."""
    frame = pd.DataFrame(titles, columns=[ITEM, "title"])
    parts = frame["title"].str.strip().str.extract(r"^(.*?)\s*(?:\((\d{4})\))?$")
    frame["movie_title:token_seq"], frame["release_year:token"] = parts[0], parts[1].fillna("")
    frame["class:token_seq"] = [" ".join(names) for names in genres]
    return frame.drop(columns="title")
