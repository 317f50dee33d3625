"""Every check that a configuration can fail before data is loaded."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from recbole_adv import discovery
from recbole_adv.errors import ConfigError, suggest
from recbole_adv.game.optimizer import PLAYER_KEYS, check_learner
from recbole_adv.options import Option, overall_options, properties_dir, read_options

# RecBole checks few of its own values; the ones that otherwise fail deep inside, by our schema.
_RECBOLE_OPTIONS = {
    key: Option.parse(key, kind, "")
    for key, kind in {
        "epochs": "int >= 0",
        "train_batch_size": "int >= 1",
        "eval_batch_size": "int >= 1",
        "eval_step": "int >= 0",
        "stopping_step": "int >= 0",
        "learner": "str",
        "learning_rate": "float >= 0",
        "weight_decay": "float >= 0",
        "clip_grad_norm": "dict, or None",
        "seed": "int >= 0",
        "worker": "int >= 0",
        "use_gpu": "bool",
        "show_progress": "bool",
        "reproducibility": "bool",
        "enable_amp": "bool",
        "enable_scaler": "bool",
        "embedding_size": "int >= 1",
        "eval_args": "dict",
        "data_path": "str",
        "checkpoint_dir": "str",
        "valid_metric": "str",
        "load_col": "dict, or None",
        "benchmark_filename": "list, or None",
    }.items()
}


def check_config(config) -> None:
    """Raise :class:`ConfigError` for the first key or value that cannot be used."""
    final = config.final_config_dict
    _check_names(config)
    for key, option in {**_RECBOLE_OPTIONS, **overall_options(), **_model_options(config)}.items():
        if key in final:
            option.check(final[key])
    _check_metrics(final)
    for player in ("min", "max"):
        check_learner(final, player)
    start, stop = final["max_start_epoch"], final["max_stop_epoch"]
    if stop is not None and stop < start:
        raise ConfigError(f"max_stop_epoch must not be below max_start_epoch {start}, got {stop}")
    if final["min_interval"] > 1 and final["max_interval"] > 1:
        raise ConfigError(
            "min_interval or max_interval must be 1, else batches are loaded that train no player; "
            f"got {final['min_interval']} and {final['max_interval']}"
        )


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
        if key in known or _read_by_model(config, key) or _of_custom_player(config, key):
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if near or key.startswith(("max_", "learner_", "penalty_")):
            raise ConfigError(
                f"there is no key {key!r} (from {config.source_of.get(key)})"
                f"{suggest(key, near or known)}"
            )


def _known_keys(config) -> set[str]:
    keys = set(overall_options()) | set(_RECBOLE_OPTIONS) | _recbole_keys()
    keys |= {key for category in config.parameters.values() for key in category}
    keys |= set(getattr(config, "internal_config_dict", ()))
    keys |= {"model", "dataset", "config_files", "backbone", "nproc", "world_size", "ip", "port"}
    keys |= {"group_offset", "model_source", "other_parameter"} | set(_model_options(config))
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
    root = Path(importlib.util.find_spec("recbole").origin).parent / "properties"
    return frozenset(yaml.safe_load((root / "overall.yaml").read_text(encoding="utf-8")))


def _sources_of(config) -> str:
    backbone = getattr(config.model_class, "backbone_class", None)
    classes = [c for b in filter(None, (config.model_class, backbone)) for c in b.__mro__]
    modules = {cls.__module__ for cls in classes if not cls.__module__.startswith(("torch", "buil"))}
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
    for setting in (*PLAYER_KEYS, "learner_"):
        head = key.partition(f"_{setting}")[0]
        if head != key and head not in ("min", "max") and _read_by_model(config, head):
            return True
    return False


def _check_metrics(final: Mapping[str, Any]) -> None:
    from recbole.evaluator import metric_types
    from recbole.utils import EvaluatorType

    metrics, topk = final["metrics"], final["topk"]
    metrics = [metrics] if isinstance(metrics, str) else metrics
    topk = [topk] if isinstance(topk, int) else topk
    if not isinstance(metrics, (list, tuple)) or not metrics:
        raise ConfigError(f"metrics must be a list of names, got {metrics!r}")
    for name in metrics:
        if not isinstance(name, str) or name.lower() not in metric_types:
            raise ConfigError(
                f"there is no metric called {name!r}{suggest(str(name), metric_types)}"
            )
    if topk is not None and not (
        isinstance(topk, (list, tuple)) and all(isinstance(k, int) and k > 0 for k in topk)
    ):
        raise ConfigError(f"topk must be a list of positive whole numbers, got {topk!r}")
    possible = []
    for name in map(str.lower, metrics):
        plain = metric_types[name] == EvaluatorType.VALUE or name == "gauc"
        possible += [name] if plain else [f"{name}@{k}" for k in topk or ()]
    if final["valid_metric"].lower() not in possible:
        raise ConfigError(
            f"valid_metric {final['valid_metric']!r} is not among the metrics computed "
            f"({', '.join(possible)}); change it, or metrics and topk"
        )


def meanings(config) -> dict[str, str]:
    """What our keys mean, by key, for a model's configuration."""
    options = {**overall_options(), **_model_options(config)}
    return {key: f"({option.kind}) {option.meaning}" for key, option in options.items()}
