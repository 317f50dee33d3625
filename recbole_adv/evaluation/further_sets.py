"""Validations and tests beside those that count."""

from __future__ import annotations

from typing import Any

from recbole_adv.errors import ConfigError


def further_valids(prepared) -> dict[str, Any]:
    """Loaders of the validations that select nothing, by name.   prepared: the data of a run."""
    return {name: data for name, data in prepared.others.items() if name.startswith("valid")}


def further_tests(config, prepared) -> dict[str, Any]:
    """Loaders of the tests beside ``test_result``, by the names under which they are reported.

    Raises :class:`ConfigError` where ``test_sets`` names a part without a row, or of training.
    """
    wanted = config["test_sets"]
    if wanted is None:
        return {n: data for n, data in prepared.others.items() if not n.startswith("valid")}
    loaders = {prepared.test_name: prepared.loaders[2], **prepared.others}
    found = {}
    for name, where in wanted.items():
        part = where if where in loaders else name
        if part not in loaders:
            raise ConfigError(
                f"test_sets names {where!r} for {name}, which has no row to test on; the parts "
                f"with some are {', '.join(loaders)}"
            )
        found[name] = loaders[part]
    return found
