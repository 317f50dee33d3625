"""The test metrics of each user, kept for comparisons that pair users (``save_user_metrics``)."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_adv.errors import DataError

FILE = "user_metrics.npz"


def table_of_users(users: np.ndarray, values: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """A row for each user, a column for each metric; a user with several rows has their mean.

    users: [n] the data set's own names of the users; values: [n] of each metric.
    """
    frame = pd.DataFrame(dict(values), index=pd.Index(users, name="user"))
    return frame if frame.index.is_unique else frame.groupby(level=0, sort=False).mean()


def save(folder: Path, tests: Mapping[str, pd.DataFrame]) -> None:
    """Write :data:`FILE`: arrays of names and float32, no object.

    tests: the table of each test by its name, "" the one that gives ``test_result``.
    """
    arrays = {}
    for name, table in tests.items():
        arrays[f"{name}/users"] = table.index.to_numpy().astype(str)
        arrays[f"{name}/metrics"] = np.array(list(table.columns), dtype=str)
        arrays[f"{name}/values"] = table.to_numpy(dtype=np.float32)
    aside = folder / f"{FILE}.tmp"
    with open(aside, "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(aside, folder / FILE)


def load(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables that :func:`save` wrote into a run's directory; none where there is no file."""
    file = folder / FILE
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {
                key.rpartition("/")[0]: pd.DataFrame(
                    arrays[f"{key.rpartition('/')[0]}/values"].astype(np.float64),
                    index=arrays[key],
                    columns=arrays[f"{key.rpartition('/')[0]}/metrics"],
                )
                for key in arrays
                if key.endswith("/users")
            }
    except FileNotFoundError:
        return {}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{file} holds no metrics of users ({type(error).__name__}); take it out, or run again "
            "with save_user_metrics: True"
        ) from error
