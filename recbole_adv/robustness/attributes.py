"""Attributes of users as classes, read from RecBole's file ``<dataset>.user``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_adv.errors import ConfigError, DataError, suggest

LEAST = 5
"""A class of fewer users is left out: neither training nor test would have enough of it."""
_MANY = 10  # an attribute of more different numbers is cut into quantiles


@dataclass(frozen=True)
class Attribute:
    """An attribute by the users' tokens.

    Attributes:
        value: the class of each user, in words.
        note: how it was made and what was left out; empty if neither.
    """

    name: str
    value: Mapping[str, str]
    note: str


def file_of(config) -> Path:
    """The file of users' features of a run's data."""
    return Path(config["data_path"]) / f"{config['dataset']}.user"


def check_attributes(config, names: list[str]) -> None:
    """Raise :class:`ConfigError` for an attribute that the file does not have; its head is read."""
    file, separator = file_of(config), config["field_separator"] or "\t"
    try:
        with open(file, encoding=config["encoding"] or "utf-8") as lines:
            head = lines.readline().rstrip("\r\n").split(separator)
    except OSError as error:
        raise ConfigError(
            f"attributes of users are read from {file}, which cannot be opened ({error.strerror}); "
            "leak-probe needs data with such a file, as ml-100k has"
        ) from error
    kinds = dict(column.partition(":")[::2] for column in head)
    known = [name for name in kinds if name != config["USER_ID_FIELD"]]
    for name in names:
        if name not in known:
            near = suggest(name, known) or f"; write one of {', '.join(known)}"
            raise ConfigError(f"--attribute: {file.name} has no column {name!r}{near}")
        if kinds[name].endswith("_seq"):
            raise ConfigError(
                f"--attribute must be one value a user, got {name!r} of type {kinds[name]!r}; write "
                f"one of {', '.join(n for n in known if not kinds[n].endswith('_seq'))}"
            )


def read_attribute(config, name: str, bins: int) -> Attribute:
    """An attribute of all users that have one.

    Numbers of more than ten values are cut into ``bins`` quantiles of users.
    """
    frame = pd.read_csv(
        file_of(config),
        sep=config["field_separator"] or "\t",
        dtype=str,
        encoding=config["encoding"] or "utf-8",
        keep_default_na=False,
    )
    frame.columns = [str(column).partition(":")[0] for column in frame.columns]
    frame = frame[frame[name].str.strip() != ""]
    value, note = frame[name], ""
    number = pd.to_numeric(value, errors="coerce")
    if number.notna().all() and number.nunique() > _MANY:
        cut = pd.qcut(number, bins, duplicates="drop")
        value = cut.astype(str)
        note = f"{name} in {cut.cat.categories.size} quantiles"
    return Attribute(name, dict(zip(frame[config["USER_ID_FIELD"]], value)), note)


def labels_of(attribute: Attribute, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Which of some users have a class that can be learned, [n] bool, and the classes of those.

    Returns also what was left out, in words. Raises :class:`DataError` where no two classes are left.
    """
    value = np.array([attribute.value.get(str(token), "") for token in tokens])
    names, count = np.unique(value[value != ""], return_counts=True)
    rare = names[count < LEAST]
    kept = (value != "") & ~np.isin(value, rare)
    left = len(names) - len(rare)
    if left < 2:
        raise DataError(
            f"--attribute {attribute.name}: {left} of {len(names)} classes have {LEAST} users of the "
            "data or more, and 2 are needed; choose another attribute, or fewer --bins"
        )
    said = [attribute.note] if attribute.note else []
    if len(rare):
        said.append(f"{len(rare)} classes of fewer than {LEAST} users left out")
    if not kept.all():
        said.append(f"{int((~kept).sum())} of {len(kept)} users left out")
    return kept, value[kept], "; ".join(said)
