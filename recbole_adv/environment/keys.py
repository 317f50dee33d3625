"""The keys ``environment_*``, checked before data is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_adv.environment.environment_file import NAME
from recbole_adv.environment.revised import FIGURES
from recbole_adv.errors import ConfigError

_READ_BY = {
    "environment_column": ("column",),
    "environment_features": ("kmeans",),
    "environment_file": ("inferred",),
    "environment_interval": FIGURES,
}
_OF_EQUAL_MASS = ("item_popularity", "user_activity", "time", "random")
_BALANCED = (*_OF_EQUAL_MASS, "user_group", "kmeans", *FIGURES)


def check_environments(final: Mapping[str, Any], given: Mapping[str, Any], model: str) -> None:
    """Raise :class:`ConfigError` for the first value of these keys that cannot be used.

    final: the configuration; given: what the user wrote; model: its name.
    """
    source = final.get("environment_source")
    for key, sources in _READ_BY.items():
        if key in given and given[key] is not None and source not in sources:
            _refuse(key, given[key], " or ".join(sources), source, model)
    if source == "column" and not final.get("environment_column"):
        raise ConfigError(
            "environment_source: column needs the name of a column, got environment_column None; "
            "write environment_column: country, or another column that is loaded"
        )
    _check_features(final.get("environment_features"))
    if source == "inferred":
        _check_file(final.get("environment_file"))
    if final.get("environment_balanced") and final.get("official_ties"):
        raise ConfigError(
            "official_ties puts every row where its loss is least, got environment_balanced: True; "
            "leave one of them out"
        )
    if final.get("environment_balanced") and source is not None and source not in _BALANCED:
        raise ConfigError(
            f"environment_balanced cannot be had of environment_source {source!r}, whose environments "
            f"are given; leave it out, or write one of {', '.join(_BALANCED)}"
        )


def _refuse(key: str, value: Any, wanted: str, source: Any, model: str) -> None:
    if source is None:
        raise ConfigError(
            f"{key} is of models with an environment_source, which {model} has not, got {value!r}; "
            "leave it out"
        )
    raise ConfigError(
        f"{key} {value!r} is of environment_source {wanted}, got {source!r}; write "
        f"environment_source: {wanted.split()[0]}, or leave {key} out"
    )


def _check_features(features: Any) -> None:
    if features is None:
        return
    names = [name for name in features if isinstance(name, str) and name]
    if not names or len(set(names)) < len(features):
        raise ConfigError(
            f"environment_features must be a list of different names of columns, got {features!r}; "
            "write environment_features: [age, timestamp]"
        )


def _check_file(path: str | None) -> None:
    if path is None:
        raise ConfigError(
            "environment_source: inferred needs a file, got environment_file None; write the run "
            f"directory of an EIIL or InvPref run, or its {NAME}"
        )
    file = Path(path) / NAME if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ConfigError(
            f"there is no file {str(file)!r}, which environment_file names; runs of EIIL and InvPref, "
            "and those whose environments are revised, write one when they end"
        )
