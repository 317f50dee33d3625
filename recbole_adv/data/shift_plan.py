"""The keys ``shift_*``, checked before data is loaded, as the parts that are to be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recbole.utils import ModelType

from recbole_adv.data.shift_split import Draw
from recbole_adv.errors import ConfigError, suggest

_KINDS = {"popularity": "popularity", "time": "time", "user": "users"}
_PARTS = ("shifted", "id")


@dataclass(frozen=True)
class Plan:
    """What is drawn, and which parts choose the model and are its test.

    draws: in the order in which they are drawn; valid, test: names of parts; seed: of the split;
    settings: the keys that decide which row goes where, as plain data.
    """

    draws: list[Draw]
    valid: str
    test: str
    seed: int
    settings: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """The names of the parts in the order of their codes."""
        return ["train", *(draw.name for draw in self.draws)]


def plan_of(config) -> Plan | None:
    """The plan of a configuration; None where RecBole splits."""
    if config["shift_split"] is None:
        return None
    kind, share = _KINDS[config["shift_split"]], config["shift_share"]
    tests, valids = list(config["shift_test"]), list(config["shift_valid"])
    draws = []
    if "shifted" in tests:
        n_max = config["shift_n_max"] if kind == "popularity" else None
        for gamma in (config["shift_gamma"], *(config["shift_more_gammas"] or ())):
            name = "test_shifted" if not draws else f"test_shifted_{_name_of(gamma)}"
            draws.append(Draw(name, kind, share, float(gamma), n_max))
    if "id" in tests:
        draws.append(Draw("test_id", "id", share))
    if "shifted" in valids:
        draws.append(Draw("valid_shifted", kind, share, float(config["shift_gamma"])))
    if "id" in valids:
        draws.append(Draw("valid_id", "id", share))
    seed = config["seed"] if config["shift_seed"] is None else config["shift_seed"]
    keys = ["shift_split", "shift_share", "shift_test", "shift_valid"]
    keys += {"popularity": ["shift_gamma", "shift_more_gammas", "shift_n_max"], "time": []}.get(
        kind, ["shift_column", "shift_values"]
    )
    settings = {key: config[key] for key in keys} | {"shift_seed": seed}
    return Plan(draws, f"valid_{valids[0]}", f"test_{tests[0]}", seed, settings)


def _name_of(gamma: float) -> str:
    """Short where that is exact, so that different numbers have different names."""
    return f"{gamma:g}" if float(f"{gamma:g}") == gamma else str(gamma)


def check_shift(final: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for the first value of these keys that cannot be used.

    final: the configuration as a mapping; types and ranges are checked by the schema before.
    """
    parts = final.get("benchmark_filename")
    if parts is not None and len(parts) < 3:
        raise ConfigError(
            "benchmark_filename must name the files of training, validation and test, and then of "
            f"further tests, got {parts}; write benchmark_filename: [train, valid, test]"
        )
    _check_leak_keys(final)
    if final["shift_file"] is not None and not Path(split_path(final)).is_file():
        raise ConfigError(
            f"there is no split in shift_file {final['shift_file']!r}; write the path of a run's "
            "split.npz"
        )
    split = final["shift_split"] or (final["shift_file"] and "file")
    if split is None:
        return
    for key in ("benchmark_filename", "dataloaders_save_path"):
        if final.get(key) is not None:
            asked = "shift_split" if final["shift_split"] else "shift_file"
            raise ConfigError(
                f"{asked} and {key} both say how the data are split, got {final[asked]!r} and "
                f"{final[key]!r}; leave one out"
            )
    for key in ("shift_test", "shift_valid"):
        _check_parts(key, final[key])
    if final["shift_split"] == "user":
        _check_users(final)
    _check_gammas(final)
    n_parts = len(final["shift_test"]) + len(final["shift_valid"])
    n_parts += len(final["shift_more_gammas"] or ())
    if n_parts * final["shift_share"] >= 1:
        raise ConfigError(
            f"shift_share {final['shift_share']:g} of the interactions in each of {n_parts} "
            f"held-out parts leaves none to train on; write less than {1 / n_parts:.3g}"
        )


def split_path(config) -> str:
    """``shift_file``; where it is gone, the copy that a run keeps, for a saved model of that run."""
    file, own = config["shift_file"], Path(config["run_dir"] or "", "split.npz")
    return str(own) if config["run_dir"] and own.is_file() and not Path(file).is_file() else file


def _check_parts(key: str, value: Any) -> None:
    names = list(value)
    if not names or len(set(map(str, names))) < len(names) or not set(names) <= set(_PARTS):
        wrong = next((name for name in names if name not in _PARTS), "")
        raise ConfigError(
            f"{key} must be a list of {' and '.join(_PARTS)}, the first of which counts, got "
            f"{value!r}{suggest(str(wrong), _PARTS)}; write {key}: [id, shifted]"
        )


def _check_gammas(final: Mapping[str, Any]) -> None:
    more = final["shift_more_gammas"]
    if more is None:
        return
    numbers = [g for g in more if isinstance(g, (int, float)) and not isinstance(g, bool) and g > 0]
    if len({*numbers, final["shift_gamma"]}) <= len(more):
        raise ConfigError(
            "shift_more_gammas must be positive numbers that differ from each other and from "
            f"shift_gamma {final['shift_gamma']:g}, got {more}; write shift_more_gammas: [10, 200]"
        )
    if final["shift_split"] != "popularity" or "shifted" not in final["shift_test"]:
        raise ConfigError(
            "shift_more_gammas are further tests of shift_split: popularity with shifted in "
            f"shift_test, got {final['shift_split']!r} and {final['shift_test']}; leave it out"
        )


def _check_users(final: Mapping[str, Any]) -> None:
    values = final["shift_values"]
    if not values:
        raise ConfigError(
            f"shift_split: user needs the users who are tested, got shift_values {values!r}; write "
            "the values of shift_column, or without it two quantiles of activity such as [0, 0.2]"
        )
    if final["shift_column"] is None:
        check_quantiles("activity", values)


def check_quantiles(of: str, values: Any) -> None:
    """Raise :class:`ConfigError` unless ``values`` are two numbers 0 <= low < high <= 1."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(values) != 2 or len(numbers) != 2 or not 0 <= numbers[0] < numbers[1] <= 1:
        raise ConfigError(
            f"shift_values of {of} must be two quantiles between 0 and 1, the lower first, got "
            f"{list(values)}; write [0, 0.2] for the lowest fifth"
        )


def _check_leak_keys(final: Mapping[str, Any]) -> None:
    if not final["mask_leaks"]:
        return
    if final["drop_leaks"]:
        raise ConfigError(
            "mask_leaks keeps leaked pairs as targets and drop_leaks removes them, got both; leave "
            "one out"
        )
    mode = final["eval_args"].get("mode", "full")
    modes = set(mode.values()) if isinstance(mode, dict) else {mode}
    sequential = final.get("MODEL_TYPE") == ModelType.SEQUENTIAL
    if modes != {"full"} or sequential:
        what = "a sequential model, whose history is never masked" if sequential else f"{mode!r}"
        raise ConfigError(
            f"mask_leaks masks the training items in a ranking of all items, got {what}; write "
            "drop_leaks: True"
        )


def users_in_group(dataset, user: np.ndarray, column: str | None, values: list) -> np.ndarray:
    """[U] bool: the users whose ``column`` has one of ``values``.

    Of a number column, and of activity (None), values are two quantiles of the users in the data:
    the user of rank r = 1..U' is at (r - 1/2) / U', ties ordered by id.

    user: [N] ids of the interactions.
    """
    known = np.zeros(dataset.user_num, dtype=bool)
    known[user] = True
    if column is None:
        return _between(np.bincount(user, minlength=dataset.user_num), known, values)
    features = dataset.user_feat
    there = [] if features is None else [c for c in features.columns if c != dataset.uid_field]
    kind = dataset.field2type[column].value if column in there else ""
    if kind not in ("token", "float"):
        usable = [c for c in there if dataset.field2type[c].value in ("token", "float")]
        hint = f"; write one of {', '.join(usable)}" if usable else ""
        raise ConfigError(
            f"shift_column must be a token or float column of the users, got {column!r}"
            f"{suggest(column, usable)}{hint or '; add it by load_col: {user: [...]}'}"
        )
    value = features[column].numpy()
    if kind == "float":
        check_quantiles(f"the number column {column!r}", values)
        return _between(value.reshape(len(value), -1)[:, 0], known, values)
    ids = dataset.field2token_id[column]
    unknown = [v for v in values if str(v) not in ids]
    if unknown:
        tokens = [t for t in ids if t != "[PAD]"]
        raise ConfigError(
            f"shift_values must be values of {column!r}, got {unknown[0]!r}"
            f"{suggest(str(unknown[0]), tokens)}; it has {', '.join(tokens[:12])}"
            + (" ..." if len(tokens) > 12 else "")
        )
    return known & np.isin(value, [ids[str(v)] for v in values])


def _between(key: np.ndarray, known: np.ndarray, values: list) -> np.ndarray:
    """The known users whose key lies between two quantiles."""
    users = np.flatnonzero(known)
    ordered = users[np.argsort(key[users], kind="stable")]
    at = (np.arange(len(ordered)) + 0.5) / len(ordered)
    group = np.zeros(len(known), dtype=bool)
    group[ordered[(at >= values[0]) & (at <= values[1])]] = True
    return group
