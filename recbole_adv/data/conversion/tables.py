"""What a converter hands over, and the checks and files that are the same for all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from recbole_adv.data.leak_check import among
from recbole_adv.data.shift_split import Draw, Rows, split_rows
from recbole_adv.errors import ConfigError, DataError

USER, ITEM = "user_id:token", "item_id:token"


class Options(NamedTuple):
    """min_rating: keep the rows with at least this, for ranking; valid_share: of the training rows
    that become validation where none is published; seed: of that; name: of the data set."""

    min_rating: float | None = None
    valid_share: float = 0.1
    seed: int = 2020
    name: str | None = None


class Count(NamedTuple):
    """How much a file holds."""

    rows: int
    users: int
    items: int

    def __str__(self) -> str:
        return f"{self.rows} rows of {self.users} users and {self.items} items"


@dataclass
class Tables:
    """A data set in RecBole's columns (``name:type``).

    inter: interactions by part, in the order of benchmark_filename; a single part ``""`` where none
    are published; features: by suffix; rating: the column that ``min_rating`` is compared with, and
    liked: from where on it means that a user liked an item; published: what each original file
    holds, by part; notes: what a user should know; load_col: of the configuration.
    """

    name: str
    inter: dict[str, pd.DataFrame]
    features: dict[str, pd.DataFrame] = field(default_factory=dict)
    rating: str | None = None
    liked: float | None = None
    published: dict[str, Count] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    load_col: dict[str, list[str]] | None = None


def count_of(frame: pd.DataFrame) -> Count:
    """Rows, users and items of interactions."""
    return Count(len(frame), frame[USER].nunique(), frame[ITEM].nunique())


def check_counts(tables: Tables) -> None:
    """Raise :class:`DataError` for a part that is not as large as was published."""
    for part, expected in tables.published.items():
        found = count_of(tables.inter[part])
        if found != expected:
            raise DataError(
                f"{tables.name}: {part or 'the interactions'} should hold {expected}, got {found}; "
                "the file is cut short or of another version: fetch it again, or write "
                "--no-check-counts"
            )


def keep_positives(tables: Tables, at_least: float | None) -> None:
    """Keep the rows rated ``at_least``; what a test had rated besides becomes the pool to rank."""
    if at_least is None:
        return
    if tables.rating is None:
        raise ConfigError(
            f"--min-rating {at_least:g} needs ratings, and {tables.name} has none; leave it out"
        )
    pool = tables.inter.get("test") if "eval_mask.item" not in tables.features else None
    for part, frame in tables.inter.items():
        kept = frame[frame[tables.rating] >= at_least]
        if kept.empty:
            raise DataError(
                f"--min-rating {at_least:g} leaves no row of {part or tables.name}, whose "
                f"{tables.rating.partition(':')[0]} goes up to {frame[tables.rating].max():g}; write "
                "less"
            )
        tables.inter[part] = kept.drop(columns=tables.rating)
    if pool is not None:
        tables.features["test_pool.inter"] = pool[[USER, ITEM]]


def draw_valid(tables: Tables, share: float, seed: int) -> None:
    """Take a validation part out of the published training rows, if none is published.

    Uniformly among user-item pairs; each user and each item keeps one for training.
    """
    if "train" not in tables.inter or "valid" in tables.inter:
        return
    frame = tables.inter["train"]
    user, item = (pd.factorize(frame[column])[0] + 1 for column in (USER, ITEM))
    part, _ = split_rows(Rows(user, item), [Draw("valid", "id", share)], None, seed)
    valid = {"valid": frame[part == 1]}
    rest = {name: other for name, other in tables.inter.items() if name != "train"}
    tables.inter = {"train": frame[part == 0], **valid, **rest}
    tables.notes.append(
        f"valid is {share:g} of the published training rows, drawn with seed {seed}"
    )


def note_leaks(tables: Tables) -> None:
    """Say how many rows of a later part are user-item pairs of an earlier one."""
    names = list(tables.inter)
    if len(names) < 2:
        return
    every = pd.concat([tables.inter[name][[USER, ITEM]] for name in names], ignore_index=True)
    user, item = (pd.factorize(every[column])[0] for column in (USER, ITEM))
    pairs = user.astype(np.int64) * (int(item.max()) + 1) + item
    of_part = dict(
        zip(names, np.split(pairs, np.cumsum([len(tables.inter[n]) for n in names])[:-1]))
    )
    for name in names[1:]:
        found = int(among(of_part[name], np.sort(of_part["train"])).sum())
        if found:
            tables.notes.append(
                f"{found} of {len(of_part[name])} rows of {name} are user-item pairs of train; "
                "drop_leaks: True removes them"
            )


def settings_of(tables: Tables, folder: Path) -> dict[str, object]:
    """The configuration with which the written files are used: ranking, or labels of test rows."""
    settings: dict[str, object] = {"dataset": tables.name, "data_path": str(folder.parent)}
    settings["load_col"] = tables.load_col
    if "" in tables.inter:
        return settings
    settings["benchmark_filename"] = list(tables.inter)
    if tables.rating in tables.inter["train"]:
        labelled = {"threshold": {tables.rating.partition(":")[0]: tables.liked}}
        labelled |= {"eval_args": {"mode": "labeled"}, "train_neg_sample_args": None}
        return {**settings, **labelled, "metrics": ["AUC", "LogLoss"], "valid_metric": "AUC"}
    for key, suffix in (("test_pool", "test_pool.inter"), ("eval_mask", "eval_mask.item")):
        if suffix in tables.features:
            settings[key] = str(folder / f"{tables.name}.{suffix}")
    return settings


def write_tables(tables: Tables, data_path: str) -> Path:
    """Write ``data_path/<name>/``, aside and then renamed.

    Raises:
        ConfigError: the folder is there already; DataError: it cannot be written.
    """
    folder = Path(data_path) / tables.name
    if Path(tables.name).name != tables.name:
        raise ConfigError(
            f"--name must be a name, no path, got {tables.name!r}; write one such as my-data"
        )
    if folder.exists():
        raise ConfigError(
            f"{folder} exists already; remove it, or write another --output or --name"
        )
    aside = folder.with_name(f".{tables.name}-{os.getpid()}.tmp")
    made = [parent for parent in aside.parents if not parent.exists()]
    try:
        aside.mkdir(parents=True)
        for file, frame in files_of(tables).items():
            frame.to_csv(aside / file, sep="\t", index=False)
        text = yaml.safe_dump(settings_of(tables, folder), sort_keys=False)
        (aside / f"{tables.name}.yaml").write_text(text, encoding="utf-8")
        os.replace(aside, folder)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        if isinstance(error, OSError):
            raise DataError(
                f"--output {data_path!r} cannot be written ({error.strerror}); write another one"
            ) from error
        raise
    return folder


def files_of(tables: Tables) -> Mapping[str, pd.DataFrame]:
    """The frames by the names of their files."""
    inter = {
        f"{tables.name}.{part}.inter" if part else f"{tables.name}.inter": frame
        for part, frame in tables.inter.items()
    }
    return {**inter, **{f"{tables.name}.{end}": frame for end, frame in tables.features.items()}}
