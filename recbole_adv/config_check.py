"""Every check that a configuration can fail before data is loaded."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Mapping
from functools import cache
from logging import getLogger
from typing import Any

import yaml

from recbole_adv import discovery
from recbole_adv.data.shift_plan import check_shift
from recbole_adv.data.train_sampler import check_train_sampler
from recbole_adv.environment.keys import check_environments
from recbole_adv.errors import ConfigError, suggest
from recbole_adv.evaluation.keys import check_evaluation
from recbole_adv.game.compiled_loss import check_compile
from recbole_adv.game.optimizer import PLAYER_KEYS, check_learner
from recbole_adv.game.player import is_game
from recbole_adv.game.schedule import KEYS as SCHEDULE_KEYS
from recbole_adv.options import (
    Option,
    overall_options,
    properties_dir,
    read_options,
    technique_options,
)
from recbole_adv.recbole_values import OPTIONS as RECBOLE_OPTIONS
from recbole_adv.recbole_values import check_recbole_values
from recbole_adv.technique.factory import check_techniques, technique_keys, unused_keys

# Keys that begin so are ours, or are read by the model's own source.
_OURS = ("max_", "min_", "learner_", "penalty_", "environment_", "technique", "shift_")


def check_config(config) -> None:
    """Raise :class:`ConfigError` for the first key or value that cannot be used."""
    final = config.final_config_dict
    _check_names(config)
    for key, option in {**overall_options(), **_model_options(config)}.items():
        if key in final:
            option.check(final[key])
    check_recbole_values(config)
    check_shift(final)
    check_evaluation(final)
    check_environments(final, config.external_config_dict, config.model)
    check_train_sampler(final)
    for player in ("min", "max"):
        check_learner(final, player)
    check_techniques(final)
    check_compile(final, config.model_class)
    for key, why in _without_effect(config).items():
        getLogger().warning("%s has no effect: %s", key, why)
    start, stop = final["max_start_epoch"], final["max_stop_epoch"]
    if stop is not None and stop < start:
        raise ConfigError(f"max_stop_epoch must not be below max_start_epoch {start}, got {stop}")
    if final["min_interval"] > 1 and final["max_interval"] > 1:
        raise ConfigError(
            "min_interval or max_interval must be 1, else batches are loaded that train no player; "
            f"got {final['min_interval']} and {final['max_interval']}"
        )


def _without_effect(config) -> dict[str, str]:
    """Why given keys change nothing, by key."""
    final, given = config.final_config_dict, list(config.external_config_dict)
    found = dict.fromkeys(unused_keys(final, given), "its technique is not in techniques")
    ours, model_class = overall_options(), config.model_class
    for key in (key for key in given if final[key]):  # an empty value asks for nothing
        if key in ours and key.startswith("max_") and not is_game(model_class):
            found[key] = f"{config.model} has one player"
        elif key == "backbone" and getattr(model_class, "backbone_class", None) is None:
            found[key] = f"{config.model} has no backbone"
        elif key in ours and key.startswith("shift_") and key not in ("shift_split", "shift_file"):
            if final["shift_split"] is None and final["shift_file"] is None:
                found[key] = "neither shift_split nor shift_file is set"
    return found


def _model_options(config) -> Mapping[str, Option]:
    options: dict[str, Option] = {}
    for file in discovery.model_property_files(config.model_class):
        if properties_dir() in file.parents:
            options |= read_options(file)
    return options


def _check_names(config) -> None:
    """An unknown key that is nearly a known one is a mistyped one."""
    known = _known_keys(config)
    for key in config.external_config_dict:
        if key in known or _read_elsewhere(config, key):
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if near or key.startswith(_OURS):
            hint = suggest(key, near or known) or "; 'recbole-adv config' lists the keys"
            raise ConfigError(f"there is no key {key!r} (from {config.source_of.get(key)}){hint}")


def check_names_of(player: str, config) -> None:
    """Raise :class:`ConfigError` for a mistyped key of a player of the model's own."""
    settings = (*PLAYER_KEYS, *SCHEDULE_KEYS, "techniques", *technique_options())
    known = [f"{player}_{setting}" for setting in settings]
    for key in config.external_config_dict:
        if key in known or not key.startswith(f"{player}_") or _read_by_model(config, key):
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if near and not key.startswith(f"{player}_learner_"):
            raise ConfigError(
                f"there is no key {key!r} (from {config.source_of.get(key)}){suggest(key, near)}"
            )


def check_known(config, key: str) -> None:
    """Raise :class:`ConfigError` for a key that nothing reads, whatever it resembles."""
    known = _known_keys(config)
    if key not in known and not _read_elsewhere(config, key):
        hint = suggest(key, known) or "; 'recbole-adv config' lists the keys"
        raise ConfigError(f"{config['model']} has no key {key!r}{hint}")


def _read_elsewhere(config, key: str) -> bool:
    """Whether the key is none of a property file, but one of the model's or of its players'."""
    return _read_by_model(config, key) or _of_custom_player(config, key)


def _known_keys(config) -> set[str]:
    keys = set(overall_options()) | set(RECBOLE_OPTIONS) | _recbole_keys()
    keys |= {key for category in config.parameters.values() for key in category}
    keys |= set(getattr(config, "internal_config_dict", ()))
    keys |= {"model", "dataset", "config_files", "backbone", "nproc", "world_size", "ip", "port"}
    keys |= {"group_offset", "model_source", "other_parameter"} | set(_model_options(config))
    techniques = technique_keys(config.final_config_dict)
    keys |= techniques | {f"max_{key}" for key in techniques}
    for player in ("min", "max"):
        prefix = "" if player == "min" else f"{player}_"
        learner = config.final_config_dict.get(f"{prefix}learner") or config["learner"]
        keys |= {f"{prefix}learner_{name}" for name in _learner_arguments(learner)}
    return keys


def _learner_arguments(learner: Any) -> list[str]:
    from recbole_adv.game.optimizer import LEARNERS

    return list(inspect.signature(LEARNERS[learner]).parameters) if learner in LEARNERS else []


@cache
def _recbole_keys() -> frozenset[str]:
    """Every key of RecBole's property files for all models."""
    text = (discovery.recbole_properties() / "overall.yaml").read_text(encoding="utf-8")
    return frozenset(yaml.safe_load(text))


@cache
def own_keys() -> frozenset[str]:
    """Every key of ours, of any model; not RecBole's to which a model gives another default."""
    files = (properties_dir() / "model").glob("*.yaml")
    own = frozenset(overall_options()) | frozenset(technique_options())
    return own.union(*map(read_options, files)) - _recbole_keys()


def _sources_of(config) -> str:
    backbone = getattr(config.model_class, "backbone_class", None)
    classes = [c for b in filter(None, (config.model_class, backbone)) for c in b.__mro__]
    modules = {
        cls.__module__ for cls in classes if not cls.__module__.startswith(("torch", "buil"))
    }
    return "\n".join(_module_source(name) for name in sorted(modules))


@cache
def _module_source(name: str) -> str:
    try:
        return inspect.getsource(sys.modules[name])
    except (KeyError, OSError, TypeError):
        return ""


def _read_by_model(config, key: str) -> bool:
    """Whether the model's own source names the key, as ``config["key"]``."""
    return re.search(rf"[\"']{re.escape(key)}[\"']", _sources_of(config)) is not None


def _of_custom_player(config, key: str) -> bool:
    """Whether the key is ``<player>_<setting>`` of a player that the model's source names."""
    for setting in (*PLAYER_KEYS, *SCHEDULE_KEYS, *technique_options(), "learner_", "techniques"):
        head = key.partition(f"_{setting}")[0]
        if head != key and head not in ("min", "max") and _read_by_model(config, head):
            return True
    return False


def meanings(config) -> dict[str, str]:
    """What our keys mean, by key, for a model's configuration."""
    options = {**overall_options(), **technique_options(), **_model_options(config)}
    return {key: f"({option.kind}) {option.meaning}" for key, option in options.items()}
