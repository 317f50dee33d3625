"""Environments that one run infers and another reads: ``environments.inter``.

An atomic file of RecBole's kind, ``user_id  item_id  environment``, a line for each training row.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_adv.data.id_file import read_ids
from recbole_adv.errors import ConfigError, DataError

NAME = "environments.inter"
_COLUMN = "environment"


def write_environments(folder: Path, dataset, environment: Tensor) -> Path:
    """Write the environment [N] of each training row of a dataset; returns the file."""
    rows = dataset.inter_feat
    columns = {
        f"{field}:token": dataset.id2token(field, rows[field].numpy())
        for field in (dataset.uid_field, dataset.iid_field)
    }
    columns[f"{_COLUMN}:token"] = environment.cpu().numpy()
    file, aside = folder / NAME, folder / f"{NAME}.tmp"
    separator = dataset.config["field_separator"] or "\t"
    pd.DataFrame(columns).to_csv(aside, sep=separator, index=False)
    os.replace(aside, file)
    return file


def read_environments(path: str, dataset, n_environments: int | None) -> Tensor:
    """The environment of each training row; rows of one user and item in the order of the file.

    Returns [N] int64 in 0..E-1, in the order of the names (numbers by value).

    Raises:
        DataError: the file does not have every training row; ConfigError: it has another E.
    """
    path = str(Path(path) / NAME) if Path(path).is_dir() else path
    ids = read_ids(path, dataset, "environment_file", more=(_COLUMN,))
    rows = dataset.inter_feat
    user, item = rows[dataset.uid_field].numpy(), rows[dataset.iid_field].numpy()
    there = _numbered(ids.user, ids.item).get_indexer(_numbered(user, item))
    if (there < 0).any():
        raise DataError(
            f"environment_file {path!r} has {int((there >= 0).sum())} of the {len(user)} training "
            "rows; it must come from a run on the same data and the same split (seed, eval_args)"
        )
    names = sorted(
        set(ids.more[_COLUMN].tolist()), key=lambda name: (not name.isdigit(), len(name), name)
    )
    if len(names) < 2:
        raise ConfigError(
            f"environment_file {path!r} puts all rows into one environment, {names[0]!r}; at least 2 "
            "are needed"
        )
    if n_environments not in (None, len(names)):
        raise ConfigError(
            f"environment_file {path!r} has the environments {', '.join(names)}, got n_environments "
            f"{n_environments}; write n_environments: {len(names)}"
        )
    code = pd.Index(names).get_indexer(ids.more[_COLUMN])
    return torch.from_numpy(code[there].astype(np.int64))


def _numbered(user: np.ndarray, item: np.ndarray) -> pd.MultiIndex:
    """(user, item, how many such rows came before) of each row."""
    rows = pd.DataFrame({"user": user, "item": item})
    rows["before"] = rows.groupby(["user", "item"]).cumcount()
    return pd.MultiIndex.from_frame(rows)
