"""Checks of the values of RecBole's own keys, which RecBole makes late, silently or not at all."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Any

from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType

from recbole_adv.errors import ConfigError, suggest
from recbole_adv.evaluation.keys import metric_of
from recbole_adv.options import Option

OPTIONS: Mapping[str, Option] = {
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
        "shuffle": "bool",
        "repeatable": "bool",
        "enable_amp": "bool",
        "enable_scaler": "bool",
        "embedding_size": "int >= 1",
        "train_neg_sample_args": "dict, or None",
        "eval_args": "dict",
        "data_path": "str",
        "checkpoint_dir": "str",
        "valid_metric": "str",
        "load_col": "dict, or None",
        "unload_col": "dict, or None",
        "val_interval": "dict, or None",
        "threshold": "dict, or None",
        "benchmark_filename": "list, or None",
    }.items()
}

_WORDS = {
    "order": ("RO", "TO"),
    "group_by": ("user", "none", "None"),
    "split": ("RS", "LS"),
    "LS": ("valid_and_test", "valid_only", "test_only"),
}
_LEVELS = ("debug", "info", "warning", "error", "critical")
_MODE = re.compile(r"full|labeled|(uni|pop)[1-9]\d*")
_INTERVAL = re.compile(r"\s*[\[(]\s*-?[\w.]+\s*,\s*-?[\w.]+\s*[\])]\s*")


def check_recbole_values(config) -> None:
    """Raise :class:`ConfigError` for the first value of a key of RecBole's that cannot be used."""
    final = config.final_config_dict
    for key, option in OPTIONS.items():
        if key in final:
            option.check(final[key])
    _check_eval_args(final["eval_args"])
    _check_metrics(final)
    _check_loss_type(config)
    _check_like_default(config)
    for key in ("user_inter_num_interval", "item_inter_num_interval"):
        value = final.get(key)
        if value is not None and not all(map(_INTERVAL.fullmatch, str(value).split(";"))):
            raise ConfigError(f"{key} must be an interval such as '[5,inf)', got {value!r}")
    state = final.get("state")
    if state is not None and str(state).lower() not in _LEVELS:
        raise ConfigError(f"state must be one of {', '.join(_LEVELS)}, got {state!r}")
    try:
        codecs.lookup(final.get("encoding") or "utf-8")
    except (LookupError, TypeError) as error:
        raise ConfigError(
            f"encoding must be one that Python has, got {final['encoding']!r}; write utf-8"
        ) from error


def _check_like_default(config) -> None:
    """A number, a list and a truth value in RecBole's property files tell what to write."""
    defaults = getattr(config, "internal_config_dict", {})
    for key in config.external_config_dict:
        value, default = config.final_config_dict.get(key), defaults.get(key)
        if key in OPTIONS or key in ("metrics", "topk"):
            continue
        is_list = isinstance(default, list) and isinstance(value, (str, int, float, dict))
        is_number = isinstance(default, (int, float)) and isinstance(value, (str, list, dict))
        if is_list or is_number:
            kind = f"a list such as {default}" if is_list else f"a number such as {default}"
            kind = "True or False" if isinstance(default, bool) else kind
            raise ConfigError(f"{key} must be {kind}, got {value!r}")


def _check_metrics(final: Mapping[str, Any]) -> None:
    metrics, topk = final["metrics"], final["topk"]
    metrics = [metrics] if isinstance(metrics, str) else metrics
    topk = [topk] if isinstance(topk, int) else topk
    if not isinstance(metrics, (list, tuple)) or not metrics:
        raise ConfigError(f"metrics must be a list of names, got {metrics!r}")
    for name in metrics:
        if not isinstance(name, str) or name.lower() not in metric_types:
            near = suggest(str(name), metric_types) or f"; write one of {', '.join(metric_types)}"
            raise ConfigError(f"there is no metric called {name!r}{near}")
    if topk is not None and not (
        isinstance(topk, (list, tuple)) and all(isinstance(k, int) and k > 0 for k in topk)
    ):
        raise ConfigError(f"topk must be a list of positive whole numbers, got {topk!r}")
    possible, kinds = [], set()
    for name in map(str.lower, metrics):
        kinds.add(metric_types[name])
        plain = metric_types[name] == EvaluatorType.VALUE or name == "gauc"
        possible += [name] if plain else [f"{name}@{k}" for k in topk or ()]
    if len(kinds) > 1:
        raise ConfigError(
            "metrics must be all of ranking or all of values (AUC, LogLoss, MAE, RMSE), got "
            f"{metrics}; leave one kind out"
        )
    if kinds == {EvaluatorType.VALUE} and "full" in _modes(final["eval_args"]):
        raise ConfigError(
            f"metrics {metrics} need labelled rows, got eval_args mode full; write eval_args: "
            "{'mode': 'labeled'}, or metrics of a ranking"
        )
    if metric_of(final["valid_metric"]).lower() not in possible:
        raise ConfigError(
            f"valid_metric {final['valid_metric']!r} is not among the metrics computed "
            f"({', '.join(possible)}); change it, or metrics and topk"
        )


def _check_eval_args(given: Mapping[str, Any]) -> None:
    keys = ("split", "group_by", "order", "mode")
    for key in given:
        if key not in keys:
            raise ConfigError(
                f"eval_args has no key {key!r}{suggest(str(key), keys) or f'; it has {keys}'}"
            )
    _check_words(given, "order")
    _check_words(given, "group_by")
    for mode in _modes(given):
        if not isinstance(mode, str) or not _MODE.fullmatch(mode):
            raise ConfigError(
                f"mode in eval_args must be full, labeled, uni100 or pop100, got {mode!r}"
            )
    split = given.get("split")
    if split is not None and not (isinstance(split, dict) and len(split) == 1):
        raise ConfigError(
            f"split in eval_args must be like {{'RS': [0.8, 0.1, 0.1]}}, got {split!r}"
        )
    for kind, how in (split or {}).items():
        _check_words({"split": kind}, "split")
        if kind == "LS":
            _check_words(split, "LS")
        elif not _is_ratio(how):
            raise ConfigError(
                "split in eval_args must be three shares such as {'RS': [0.8, 0.1, 0.1]}, "
                f"got {split}"
            )


def _modes(eval_args: Mapping[str, Any]) -> list[Any]:
    mode = eval_args.get("mode", "full")
    return list(mode.values()) if isinstance(mode, dict) else [mode]


def _check_words(given: Mapping[str, Any], key: str) -> None:
    value = given.get(key)
    if value is not None and value not in _WORDS[key]:
        words = ", ".join(_WORDS[key])
        raise ConfigError(f"{key} in eval_args must be one of {words}, got {value!r}")


def _is_ratio(value: Any) -> bool:
    numbers = isinstance(value, (list, tuple)) and all(isinstance(x, (int, float)) for x in value)
    return numbers and len(value) == 3 and min(value) >= 0 and value[0] > 0


def _check_loss_type(config) -> None:
    """Of a model that trains by either; RecBole finds out when it builds the model."""
    final = config.final_config_dict
    loss_type = final.get("loss_type")
    if loss_type in ("BPR", "CE") or hasattr(config.model_class, "input_type"):
        return
    if loss_type is not None:
        raise ConfigError(f"loss_type must be BPR or CE, got {loss_type!r}")
