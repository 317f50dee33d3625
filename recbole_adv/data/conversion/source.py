"""The original files: a folder, or the archive it was published as, which is not unpacked."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from recbole_adv.errors import DataError, suggest

_DEPTH = 3  # folders below the given one in which a file is looked for


class Source:
    """Files by their names, wherever in the folder or archive they lie.

    Raises:
        DataError: there is neither, or the archive is damaged.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self.archive: zipfile.ZipFile | tarfile.TarFile | None = None
        try:
            if self.path.is_dir():
                globs = ("/".join("*" * depth) for depth in range(1, _DEPTH + 1))
                self.members = [
                    str(f) for g in globs for f in sorted(self.path.glob(g)) if f.is_file()
                ]
            elif zipfile.is_zipfile(self.path):
                self.archive = zipfile.ZipFile(self.path)
                self.members = self.archive.namelist()
            elif self.path.is_file() and tarfile.is_tarfile(self.path):
                self.archive = tarfile.open(self.path)
                self.members = [m.name for m in self.archive.getmembers() if m.isfile()]
            else:
                what = "is no archive" if self.path.exists() else "does not exist"
                raise DataError(
                    f"--source {path!r} {what}; write the folder of the original files, or the .zip "
                    "or .tar.gz they came in"
                )
        except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise DataError(f"{path} cannot be read ({error}); fetch it again") from error

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._member(name) is not None

    def _member(self, name: str) -> str | None:
        found = [m for m in self.members if Path(m).name == name and "__MACOSX" not in m]
        return min(found, key=lambda member: (member.count("/"), member), default=None)

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file's bytes; a DataError if it is missing, or damaged where the archive is read."""
        member = self._member(name)
        if member is None:
            names = sorted({Path(m).name for m in self.members})
            raise DataError(
                f"there is no {name} in {self.path}, which holds {', '.join(names[:12]) or 'nothing'}"
                + (" ..." if len(names) > 12 else "")
                + suggest(name, names)
            )
        try:
            if isinstance(self.archive, zipfile.ZipFile):
                file = self.archive.open(member)
            elif self.archive is not None:
                file = self.archive.extractfile(member)
            else:
                file = open(member, "rb")
            with file:
                yield file
        except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise DataError(
                f"{name} in {self.path} cannot be read ({error}); fetch it again"
            ) from error

    def lines(self, name: str, encoding: str = "utf-8") -> list[str]:
        """The lines of a text file, without their ends and without empty ones at the end."""
        with self.open(name) as file:
            try:
                return file.read().decode(encoding).rstrip().splitlines()
            except UnicodeDecodeError as error:
                raise DataError(f"{name} is not {encoding} ({error}); fetch it again") from error

    def table(self, name: str, kinds: dict[str, str], wanted: str, **how) -> pd.DataFrame:
        """A file of rows, by pandas' C reader.

        kinds: the type of each column that is read: ``int64``, ``float64`` (finite), ``float`` (may be
        missing) or ``str``; wanted: what a row looks like, for messages; how: arguments of
        ``pandas.read_csv``.
        """
        try:
            with self.open(name) as file:
                frame = pd.read_csv(file, dtype=kinds, engine="c", **how)[list(kinds)]
            if not isinstance(frame.index, pd.RangeIndex):  # pandas takes columns too many for it
                raise ValueError("more columns")
        except DataError:
            raise
        except (ValueError, KeyError, OverflowError) as error:  # pandas' own errors are ValueErrors
            raise DataError(
                f"{name} must have rows {wanted}, got something else "
                f"({' '.join(str(error).split())[:150]}); fetch it again"
            ) from error
        for column, kind in kinds.items():
            if kind == "float64" and not np.isfinite(frame[column]).all():
                row = int(np.flatnonzero(~np.isfinite(frame[column]))[0])
                raise DataError(
                    f"{name}: row {row + 1} of the data has no number for {column}; rows are {wanted}"
                )
        return frame
