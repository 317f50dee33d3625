"""Columns of the interactions without which a run cannot be."""

from __future__ import annotations

from recbole.utils import ModelType


def needed_columns(config, of_training: bool = False) -> dict[str, str]:
    """Columns of an ``.inter`` file that must be there, and the key that asks for each.

    config: RecBole's ``Config``, or a mapping that gives None for a key it lacks; of_training:
    whether the file has the training rows only.
    """
    needed = {config["USER_ID_FIELD"]: "USER_ID_FIELD", config["ITEM_ID_FIELD"]: "ITEM_ID_FIELD"}
    needed |= dict.fromkeys(config["threshold"] or (), "threshold")
    asks_for_time = _asks_for_time(config)
    if asks_for_time:
        needed[config["TIME_FIELD"]] = f"TIME_FIELD, with {asks_for_time},"
    mode = (config["eval_args"] or {}).get("mode")
    modes = list(mode.values()) if isinstance(mode, dict) else [mode]
    if config["benchmark_filename"] is None:
        labelled = "labeled" in modes
    else:  # negatives may be drawn for the rows of training, and for those of a phase
        labelled = not of_training and set(modes) == {"labeled"}
    if labelled and not config["threshold"]:
        needed[config["LABEL_FIELD"]] = "LABEL_FIELD, with eval_args mode: labeled,"
    return needed


def _asks_for_time(config) -> str:
    """What asks for the times of the interactions, in words; empty if nothing does."""
    if config["benchmark_filename"] is not None:
        return ""
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        return "a model of sequences"
    if config["shift_file"]:
        return ""
    if config["shift_split"]:  # its splits do not read order
        return "shift_split: time" if config["shift_split"] == "time" else ""
    return "eval_args order: TO" if (config["eval_args"] or {}).get("order") == "TO" else ""
