"""A split as a file: which part each row belongs to, and of which data."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_adv.errors import ConfigError, DataError


@dataclass(frozen=True)
class Split:
    """part: [N] int8, indices into ``names``, of which the first is train; settings: the keys that
    made it; fingerprint: of the data."""

    part: np.ndarray
    names: list[str]
    settings: dict[str, Any]
    fingerprint: str


def fingerprint(user: np.ndarray, item: np.ndarray) -> str:
    """The same for the same interactions in the same order, whatever numbers their ids have.

    A model that loads more columns or a knowledge graph may number items otherwise.
    """
    digest = hashlib.sha256()
    for ids in (user, item):
        digest.update(pd.factorize(ids)[0].astype("<i8").tobytes())
    return digest.hexdigest()


def save_split(path: Path, split: Split) -> None:
    """Write it aside and rename it."""
    aside = path.with_name(f"{path.name}.tmp")
    with open(aside, "wb") as file:
        np.savez_compressed(
            file,
            part=split.part,
            names=np.array(split.names),
            settings=json.dumps(split.settings),
            fingerprint=split.fingerprint,
        )
    os.replace(aside, path)


def load_split(path: str, settings: dict[str, Any] | None, user, item) -> Split:
    """A saved split, for the interactions ``user``, ``item`` [N].

    settings: the keys of this run if it says how to split, too, which must then agree.

    Raises:
        DataError: the file is no split, or one of other data; ConfigError: other keys made it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            split = Split(
                file["part"],
                file["names"].tolist(),
                json.loads(str(file["settings"])),
                str(file["fingerprint"]),
            )
        if split.part.dtype != np.int8 or not 0 <= split.part.min() <= split.part.max():
            raise ValueError("its parts are no numbers of parts")
        split.names[split.part.max()]
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"shift_file {path!r} holds no split ({' '.join(str(error).split())[:100]}); write the "
            "path of a run's split.npz"
        ) from error
    if split.fingerprint != fingerprint(user, item):
        raise DataError(
            f"shift_file {path!r} splits other interactions: {len(split.part)} there and "
            f"{len(user)} here; use the data set, the filters and the kind of model (sequential or "
            "not) it was made with"
        )
    for key, value in (settings or {}).items():
        if split.settings.get(key, value) != value and key not in ("shift_test", "shift_valid"):
            raise ConfigError(
                f"shift_file {path!r} was made with {key} {split.settings[key]!r}, got {value!r}; "
                "leave shift_split and its keys out, or shift_file"
            )
    return split


def part_named(split: Split, name: str) -> int:
    """The number of a part; a ConfigError if a saved split has none of that name."""
    if name not in split.names:
        key, _, which = name.partition("_")
        there = [n.partition("_")[2] for n in split.names if n.startswith(f"{key}_")]
        raise ConfigError(
            f"the split has no part {name}, which shift_{key}: [{which}, ...] asks for; it has "
            f"{', '.join(split.names)}; write shift_{key}: [{', '.join(there)}]"
        )
    return split.names.index(name)
