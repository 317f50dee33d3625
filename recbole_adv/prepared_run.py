"""A run about to train: its data, its model and trainer, its directory and log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import getLogger
from typing import Any, NamedTuple

import pandas
from recbole.data import create_dataset
from recbole.utils import EvaluatorType, init_seed, set_color

from recbole_adv import processes
from recbole_adv.data.preparation import Prepared, prepare_data
from recbole_adv.errors import ConfigError, DataError, RecBoleAdvError
from recbole_adv.evaluation import user_metrics
from recbole_adv.evaluation.evaluation import with_prefix
from recbole_adv.evaluation.further_sets import further_tests, further_valids
from recbole_adv.loader import build_sequences_lazily, check_evaluation_draws, tensor_samplers
from recbole_adv.loader.shares import share_training
from recbole_adv.run_directory import RunDirectory
from recbole_adv.trainer import trainer_class


class PreparedRun(NamedTuple):
    """A trainer, its loaders, and the directory it writes to; data: the split and its other parts."""

    directory: RunDirectory
    trainer: Any
    train_data: Any
    valid_data: Any
    test_data: Any
    data: Prepared

    def test(self, load_best_model: bool, show_progress: bool = False) -> dict[str, float] | None:
        """The metrics on the test data; of further tests, with their names in front; None without any.

        With ``save_user_metrics`` those of each user are written into the directory.
        """
        trainer, logger = self.trainer, getLogger()
        result, known, of_users = {}, {}, {}
        for name, data in {"": self.test_data, **further_tests(trainer.config, self.data)}.items():
            if id(data) not in known:  # a further test may be the first one under another name
                found = trainer.evaluate(data, load_best_model, show_progress=show_progress)
                known[id(data)] = found, getattr(trainer.evaluation, "of_users", None)
                load_best_model &= found is None  # a test without rows loads nothing
            found, table = known[id(data)]
            of_users |= {name: table} if found else {}
            logger.info(set_color(f"test result{name and f' on {name}'}", "yellow") + f": {found}")
            result |= with_prefix(name, found or {}) if name else found or {}
        if trainer.config["save_user_metrics"] and result and processes.is_first():
            user_metrics.save(self.directory.path, of_users)
        return result or None


@contextmanager
def prepared_run(
    config,
    resume: str | None = None,
    load: Callable | None = None,
    new_rates: bool = False,
) -> Iterator[PreparedRun]:
    """Everything that trains and tests inside the block, where it is logged.

    resume: a checkpoint to go on from.   load: as in :func:`data_and_model`.   new_rates: the
    optimizers go on with the learning rates, weight decays and arguments of ``config``, not with
    those in the checkpoint.
    """
    directory = RunDirectory(config, resumed=resume is not None)
    with directory.created(), directory.logging(), _packages_in_words(config):
        logger = getLogger()
        logger.info(" ".join(sys.argv))
        logger.info(config)
        dataset, train_data, valid_data, test_data, net = data_and_model(config, load)
        logger.info(net)
        trainer = trainer_class(config.model_class)(config, net)
        tests = [test_data, *further_tests(config, dataset.prepared).values()]
        further = further_valids(dataset.prepared)
        trainer.prepare_evaluation(train_data, valid_data, further, tests)
        if resume is not None:
            _resume(trainer, resume, new_rates)
        directory.write_config()
        if processes.is_first():
            dataset.prepared.write(directory.path)
        with _steps_in_words(config, train_data):
            loaders = train_data, valid_data, test_data
            yield PreparedRun(directory, trainer, *loaders, dataset.prepared)


def _resume(trainer, resume: str, new_rates: bool) -> None:
    built = {
        name: [{k: v for k, v in group.items() if k != "params"} for group in each.param_groups]
        for name, each in trainer._all_optimizers().items()
    }
    trainer.resume_checkpoint(resume)
    if not new_rates:
        return
    factor = trainer.rate_factor  # what a rollback has made of the rates counts for new ones too
    trainer.set_rate_factor(1.0)
    for name, each in trainer._all_optimizers().items():
        for group, own in zip(each.param_groups, built[name]):
            group.update(own)
            if "initial_lr" in group:  # what a schedule of the rate multiplies
                group["initial_lr"] = group["lr"]
    trainer.set_rate_factor(factor)


def data_and_model(config, load: Callable | None = None):
    """The dataset, three loaders and the model, on the configuration's seed, as in RecBole.

    load: what takes the place of :func:`load_data`.
    """
    dataset, train_data, valid_data, test_data = (load or load_data)(config)
    _check_topk(config, dataset.item_num - 1)
    if len(train_data._dataset.inter_feat) == 0:
        raise DataError(
            f"no interaction of {config['dataset']!r} is left to train on after filtering"
        )
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    net = config.model_class(config, train_data._dataset).to(config["device"])
    if processes.rank():  # the model is the same everywhere, what is drawn from now on is not
        init_seed(processes.own_seed(config["seed"]), config["reproducibility"])
    return dataset, train_data, valid_data, test_data, net


def load_data(config):
    """The dataset and the loaders of its three parts."""
    init_seed(config["seed"], config["reproducibility"])
    dataset = load_dataset(config)
    return dataset, *make_loaders(config, dataset)


def make_loaders(config, dataset, prepared=None):
    """The loaders of the three parts of a dataset; ``prepared``: as in ``prepare_data``."""
    with tensor_samplers(config["train_loader"] == "tensor"):
        prepared = in_words(config, lambda: prepare_data(config, dataset, prepared))
    check_evaluation_draws([*prepared.loaders[1:], *prepared.others.values()])
    share_training(prepared.loaders[0], bool(config["drop_last"]))
    return prepared.loaders


def load_dataset(config):
    """RecBole's dataset; of the kind that the backbone wants, for a model over one."""
    name = config["model"]
    backbone = getattr(config.model_class, "backbone_class", None)
    config["model"] = backbone.__name__ if backbone else name
    try:
        dataset = in_words(config, lambda: create_dataset(config))
    finally:
        config["model"] = name
    if config["train_loader"] == "tensor":
        build_sequences_lazily(dataset)
    getLogger().info(dataset)
    return dataset


def _check_topk(config, n_items: int) -> None:
    """RecBole ranks all items at once, which must then be as many as the longest list."""
    if config["eval_type"] == EvaluatorType.RANKING and max(config["topk"] or [0]) > n_items:
        raise ConfigError(
            f"topk must be at most the number of items of {config['dataset']!r}, {n_items}, got "
            f"{config['topk']}; write topk: [{n_items}] or less, and a valid_metric that fits"
        )


def in_words(config, work: Callable):
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
def _packages_in_words(config) -> Iterator[None]:
    """A package that RecBole imports where it needs it (faiss, dgl ...), as a :class:`ConfigError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{config['model']} needs the package {error.name!r}, which is not installed; install it, "
            "or choose another model"
        ) from error


@contextmanager
def _steps_in_words(config, train_data) -> Iterator[None]:
    """What only the first step shows, as a :class:`ConfigError`.

    A field that the model reads and that no batch holds; an optimizer of sparse gradients alone.
    """
    try:
        yield
    except RuntimeError as error:
        if "SparseAdam does not support dense gradients" not in str(error):
            raise
        asked = config.final_config_dict.items()
        keys = [k for k, v in asked if k.endswith("learner") and str(v).lower() == "sparse_adam"]
        raise ConfigError(
            f"sparse_adam has no step for dense gradients, got {' and '.join(keys)}: sparse_adam for "
            f"{config['model']}, whose gradients are dense; write {keys[0]}: adam, which with "
            "sparse_embeddings: True moves the rows of the batch alone"
        ) from error
    except KeyError as error:
        trace = error.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        if not trace.tb_frame.f_code.co_filename.endswith("interaction.py"):
            raise
        field, columns = str(error.args[0]), train_data._dataset.inter_feat.columns
        sampling = "train_neg_sample_args: {'distribution': 'uniform', 'sample_num': 1}"
        got, hint = f"rows of {', '.join(columns)}", f"add {field} to load_col"
        if field.startswith(config["NEG_PREFIX"]):
            hint = f"write {sampling}"
        elif field == config["LABEL_FIELD"]:
            hint = f"write {sampling}, or threshold: {{'rating': 4}} to make it from ratings"
        elif field in columns and "full" in config["eval_args"]["mode"].values():
            got = "a ranking of all items, which has no columns of interactions"
            hint = f"leave {field} out of load_col, or write eval_args: {{'mode': 'uni100'}}"
        elif field in columns:
            got = "a file of test_sets, which has only users and items"
            hint = f"leave {field} out of load_col, or the file out of test_sets"
        raise ConfigError(
            f"{config['model']} needs the field {field!r}, got {got}; {hint}"
        ) from error
