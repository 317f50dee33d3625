"""From the names in ``techniques`` to objects, one for each player that a technique concerns."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from recbole_adv.class_path import class_at
from recbole_adv.errors import ConfigError, suggest
from recbole_adv.game.optimizer import setting
from recbole_adv.options import (
    properties_dir,
    read_options,
    technique_names,
    technique_options,
)
from recbole_adv.technique.base import Technique


def find_technique(technique: str | type) -> tuple[str, type[Technique]]:
    """Name and class of ``ema``, of a subclass of Technique, or of ``file.py:Class``.

    The name is the prefix of its keys: for a class of the user's, ``MyNoise``, it is ``my_noise``.
    """
    if isinstance(technique, str) and ":" in technique:
        technique = class_at(technique, "technique")
    if isinstance(technique, type):
        if not issubclass(technique, Technique):
            raise ConfigError(f"{technique.__name__} is no technique; derive it from Technique")
        return _snake(technique.__name__), technique
    if technique not in technique_names():
        names = technique_names()
        hint = suggest(str(technique), names) or f"; there are {', '.join(names)}"
        raise ConfigError(f"there is no technique {technique!r}{hint}")
    module = importlib.import_module(f"recbole_adv.technique.{technique}")
    own = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Technique)]
    return technique, next(c for c in own if c.__name__.lower() == technique.replace("_", ""))


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def techniques_of(
    config: Mapping[str, Any], player: str, first: bool
) -> list[tuple[str, Technique]]:
    """The techniques of a player, with their names, in the order of the configuration.

    ``<player>_techniques`` if that is given, else those of ``techniques`` that concern the player.
    RecBole's ``clip_grad_norm`` becomes a last one.

    Raises :class:`ConfigError`.
    """
    own = config.get(f"{player}_techniques")
    named = own if own is not None else config.get("techniques")
    made: dict[str, Technique] = {}
    for wanted in named or ():
        name, cls = find_technique(wanted)
        if name in made:
            raise ConfigError(f"techniques names {name!r} twice: {list(named)}")
        if own is not None or first or cls.concerns == "all":
            made[name] = cls(**arguments_of(config, player, name, cls))
    clip = setting(config, player, "clip_grad_norm")
    if clip:
        _, cls = find_technique("clip_norm")
        if "clip_norm" in made:
            raise ConfigError(
                f"clip_grad_norm {clip} and the technique clip_norm are the same; write one of them"
            )
        made["clip_norm"] = cls(**clip)
    return list(made.items())


def arguments_of(
    config: Mapping[str, Any], player: str, name: str, cls: type[Technique]
) -> dict[str, Any]:
    """The constructor's arguments, from ``<player>_<name>_<argument>`` or ``<name>_<argument>``."""
    arguments = {}
    for argument, parameter in inspect.signature(cls).parameters.items():
        key = f"{name}_{argument}"
        if key in config or f"{player}_{key}" in config:
            arguments[argument] = setting(config, player, key)
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"the technique {name} needs the key {key}; write {key}: <value>")
    return arguments


def check_techniques(config: Mapping[str, Any], players: Sequence[str] = ("min", "max")) -> None:
    """Raise :class:`ConfigError` for a technique, a key or a value that cannot be used."""
    for key, option in technique_options().items():
        if key in config:
            option.check(config[key])
        for player in players:
            if config.get(f"{player}_{key}") is not None:
                replace(option, key=f"{player}_{key}").check(config[f"{player}_{key}"])
    for player in players:
        named = config.get(f"{player}_techniques")
        for wanted in named or ():
            find_technique(wanted)
        techniques_of(config, player, first=player == "min")


def technique_keys(config: Mapping[str, Any]) -> set[str]:
    """Every key that a technique of ours, or one of the user's in ``techniques``, may have."""
    keys = set(technique_options())
    for wanted in _named(config):
        name, cls = find_technique(wanted)
        keys |= {f"{name}_{argument}" for argument in inspect.signature(cls).parameters}
    return keys


def used_options(config: Mapping[str, Any]) -> list[str]:
    """The keys of the techniques that some player has."""
    used = {find_technique(wanted)[0] for wanted in _named(config)}
    files = [properties_dir() / "technique" / f"{name}.yaml" for name in sorted(used)]
    return [key for file in files if file.is_file() for key in read_options(file)]


def unused_keys(config: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """Those of the keys ``given`` that belong to a technique which nobody has."""
    used = used_options(config)
    return [key for key in given if key in technique_options() and key not in used]


def _named(config: Mapping[str, Any]) -> list[str | type]:
    """The techniques of all players; what is no list is found out by the check of its key."""
    lists = [value for key, value in config.items() if key.endswith("techniques")]
    return [wanted for named in lists if isinstance(named, (list, tuple)) for wanted in named]
