"""From a command to metrics, on one screen."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

import pandas
from recbole.data import create_dataset, data_preparation
from recbole.utils import EvaluatorType, init_seed, set_color

from recbole_adv import checkpoint
from recbole_adv.config import Config
from recbole_adv.data.check import check_dataset
from recbole_adv.discovery import find_model
from recbole_adv.errors import CheckpointError, ConfigError, DataError, RecBoleAdvError
from recbole_adv.run_directory import RunDirectory
from recbole_adv.trainer import trainer_class


def run_recbole_adv(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    resume: str | None = None,
    command_line: Sequence[str] | None = (),
) -> dict[str, Any]:
    """Train, validate and test a model; RecBole's ``run_recbole`` for every model.

    Args:
        model: a name (ours, RecBole's, or of a class defined in this process), a class,
            ``package.module:Class`` or ``file.py:Class``.
        dataset: the name of a dataset in ``data_path``, or ``ml-100k``.
        config_file_list: YAML files.
        config_dict: keys and values.
        saved: whether to write checkpoints. Without them the last epoch's model is tested.
        resume: a run's directory, or a checkpoint in it, to go on with; the configuration is the
            checkpoint's, changed by ``config_file_list``, ``config_dict`` and ``command_line``.
        command_line: arguments ``--key=value``; None reads ``sys.argv`` as RecBole does.

    Returns:
        RecBole's keys ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``,
        ``test_result`` (Python numbers), and ``run_dir``.

    Raises:
        RecBoleAdvError: one sentence on what is wrong.
    """
    if resume is None:
        config = Config(model, dataset, config_file_list, config_dict, command_line)
    else:
        resume = _checkpoint_in(resume)
        named = {key: v for key, v in (("model", model), ("dataset", dataset)) if v is not None}
        settings = {**(config_dict or {}), **named}
        config = _resumed_config(resume, config_file_list, settings, command_line)
    run = RunDirectory(config, resumed=resume is not None)
    check_dataset(config)
    with run.created(), run.logging():
        logger = getLogger()
        logger.info(" ".join(sys.argv))
        logger.info(config)
        _, train_data, valid_data, test_data, net = _data_and_model(config)
        logger.info(net)
        trainer = trainer_class(config.model_class)(config, net)
        if resume is not None:
            trainer.resume_checkpoint(resume)
        run.write_config()
        with _fields_in_words(config, train_data):
            best_valid_score, best_valid_result = trainer.fit(
                train_data, valid_data, saved=saved, show_progress=config["show_progress"]
            )
        test_result = trainer.evaluate(
            test_data, load_best_model=saved, show_progress=config["show_progress"]
        )
        logger.info(set_color("best valid ", "yellow") + f": {best_valid_result}")
        logger.info(set_color("test result", "yellow") + f": {test_result}")
        logger.info(set_color("run directory", "yellow") + f": {run.path}")
        result = {
            "best_valid_score": float(best_valid_score),
            "valid_score_bigger": config["valid_metric_bigger"],
            "best_valid_result": best_valid_result,
            "test_result": test_result,
        }
        run.write_result({"model": config["model"], "dataset": config["dataset"], **result})
    return {**result, "run_dir": str(run.path)}


def _data_and_model(config):
    """The dataset, three loaders and the model, on the configuration's seed, as in RecBole."""
    init_seed(config["seed"], config["reproducibility"])
    dataset = load_dataset(config)
    train_data, valid_data, test_data = _in_words(config, lambda: data_preparation(config, dataset))
    _check_topk(config, dataset.item_num - 1)
    if len(train_data._dataset.inter_feat) == 0:
        raise DataError(
            f"no interaction of {config['dataset']!r} is left to train on after filtering"
        )
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    net = config.model_class(config, train_data._dataset).to(config["device"])
    return dataset, train_data, valid_data, test_data, net


def load_dataset(config):
    """RecBole's dataset; of the kind that the backbone wants, for a model over one."""
    name = config["model"]
    backbone = getattr(config.model_class, "backbone_class", None)
    config["model"] = backbone.__name__ if backbone else name
    try:
        dataset = _in_words(config, lambda: create_dataset(config))
    finally:
        config["model"] = name
    getLogger().info(dataset)
    return dataset


def _check_topk(config, n_items: int) -> None:
    """RecBole ranks all items at once, which must then be as many as the longest list."""
    if config["eval_type"] == EvaluatorType.RANKING and max(config["topk"] or [0]) > n_items:
        raise ConfigError(
            f"topk must be at most the number of items of {config['dataset']!r}, {n_items}, got "
            f"{config['topk']}; write topk: [{n_items}] or less, and a valid_metric that fits"
        )


def _in_words(config, work):
    """RecBole's complaints about data as a :class:`DataError`."""
    try:
        return work()
    except RecBoleAdvError:
        raise
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        ZeroDivisionError,
    ) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"the dataset {config['dataset']!r} in {config['data_path']} cannot be prepared: "
            f"{detail}"
        ) from error
    except pandas.errors.ParserError as error:
        raise DataError(f"a file of {config['dataset']!r} cannot be read: {error}") from error


@contextmanager
def _fields_in_words(config, train_data) -> Iterator[None]:
    """A field that the model reads and that no batch holds, as a :class:`ConfigError`."""
    try:
        yield
    except KeyError as error:
        trace = error.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        if not trace.tb_frame.f_code.co_filename.endswith("interaction.py"):
            raise
        field, columns = str(error.args[0]), train_data._dataset.inter_feat.columns
        sampling = "train_neg_sample_args: {'distribution': 'uniform', 'sample_num': 1}"
        hint = f"add {field} to load_col"
        if field.startswith(config["NEG_PREFIX"]):
            hint = f"write {sampling}"
        elif field == config["LABEL_FIELD"]:
            hint = f"write {sampling}, or threshold: {{'rating': 4}} to make it from ratings"
        raise ConfigError(
            f"{config['model']} needs the field {field!r}, got rows of {', '.join(columns)}; {hint}"
        ) from error


def _checkpoint_in(path: str) -> str:
    file = Path(path)
    if not file.is_dir():
        return str(file)
    for name in ("last.pth", "model.pth"):
        if (file / name).is_file():
            return str(file / name)
    raise CheckpointError(f"there is no checkpoint in {str(file)!r}; write the path of a .pth file")


def _resumed_config(file: str, config_files, config_dict, command_line) -> Config:
    """The configuration in a checkpoint, with what was given now on top."""
    data = checkpoint.load(file).get("config")
    if not isinstance(data, dict) or not {"model", "dataset"} <= set(data):
        raise CheckpointError(
            f"{file} holds weights but no configuration, so no run can go on from it; write the "
            "path of a checkpoint of recbole_adv or RecBole"
        )
    reader = Config.__new__(Config)
    reader._command_line, reader._strict, reader.source_of = list(command_line or ()), True, {}
    reader.yaml_loader = reader._build_yaml_loader()
    given = reader._load_config_files(config_files)
    given |= reader._load_variable_config_dict(dict(config_dict or {}))
    given |= reader._load_cmd_line()
    _check_same(file, data, given)
    given = {key: value for key, value in given.items() if key not in ("model", "dataset")}
    return Config.from_data(data, given)


def _check_same(file: str, data: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """A run cannot go on as another model's, or on other data."""
    for key in ("model", "backbone", "dataset"):
        wanted = given.get(key)
        if wanted is None or wanted in (data.get(key), data.get(f"{key}_source")):
            continue
        if key == "dataset" or find_model(wanted).__name__ != data.get(key):
            raise ConfigError(
                f"{file} was written with {key} {data.get(key)!r}, got {wanted!r}; leave it out"
            )


def load_data_and_model(model_file: str):
    """RecBole's function for our checkpoints (and its own): a saved model with its data.

    Nothing in the file is run. Returns ``config, model, dataset, train_data, valid_data,
    test_data``.
    """
    state = checkpoint.load(model_file)
    config = Config.from_data(state["config"])
    check_dataset(config)
    dataset, train_data, valid_data, test_data, model = _data_and_model(config)
    checkpoint.load_weights(model, state, model_file)
    return config, model, dataset, train_data, valid_data, test_data


def objective_function(config_dict=None, config_file_list=None, saved=True):
    """The objective of RecBole's ``HyperTuning``: RecBole's keys, with ``model``.

    Importing it registers our models, in workers that are spawned or belong to Ray too.
    """
    result = run_recbole_adv(
        config_file_list=config_file_list,
        config_dict={"show_progress": False, "state": "error", **(config_dict or {})},
        saved=saved,
        command_line=None,
    )
    name = (config_dict or {}).get("model")
    if name is None:
        name = Config(config_file_list=config_file_list, config_dict=config_dict).model
    return {"model": name, **result}
