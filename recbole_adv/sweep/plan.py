"""What a sweep is about: the model, what is fixed, what is searched; all checked beforehand."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_adv.config import Config
from recbole_adv.config_check import check_known
from recbole_adv.errors import ConfigError
from recbole_adv.sweep.space import Space
from recbole_adv.technique.factory import unused_keys

_MEASURE = {
    *("data_path", "benchmark_filename", "eval_args", "metrics", "topk", "valid_metric"),
    *("val_interval", "threshold", "user_inter_num_interval", "item_inter_num_interval"),
    *("filter_inter_by_user_or_item", "rm_dup_inter", "repeatable", "metric_decimal_place"),
    *("mask_leaks", "drop_leaks"),
}
"""Keys that change what is measured, so that scores under two values cannot be compared."""
_REASONS = {
    "seed": "the best of several seeds is the luckiest; search with one, and write --seeds=5",
    "model": "a sweep is of one model; start one for each",
    "dataset": "a sweep is on one data set; start one for each",
    "run_dir": "each trial has a directory of its own; write --sweep_dir",
    "checkpoint_dir": "each trial has a directory of its own; write --sweep_dir",
    **dict.fromkeys(_MEASURE, "it changes what is measured, and scores could not be compared"),
}
_NOT_FIXED = ("model", "dataset", "config_files", "run_dir", "checkpoint_dir")
_TRIES = 8


@dataclass(frozen=True)
class Job:
    """One setting to train with.

    seed: None in the search, which has the configuration's; test: whether to look at the test data.
    """

    setting: Mapping[str, Any]
    seed: int | None = None
    test: bool = False
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.id or setting_id(self.setting))

    @property
    def folder(self) -> str:
        """Its directory, in that of the sweep."""
        return f"trials/{self.id}" if self.seed is None else f"seeds/{self.id}-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """Everything that a process must know to train with a setting; it is sent to workers.

    fixed: the keys that were given; folder: the sweep's directory; cache: where this machine keeps
    the prepared data; bigger: whether a higher score is better; epochs, selection_start: the most
    epochs of a trial, and the first that counts; directory: the working directory.
    """

    model: str
    dataset: str
    fixed: Mapping[str, Any]
    space: Space
    folder: Path
    cache: Path
    metric: str
    bigger: bool
    epochs: int
    selection_start: int
    seed: int
    retries: int = 1
    directory: str = field(default_factory=os.getcwd)

    def config(self, job: Job) -> Config:
        """The configuration of a job."""
        settings = {**self.fixed, **job.setting, "run_dir": str(self.folder / job.folder)}
        if job.seed is not None:
            settings["seed"] = job.seed
        settings["show_progress"] = False
        return Config(self.model, self.dataset, config_dict=settings, command_line=())

    def job(self, codes: Mapping[str, Any]) -> Job:
        """The job of an encoded setting."""
        return Job(self.space.decode(codes))

    def better(self, score: float, other: float) -> bool:
        """Whether one score of the validation is better than another."""
        return score > other if self.bigger else score < other


def setting_id(setting: Mapping[str, Any]) -> str:
    """A short name that equal settings share, on any machine."""
    text = json.dumps(setting, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def given_keys(config: Config) -> dict[str, Any]:
    """What the user gave and every trial has."""
    return {k: v for k, v in config.external_config_dict.items() if k not in _NOT_FIXED}


def check_space(config: Config, space: Space) -> None:
    """Raise :class:`ConfigError` for a key that cannot be searched, or a value that never fits.

    A value is tried with the configuration as it is and, if that is refused, in combinations with
    other values of the space: ``learner_momentum`` may fit only together with ``learner: sgd``.
    """
    for key in space.dimensions:
        if key in _REASONS or key.startswith("shift_"):
            reason = _REASONS.get(key, _REASONS["eval_args"])
            raise ConfigError(f"{space.source}: {key} cannot be searched: {reason}")
        try:
            check_known(config, key)
        except ConfigError as error:
            raise ConfigError(f"{space.source}: {error}") from error
        _check_used(config, space, key)
    draw = random.Random(0)
    for key, dimension in space.dimensions.items():
        for code in dimension.examples():
            _check_value(config, space, key, code, draw)


def _check_used(config: Config, space: Space, key: str) -> None:
    searched = {"techniques", "max_techniques"} & set(space.dimensions)
    if unused_keys(config.final_config_dict, [key]) and not searched:
        raise ConfigError(
            f"{space.source}: {key} has no effect, since its technique is not among techniques "
            f"{config['techniques']}; add it there"
        )


def _check_value(config: Config, space: Space, key: str, code: Any, draw: random.Random) -> None:
    value = space.dimensions[key].decode(code)
    first: ConfigError | None = None
    for attempt in range(_TRIES):
        others = {} if attempt == 0 else _any_setting(space, draw)
        settings = {**given_keys(config), **others, key: value}
        try:
            Config(config["model_source"], config.dataset, config_dict=settings, command_line=())
            return
        except ConfigError as error:
            first = first or error
    raise ConfigError(f"{space.source}: {first}") from first


def _any_setting(space: Space, draw: random.Random) -> dict[str, Any]:
    return {
        name: dimension.decode(draw.choice(dimension.examples()))
        for name, dimension in space.dimensions.items()
    }
