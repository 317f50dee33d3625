"""What a user did wrong, in one sentence each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecBoleAdvError(Exception):
    """A mistake the user can mend: what is wrong, the value found, what to write instead.

    The command line prints the sentence without a traceback and exits with 2.
    """


class ConfigError(RecBoleAdvError, ValueError):
    """A configuration key, a model, a dataset or a value that cannot be used."""


class DataError(RecBoleAdvError, ValueError):
    """Data files that are missing, empty, broken or too small to train on."""


class CheckpointError(RecBoleAdvError, RuntimeError):
    """A checkpoint that cannot be written, read or trusted."""


class TrainingError(RecBoleAdvError, RuntimeError):
    """Training that cannot go on: a non-finite loss, a graph kept from an earlier batch."""


class ProcessError(RecBoleAdvError, RuntimeError):
    """One of several processes that is gone or does not answer."""


def suggest(name: str, candidates: Iterable[str]) -> str:
    """``"; did you mean X or Y?"`` for the candidates nearest to ``name``, else an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.lower(), by_lower, n=2, cutoff=0.6)
    if not near:
        return ""
    return "; did you mean " + " or ".join(by_lower[key] for key in near) + "?"
