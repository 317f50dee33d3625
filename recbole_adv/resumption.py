"""From a checkpoint to the configuration of the run that goes on from it, and to where it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_adv import checkpoint, processes
from recbole_adv.config import Config
from recbole_adv.discovery import find_model
from recbole_adv.errors import CheckpointError, ConfigError
from recbole_adv.run_directory import check_unused, checkpoint_in, why_no_checkpoint


def checkpoint_at(path: str) -> str:
    """The checkpoint that ``--resume`` names: a file, or that of a run's directory."""
    file = Path(path)
    if not file.is_dir():
        return str(file)
    found = checkpoint_in(file)
    if found is None:
        raise CheckpointError(why_no_checkpoint(file))
    return str(found)


def take_along(trainer, resumed: Path) -> None:
    """Where a run goes on in another directory, its best model so far and its last epoch go there too."""

    def best_of(last: Path) -> Path:
        name = "model.pth" if last.name == "last.pth" else last.name.replace("-last.pth", ".pth")
        return last.with_name(name)

    last, best = Path(trainer.last_file), best_of(resumed)
    own = best_of(last)
    if processes.from_first(best.is_file() and not own.is_file()):
        if processes.is_first():
            checkpoint.copy(str(best), str(own))
            checkpoint.copy(str(resumed), str(last))
        trainer.saved_model_file = str(own)


def resumed_config(file: str, config_files, config_dict, command_line) -> Config:
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
    config = Config.from_data(data, given)
    _set_places(config, data, given, Path(file).absolute().parent)
    return config


def _set_places(config: Config, data: Mapping[str, Any], given, here: Path) -> None:
    """Where the data are, and where the run goes on: beside its checkpoint, which may have been moved.

    A ``checkpoint_dir`` of the user's own does not tell where the run's other files are; those stay.

    here: where the checkpoint is.
    """
    if "data_path" in given:  # as of a new run, which has ml-100k from RecBole
        named = str(Path(given["data_path"] or "", config["dataset"]))
        config["data_path"] = data["data_path"] if config["dataset"] == "ml-100k" else named
    was = Path(data.get("run_dir") or here)
    apart = Path(data.get("checkpoint_dir") or was) != was  # a directory of the user's own
    if given.get("run_dir"):
        if Path(given["run_dir"]).resolve() != (was if apart else here).resolve():
            check_unused(Path(given["run_dir"]))
    elif data.get("run_dir") and not apart and here.resolve() != was.resolve():
        config["run_dir"] = str(here)
    config._set_run_dir()
    if data.get("run_dir") not in (None, config["run_dir"]):
        config.source_of["run_dir"] = f"the run was at {was} and goes on here"
    if data.get("run_dir") and apart and "checkpoint_dir" not in given:
        config["checkpoint_dir"] = data["checkpoint_dir"]


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
