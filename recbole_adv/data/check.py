"""Data files, checked before RecBole reads them: one sentence instead of a traceback from pandas.

The good path reads an ``.inter`` file as text for its shape, then with pandas' C engine for the
loaded columns. Line numbers are looked for only after a fault was found.
"""

from __future__ import annotations

import csv
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from recbole_adv.data.needed_columns import needed_columns
from recbole_adv.errors import DataError, suggest

_TYPES = ("token", "token_seq", "float", "float_seq")
_NUMBER = "no finite number{}; write one, remove the row, or declare the column as {}:token"
_ID = "read as a missing value, and RecBole would drop the row{}; write a {}, or remove the row"
_GARBLED = re.compile("[\udc80-\udcff]")  # what cannot be decoded, under errors="surrogateescape"


class _Table(NamedTuple):
    """A data file and what its header says."""

    path: Path
    separator: str
    encoding: str
    types: dict[str, str]  # of all columns, in their order
    loaded: list[str]

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and values of each row that is not blank; quoted values may span lines."""
        with open(self.path, encoding=self.encoding, newline="") as file:
            file.readline()
            lines = (line.replace(self.separator, "\x1f") for line in file)
            reader, number = csv.reader(lines, delimiter="\x1f"), 2
            try:
                for row in reader:
                    if len(row) > 1 or (row and row[0].strip()):
                        yield number, row
                    number = reader.line_num + 2
            except csv.Error as error:
                raise DataError(f"{self.path}, line {number}: {error}; mend the quotes") from error


def check_dataset(config) -> None:
    """Raise :class:`DataError` for the first fault in the files that RecBole is about to read.

    A dataset that is not there passes if RecBole can download it.
    config: RecBole's ``Config``, or a mapping that gives None for a key it lacks.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    if not folder.is_dir():
        _check_downloadable(folder, name)
        return
    parts = config["benchmark_filename"]
    files = [f"{name}.inter"] if parts is None else [f"{name}.{part}.inter" for part in parts]
    ids: dict[str, set] = {config["USER_ID_FIELD"]: set(), config["ITEM_ID_FIELD"]: set()}
    for file in files:
        _check_present(folder, file, f"benchmark_filename {parts}" if parts else "")
        needed = needed_columns(config, of_training=bool(parts) and file == files[0])
        table = _read_header(config, folder / file, "inter", needed)
        for field, values in _check_values(table, list(ids)).items():
            ids[field] |= values
    for field, values in ids.items():
        if len(values) < 2:
            text = f"{folder / files[0]} holds a single {field}, {min(values)!r}"
            raise DataError(f"{text}; give it at least 2 users and 2 items")
    _check_features(config, folder, name)


def _check_downloadable(folder: Path, name: str) -> None:
    root = Path(importlib.util.find_spec("recbole").origin).parent  # type: ignore
    known = yaml.safe_load((root / "properties/dataset/url.yaml").read_text(encoding="utf-8"))
    if name in known:
        return
    home = folder.parent
    siblings = sorted(path.name for path in home.glob("*") if path.is_dir())
    other = f"; set dataset to one that is there, or data_path to the directory that holds {name}"
    near = suggest(name, siblings) or suggest(name, known) or other
    raise DataError(
        f"there is no directory {folder}, and RecBole cannot download {name!r}; data_path {home} holds "
        f"{', '.join(siblings) or 'no dataset'}{near}"
    )


def _check_present(folder: Path, file: str, asked_by: str) -> None:
    if not (folder / file).is_file():
        there = sorted(path.name for path in folder.iterdir())
        raise DataError(
            f"there is no file {file}{asked_by and f' ({asked_by} asks for it)'} in {folder}, "
            f"which holds {', '.join(there) or 'nothing'}{suggest(file, there)}"
        )


def _check_features(config, folder: Path, name: str) -> None:
    """The files beside ``.inter``, of which RecBole skips a missing one without a word."""
    asked = None if config["load_col"] is None else set(config["load_col"]) - {"inter"}
    extra = set(config["additional_feat_suffix"] or ())
    for suffix in sorted(({"user", "item"} if asked is None else asked) | extra):
        path = folder / f"{name}.{suffix}"
        if asked or suffix in extra:
            _check_present(folder, path.name, "load_col" if asked else "additional_feat_suffix")
        if path.is_file():
            key = {"user": "USER_ID_FIELD", "item": "ITEM_ID_FIELD"}.get(suffix)
            _count(_read_header(config, path, suffix, {config[key]: key} if key else {}), "\n")


def _read_header(config, path: Path, suffix: str, needed: Mapping[str, str]) -> _Table:
    encoding, separator = config["encoding"] or "utf-8", config["field_separator"]
    with open(path, encoding=encoding, errors="surrogateescape") as file:
        head = file.readline().rstrip("\n")
    if not head.strip():
        raise DataError(f"{path} is empty; write a header such as user_id:token, then the rows")
    if separator not in head and (other := next((s for s in "\t,;| " if s in head), "")):
        text = f"the header of {path} has no {separator!r} between its columns, got {head!r:.80}"
        raise DataError(f"{text}; set field_separator to {other!r}, or write {separator!r}")
    types = _parse_header(path, head.split(separator))
    asked = "*" if config["load_col"] is None else config["load_col"].get(suffix) or []
    wanted = dict.fromkeys(types if asked == "*" else asked, f"load_col: {suffix}")
    for field, key in {**wanted, **needed}.items():
        if field not in types:
            raise DataError(
                f"{path} has no column {field!r}, which {key} asks for; it has "
                f"{', '.join(types)}{suggest(field, types)}"
            )
    unwanted = (config["unload_col"] or {}).get(suffix) or ()
    loaded = [field for field in types if field in wanted and field not in unwanted]
    for field, key in needed.items():
        if field not in loaded:
            raise DataError(f"{key} asks for {field!r}, which is not loaded; load_col is {asked}")
        if key in ("USER_ID_FIELD", "ITEM_ID_FIELD") and types[field] != "token":
            raise DataError(f"{path} declares {field}:{types[field]}; write {field}:token")
    return _Table(path, separator, encoding, types, loaded)


def _parse_header(path: Path, columns: Sequence[str]) -> dict[str, str]:
    types: dict[str, str] = {}
    if columns[0].startswith("\ufeff"):
        raise DataError(f"{path} starts with a byte order mark; save it as UTF-8 without one")
    for column in columns:
        field, _, kind = column.partition(":")
        if not field or kind not in _TYPES:
            raise DataError(
                f"the header of {path} has {column!r}; write name:type, where type is one of "
                f"{', '.join(_TYPES)}{suggest(kind, _TYPES)}"
            )
        if field in types:
            raise DataError(f"the header of {path} has two columns {field!r}; rename one")
        types[field] = kind
    return types


def _count(table: _Table, text: str) -> Counter:
    """How many lines below the header hold ``text`` n times, for each n; decodes the whole file."""
    try:
        with open(table.path, encoding=table.encoding, newline="\n") as file:
            file.readline()
            return Counter(map(methodcaller("count", text), file))
    except UnicodeDecodeError as error:
        with open(table.path, encoding=table.encoding, errors="surrogateescape") as file:
            number, line = next(x for x in enumerate(file, 1) if _GARBLED.search(x[1]))
        raise DataError(
            f"{table.path}, line {number} is not {table.encoding}, got {line!r:.60}; save the file "
            "as UTF-8, or set encoding to the one it has"
        ) from error


def _check_widths(table: _Table) -> None:
    """Each row must hold as many values as the header has columns."""
    for number, row in table.rows():
        if len(row) != len(table.types):
            quote = "; note the quotation mark" if "\n" in "".join(row) else ""
            raise DataError(
                f"{table.path}, line {number} has {len(row)} columns, got {row!r:.80}; write "
                f"{len(table.types)}, as in the header ({', '.join(table.types)}){quote}"
            )


def _check_values(table: _Table, ids: list[str]) -> dict[str, set]:
    """The distinct values of the id columns, after a look at the shape and the numbers."""
    widths = _count(table, table.separator)
    if not (regular := widths.keys() == {len(table.types) - 1}):
        _check_widths(table)
    floats = [field for field in table.loaded if table.types[field] == "float"]
    kinds = dict.fromkeys(ids, "category") | dict.fromkeys(floats, "float64")
    try:
        frame = pd.read_csv(
            table.path,
            sep=table.separator,
            usecols=[f"{field}:{table.types[field]}" for field in kinds],
            dtype={f"{field}:{table.types[field]}": kind for field, kind in kinds.items()},
            encoding=table.encoding,
            engine="c" if len(table.separator) == 1 else "python",
        ).rename(columns=lambda column: column.partition(":")[0])
    except ValueError as error:
        _check_columns(table, dict.fromkeys(floats, _is_number), _NUMBER)
        raise DataError(f"{table.path} cannot be read: {error}; mend its quotes") from error
    if frame.empty:
        raise DataError(f"{table.path} has a header and no rows; add at least 2 interactions")
    if not np.isfinite(frame[floats].to_numpy()).all():
        _check_columns(table, dict.fromkeys(floats, _is_number), _NUMBER)
    values = {field: set(frame[field].cat.categories) for field in ids}
    if frame[ids].isna().to_numpy().any():
        _check_columns(table, {field: values[field].__contains__ for field in ids}, _ID)
    if regular and widths.total() != len(frame):
        _check_widths(table)
        number, row = next((x for x in table.rows() if "\n" in "".join(x[1])), (2, []))
        text = f"{table.path}, line {number}: a quotation mark takes in the lines below it"
        raise DataError(f"{text}, got {row!r:.80}; remove it")
    return values


def _check_columns(table: _Table, tests: Mapping[str, Callable], why: str) -> None:
    """Name the first value that fails the test of its column, and how many do."""
    _check_widths(table)
    for field, is_good in tests.items():
        place = list(table.types).index(field)
        bad = [(number, row[place]) for number, row in table.rows() if not is_good(row[place])]
        if bad:
            (number, value), more = bad[0], f" ({len(bad)} such rows)" if len(bad) > 1 else ""
            shown = f"{value!r}," if value.strip() else "empty,"
            text = f"{table.path}, line {number}: {field} is {shown} {why.format(more, field)}"
            raise DataError(text)


def _is_number(value: str) -> bool:
    try:
        return "_" not in value and bool(np.isfinite(float(value)))
    except ValueError:
        return False
