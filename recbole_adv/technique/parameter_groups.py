"""A player's parameters in groups, for figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from recbole_adv.errors import ConfigError
from recbole_adv.technique.parameter_choice import tables_of

REST = "rest"
_INNER = "backbone."  # what wraps another model has no submodules of interest beside it


def by_submodule(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, list[str]]:
    """The names of the parameters by their first submodule, embedding tables apart from its layers.

    A parameter of the model's own is a group; below ``backbone`` it is its submodules that count.
    """
    tables = tables_of(model)
    groups: dict[str, list[str]] = {}
    for name in parameters:
        groups.setdefault(name.removeprefix(_INNER).split(".")[0], []).append(name)
    found: dict[str, list[str]] = {}
    for group, names in groups.items():
        apart = [name for name in names if id(parameters[name]) in tables]
        if 0 < len(apart) < len(names):
            found[f"{group}.tables"] = apart
            names = [name for name in names if name not in apart]
        found[group] = names
    return found


def by_pattern(
    parameters: Mapping[str, nn.Parameter], patterns: Sequence[str]
) -> dict[str, list[str]]:
    """The names by the first pattern that is found in them, what none matches in ``rest``."""
    groups: dict[str, list[str]] = {pattern: [] for pattern in [*patterns, REST]}
    for name in parameters:
        group = next((pattern for pattern in patterns if re.search(pattern, name)), REST)
        groups[group].append(name)
    return {group: names for group, names in groups.items() if names}


def check_patterns(key: str, patterns: Sequence[str]) -> None:
    """Raise :class:`ConfigError` unless each is a regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ConfigError(
                f"{key} must hold regular expressions, got {pattern!r} ({error}); write "
                f"{key}: ['embedding', 'layers']"
            ) from error
