"""RecBole's Config, checked before any data is loaded, and never evaluating a string as code."""

from __future__ import annotations

import ast
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from logging import getLogger
from pathlib import Path
from typing import Any

import yaml
from recbole.config import Config as RecBoleConfig
from recbole.utils import ModelType

from recbole_adv import discovery, processes
from recbole_adv.class_path import path_of
from recbole_adv.config_check import check_config
from recbole_adv.errors import ConfigError, RecBoleAdvError
from recbole_adv.evaluation.keys import bigger_is_better
from recbole_adv.options import overall_options, properties_dir
from recbole_adv.technique.factory import used_options

# Not none, which is a value of RecBole's sampling and of max_data; None is a literal.
_WORDS = {"true": True, "false": False, "~": None, "null": None}


def literal(value: Any) -> Any:
    """A string as the Python literal it spells (``"[64, 32]"``, ``"1e-3"``, ``"~"``), else itself.

    RecBole calls ``eval`` here, which lets a configuration value run commands.
    """
    if not isinstance(value, str):
        return value
    if value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


class Config(RecBoleConfig):
    """RecBole's Config with our models and properties found first and every value checked.

    Priority is RecBole's: command line > ``config_dict`` > files > model properties > overall.

    Args:
        model: a name, a class, ``package.module:Class`` or ``file.py:Class``.
        dataset: the name of the dataset.
        config_file_list: YAML files; a later one wins.
        config_dict: keys and values.
        command_line: arguments ``--key=value``; ``sys.argv[1:]`` if None, as RecBole does.

    Attributes:
        source_of: for each key, where its value came from, in words.
        external_config_dict: what the user gave, by whatever way.

    Raises:
        ConfigError: one sentence that says what is wrong, the value found and what to write.
    """

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str] | None = None,
        config_dict: Mapping[str, Any] | None = None,
        command_line: Sequence[str] | None = None,
    ):
        self._command_line = sys.argv[1:] if command_line is None else list(command_line)
        self._strict = command_line is not None
        self.source_of: dict[str, str] = {}
        try:
            super().__init__(model, dataset, config_file_list, dict(config_dict or {}))
        except RecBoleAdvError:
            raise
        except (ValueError, KeyError, TypeError, NotImplementedError, RuntimeError) as error:
            message = error.args[0] if error.args else type(error).__name__
            raise ConfigError(str(message).strip()) from error
        self._set_run_dir()

    @classmethod
    def from_data(cls, data: Mapping[str, Any], overrides: Mapping[str, Any] = {}) -> Config:
        """The Config of a checkpoint's dict, changed by ``overrides``; nothing is evaluated."""
        config = cls.__new__(cls)
        config._init_parameters_category()
        config.compatibility_settings()
        config.yaml_loader = config._build_yaml_loader()
        config.source_of = dict.fromkeys(data, "checkpoint") | dict.fromkeys(overrides, "override")
        config.final_config_dict = {**data, **overrides}
        config.external_config_dict = dict(overrides)
        config.file_config_dict = config.variable_config_dict = config.cmd_config_dict = {}
        config.dataset = data["dataset"]
        model_class = discovery.find_model(data.get("model_source") or data["model"])
        config.model, config.model_class = model_class.__name__, model_class
        over = getattr(model_class, "over", None)
        if over is not None:
            config.model_class = over(discovery.find_model(config.final_config_dict["backbone"]))
        config._init_device()
        check_config(config)
        return config

    # --- reading -------------------------------------------------------------------------------

    def _init_parameters_category(self):
        super()._init_parameters_category()
        # RecBole extends these lists, which are global, with each dataset's keys.
        self.parameters = {category: list(keys) for category, keys in self.parameters.items()}
        self.parameters["Adversarial"] = list(overall_options())

    def _convert_config_dict(self, config_dict):
        return {key: literal(value) for key, value in config_dict.items()}

    def _load_config_files(self, file_list):
        merged: dict[str, Any] = {}
        for file in file_list or ():
            try:
                text = Path(file).read_text(encoding="utf-8")
                content = yaml.load(text, Loader=self.yaml_loader)
            except OSError as error:
                raise ConfigError(
                    f"the configuration file {file!r} cannot be read: {error.strerror}; write the "
                    "path of a YAML file"
                ) from error
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                where = getattr(error, "problem_mark", None)
                line = f" in line {where.line + 1}" if where else ""
                problem = getattr(error, "problem", None) or "it is not text"
                raise ConfigError(
                    f"{file} is not YAML{line}: {problem}; write lines 'key: value'"
                ) from error
            if content is not None and not isinstance(content, dict):
                raise ConfigError(f"{file} must hold lines 'key: value', got {content!r:.60}")
            merged.update(content or {})
            self.source_of |= dict.fromkeys(content or {}, str(file))
        return merged

    def _load_variable_config_dict(self, config_dict):
        self.source_of |= dict.fromkeys(config_dict, "config_dict")
        return self._convert_config_dict(config_dict)

    def _load_cmd_line(self):
        given: dict[str, Any] = {}
        if "ipykernel_launcher" in sys.argv[0] and not self._strict:
            return given
        for argument in self._command_line:
            key, equals, value = argument.removeprefix("--").partition("=")
            if not argument.startswith("--") or not equals or not key.isidentifier():
                if self._strict:
                    raise ConfigError(f"cannot read {argument!r}; write {self._spelled(argument)}")
                continue
            value = literal(value)
            if given.setdefault(key, value) != value:
                raise ConfigError(f"--{key} is given twice, as {given[key]!r} and as {value!r}")
        self.source_of |= dict.fromkeys(given, "command line")
        return given

    def _spelled(self, argument: str) -> str:
        """``--key=value`` for what was written as ``--key value`` or ``key=value``."""
        key, equals, value = argument.lstrip("-").partition("=")
        after = self._command_line[self._command_line.index(argument) + 1 :][:1]
        if not equals and after and not after[0].startswith("-"):
            value = after[0]
        return f"--{key}={value}" if key.isidentifier() and value else "--key=value"

    # --- resolving -----------------------------------------------------------------------------

    def _get_model_and_dataset(self, model, dataset):
        model = model if model is not None else self.external_config_dict.get("model")
        dataset = dataset if dataset is not None else self.external_config_dict.get("dataset")
        if model is None:
            raise ConfigError("no model is given; write --model=EIIL, or model: EIIL in a file")
        if dataset is None:
            raise ConfigError("no dataset is given; write --dataset=ml-100k, or dataset: in a file")
        if not isinstance(dataset, str):
            raise ConfigError(f"dataset must be a name, got {dataset!r}")
        return super()._get_model_and_dataset(discovery.find_model(model), dataset)

    def _update_internal_config_dict(self, file):
        content = super()._update_internal_config_dict(file)
        path = Path(file).resolve()
        home = "recbole_adv" if properties_dir() in path.parents else path.parent
        home = "RecBole" if discovery.recbole_properties() in path.parents else home
        for key in content or {}:
            if key not in self.external_config_dict:
                self.source_of[key] = f"{home} {path.name}"
        return content

    def _set_default_parameters(self):
        final = self.final_config_dict
        final["model_source"] = discovery.model_source(_user_class(self.model_class))
        cross_entropy = final.get("loss_type") == "CE" and not hasattr(
            self.model_class, "input_type"
        )
        if (
            final["MODEL_TYPE"] == ModelType.SEQUENTIAL
            and cross_entropy
            and "train_neg_sample_args" not in self.external_config_dict
        ):
            # RecBole raises here; a softmax over all items has no use for sampled negatives.
            final["train_neg_sample_args"] = None
            self.source_of["train_neg_sample_args"] = "derived from loss_type: CE"
        check_config(self)
        for key in [key for key in final if key.endswith("techniques") and final[key]]:
            # A checkpoint and config.yaml hold no classes.
            final[key] = [path_of(x) if isinstance(x, type) else x for x in final[key]]
        # The log lists the keys of the techniques that are used, not of all there are.
        self.parameters["Adversarial"] += used_options(final)
        super()._set_default_parameters()
        final["valid_metric_bigger"] = bigger_is_better(final["valid_metric"])

    def _init_device(self):
        final = self.final_config_dict
        gpu_id = final.get("gpu_id")
        gpu_id = "" if gpu_id is None else gpu_id
        gpu_id = ",".join(map(str, gpu_id)) if isinstance(gpu_id, (tuple, list)) else str(gpu_id)
        final["gpu_id"] = gpu_id
        wanted = bool(final.get("use_gpu", True)) and gpu_id != ""
        if wanted and "CUDA_VISIBLE_DEVICES" not in os.environ:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu_id
        final["single_spec"], final["local_rank"] = True, 0
        final["device"] = processes.device_of(processes.place(), wanted)

    def _set_run_dir(self):
        final = self.final_config_dict
        if final.get("run_dir") is None:
            moment = datetime.now().strftime("%Y%m%d-%H%M%S")
            name = f"{self.model}-{self.dataset}-{moment}-{uuid.uuid4().hex[:6]}"
            final["run_dir"] = str(Path("runs") / name)
            self.source_of["run_dir"] = "made for this run"
        final["run_dir"] = str(Path(final["run_dir"]).absolute())
        if "checkpoint_dir" not in self.external_config_dict:
            final["checkpoint_dir"] = final["run_dir"]
            self.source_of["checkpoint_dir"] = "run_dir"

    def log_sources(self) -> None:
        """Log what was set other than by default, with its source."""
        for key in sorted(self.external_config_dict):
            getLogger().debug("%s = %r from %s", key, self[key], self.source_of.get(key))


def _user_class(model_class: type) -> type:
    """The class as it was written, without the backbone that ``over`` put under it."""
    return getattr(model_class, "written_class", model_class)
