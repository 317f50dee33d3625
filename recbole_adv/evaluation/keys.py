"""The keys of the evaluation, checked before data is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.evaluator import metric_types, smaller_metrics
from recbole.utils import EvaluatorType, ModelType

from recbole_adv.data.id_file import is_path
from recbole_adv.errors import ConfigError

_OF_RANKINGS = ("popularity_metrics", "valid_pool", "test_pool", "eval_mask", "eval_memory_mb")
_OF_RANKINGS += ("save_user_metrics",)
_SET = re.compile(r"[A-Za-z][\w.-]*")


def check_evaluation(final: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for the first value of these keys that cannot be used.

    final: the configuration as a mapping; types and ranges are checked by the schema before.
    """
    of_values = metric_types[_first_metric(final)] == EvaluatorType.VALUE
    if not of_values and "labeled" in _modes(final).values():
        raise ConfigError(
            f"metrics {final['metrics']} are of rankings, got eval_args mode "
            f"{final['eval_args']['mode']!r}, and labelled rows are not ranked; write metrics: [AUC, "
            "LogLoss] and a valid_metric of them, or eval_args: {'mode': 'full'}"
        )
    for key in _OF_RANKINGS:
        if final.get(key) and of_values:
            raise ConfigError(
                f"{key} is about rankings, got metrics {final['metrics']} of labelled rows; leave it "
                "out, or write metrics such as [Recall, NDCG]"
            )
    for key in ("valid_pool", "test_pool", "eval_mask", "eval_memory_mb"):
        _check_full(final, key)
    for key in ("valid_pool", "test_pool", "eval_mask"):
        value = final.get(key)
        if value is not None and (key == "eval_mask" or is_path(value)):
            _check_file(key, value)
    _check_groups(final, of_values)
    _check_sets(final, of_values)
    _check_valid_metric(final)


def metric_of(valid_metric: str) -> str:
    """``NDCG@10`` of ``gender/worst/NDCG@10``."""
    return valid_metric.rpartition("/")[2]


def bigger_is_better(valid_metric: str) -> bool:
    """RecBole's ``valid_metric_bigger``, which does not know of groups and sets."""
    return metric_of(valid_metric).split("@")[0].lower() not in smaller_metrics


def _first_metric(final: Mapping[str, Any]) -> str:
    metrics = final["metrics"]
    return (metrics if isinstance(metrics, str) else metrics[0]).lower()


def _modes(final: Mapping[str, Any]) -> dict[str, str]:
    """The mode of both phases; RecBole, too, gives a phase without one that of the other."""
    mode = final["eval_args"].get("mode", "full")
    mode = mode if isinstance(mode, dict) else {"valid": mode}
    other = mode.get("valid", mode.get("test", "full"))
    return {phase: mode.get(phase, other) for phase in ("valid", "test")}


def _check_full(final: Mapping[str, Any], key: str) -> None:
    phases = ("valid", "test") if key.startswith("eval") else (key.split("_")[0],)
    sampled = [_modes(final).get(phase) for phase in phases if _modes(final).get(phase) != "full"]
    if final.get(key) is not None and sampled:
        raise ConfigError(
            f"{key} needs the ranking of all items, got eval_args mode {sampled[0]!r}; write "
            "eval_args: {'mode': 'full'}"
        )


def _check_file(key: str, path: str) -> None:
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {path!r}, which {key} names; write the path of one")


def _check_groups(final: Mapping[str, Any], of_values: bool) -> None:
    groups = final.get("eval_groups") or []
    wrong = [name for name in groups if not isinstance(name, str) or not name]
    if wrong or len(set(groups)) < len(groups):
        raise ConfigError(
            f"eval_groups must be a list of different names, got {groups!r}; write "
            "eval_groups: [item_popularity]"
        )
    if groups and of_values and any(mode != "labeled" for mode in _modes(final).values()):
        raise ConfigError(
            f"eval_groups and metrics {final['metrics']} need labelled rows, got eval_args mode "
            f"{_modes(final)}; write eval_args: {{'mode': 'labeled'}}"
        )


def _check_sets(final: Mapping[str, Any], of_values: bool) -> None:
    for name, where in (final.get("test_sets") or {}).items():
        if not isinstance(name, str) or not _SET.fullmatch(name) or name.startswith("valid"):
            raise ConfigError(
                "test_sets must have names of letters, digits, '_', '-' and '.' that do not begin "
                f"with valid, got {name!r}; write test_sets: {{'ood': 'ood.inter'}}"
            )
        if not isinstance(where, str) or not where:
            raise ConfigError(
                f"test_sets must say for {name!r} which part of the split or which file it is, got "
                f"{where!r}; write test_sets: {{'{name}': 'ood.inter'}}"
            )
        if not is_path(where):
            continue
        _check_file("test_sets", where)
        if of_values or final["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            raise ConfigError(
                f"a file of users and items, such as {where!r} in test_sets, can only be ranked, and "
                "by a model without sequences; write benchmark_filename: [train, valid, test, "
                f"{name}] and test_sets: {{'{name}': '{name}'}}"
            )


def _check_valid_metric(final: Mapping[str, Any]) -> None:
    group = final["valid_metric"].rpartition("/")[0]
    if not group:
        return
    valids = [n for n in (final.get("benchmark_filename") or [])[3:] if n.startswith("valid")]
    if final["shift_split"] or final["shift_file"]:
        valids += [f"valid_{which}" for which in final["shift_valid"]]
    groups = list(final.get("eval_groups") or ())
    parts = group.split("/")
    if parts[0] in valids:
        parts = parts[1:]
    if parts and (parts[0] not in groups or len(parts) != 2):
        known = [f"{name}/worst" for name in groups] + valids
        raise ConfigError(
            f"valid_metric {final['valid_metric']!r} must begin with a group of eval_groups and its "
            "value or worst, or with a further validation set, got "
            f"{group!r}; write {' or '.join(known) or 'eval_groups: [item_popularity]'}"
        )
