"""From a command to metrics, on one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.utils import set_color

from recbole_adv import checkpoint, processes, ray_session
from recbole_adv.config import Config
from recbole_adv.data.check import check_dataset
from recbole_adv.environment.environment_file import write_environments
from recbole_adv.errors import ConfigError
from recbole_adv.game.optimizer import is_of_optimizer
from recbole_adv.prepared_run import data_and_model as _data_and_model
from recbole_adv.prepared_run import prepared_run
from recbole_adv.resumption import checkpoint_at, resumed_config, take_along
from recbole_adv.run_directory import interrupt_explained


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

    Where ``torchrun`` has started it, or :func:`recbole_adv.launch.run_processes`, it is one of several
    processes that train together, and each returns the same.

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
        ``test_result`` (Python numbers; those of further tests as ``<set>/<metric>``), and
        ``run_dir``.

    Raises:
        RecBoleAdvError: one sentence on what is wrong.
    """
    config, resume = configured(model, dataset, config_file_list, config_dict, resume, command_line)
    check_dataset(config)
    with processes.joined(config["device"]):
        _agree(config)
        return _run(config, resume, saved)


def configured(
    model: str | type | None,
    dataset: str | None,
    config_file_list: Sequence[str] | None,
    config_dict: Mapping[str, Any] | None,
    resume: str | None,
    command_line: Sequence[str] | None,
) -> tuple[Config, str | None]:
    """The configuration that the arguments of :func:`run_recbole_adv` mean, and the checkpoint."""
    if resume is None:
        return Config(model, dataset, config_file_list, config_dict, command_line), None
    resume = checkpoint_at(resume)
    named = {key: v for key, v in (("model", model), ("dataset", dataset)) if v is not None}
    settings = {**(config_dict or {}), **named}
    return resumed_config(resume, config_file_list, settings, command_line), resume


def _agree(config: Config) -> None:
    """Of several processes, all write to one place, and only the first one shows what it does."""
    if processes.count() == 1:
        return
    check_writes(config, processes.count())
    for key in ("run_dir", "checkpoint_dir"):
        config[key] = processes.from_first(config[key])
    if not processes.is_first():
        config["show_progress"] = config["log_wandb"] = False


def check_writes(config: Config, n_processes: int) -> None:
    """Raise :class:`ConfigError` for files of RecBole's that each process would write."""
    for key in ("save_dataset", "save_dataloaders"):
        if config[key]:
            raise ConfigError(
                f"{key} would write one file from {n_processes} processes at a time; write it by a run "
                "of one process, or leave it out"
            )


def _run(config: Config, resume: str | None, saved: bool) -> dict[str, Any]:
    new_rates = resume is not None and any(map(is_of_optimizer, config.external_config_dict))
    told = interrupt_explained(Path(config["run_dir"]))
    with told, prepared_run(config, resume, new_rates=new_rates) as run:
        logger, trainer, progress = getLogger(), run.trainer, config["show_progress"]
        if resume is not None:
            take_along(trainer, Path(resume))
        best_valid_score, best_valid_result = trainer.fit(
            run.train_data, run.valid_data, saved=saved, show_progress=progress
        )
        logger.info(set_color("best valid ", "yellow") + f": {best_valid_result}")
        test_result = run.test(load_best_model=saved, show_progress=progress)
        _keep_environments(trainer.model, run)
        logger.info(set_color("run directory", "yellow") + f": {run.directory.path}")
        named = {key: config[key] for key in ("model", "dataset", "valid_metric")}
        result = {
            "best_valid_score": float(best_valid_score),
            "valid_score_bigger": config["valid_metric_bigger"],
            "best_valid_result": best_valid_result,
            "test_result": test_result,
        }
        run.directory.write_result({**named, **result})
    return {**result, "run_dir": str(run.directory.path)}


def _keep_environments(model, run) -> None:
    """Write what a model has inferred of its training rows, which ``environment_file`` reads."""
    inferred = getattr(model, "inferred_environments", lambda: None)()
    if inferred is not None and processes.is_first():
        write_environments(run.directory.path, run.train_data._dataset, inferred)


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


def objective_function(config_dict=None, config_file_list=None, saved=True, checkpoints=False):
    """The objective of RecBole's ``HyperTuning`` and of Ray Tune, in the place of RecBole's own.

    For ``HyperTuning`` it returns RecBole's keys, with ``model``. In a trial of Ray Tune it returns
    nothing; after each validation it reports ``epoch`` (how many are trained), ``valid_score`` and
    every metric by its name, on the validation data (RecBole's reports those of the test data, once,
    at the end). With ``checkpoints`` each report holds the state of training, from which the trial
    goes on when Ray starts it again, as population based training does.

    Importing it registers our models, in workers that are spawned or belong to Ray too.
    """
    settings = {"show_progress": False, "state": "error", **(config_dict or {})}
    if ray_session.trial_name() is not None:
        config = Config(config_file_list=config_file_list, config_dict=settings, command_line=())
        return _report_to_ray(config, saved, checkpoints)
    result = run_recbole_adv(
        config_file_list=config_file_list, config_dict=settings, saved=saved, command_line=None
    )
    name = (config_dict or {}).get("model")
    if name is None:
        name = Config(config_file_list=config_file_list, config_dict=config_dict).model
    return {"model": name, **result}


def _report_to_ray(config: Config, saved: bool, checkpoints: bool) -> None:
    config["data_path"] = ray_session.driver_path(config["data_path"])
    check_dataset(config)
    with ray_session.checkpoint_to_resume() as resume:
        with prepared_run(config, resume, new_rates=resume is not None) as run:
            trainer = run.trainer

            def report(epoch: int, score: float) -> None:
                metrics = {"epoch": epoch + 1, "valid_score": score, **trainer.valid_result}
                with (
                    ray_session.state_of(trainer, epoch) if checkpoints else nullcontext()
                ) as state:
                    ray_session.report(metrics, state)

            trainer.fit(run.train_data, run.valid_data, saved=saved, callback_fn=report)
