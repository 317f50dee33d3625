"""RecBole's ``data_preparation`` with our splits, the leak check and further evaluation parts."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data import data_preparation
from recbole.data.dataset import SequentialDataset
from recbole.data.utils import create_samplers, get_dataloader

from recbole_adv.data import leak_check
from recbole_adv.data.shift_plan import Plan, plan_of, split_path, users_in_group
from recbole_adv.data.shift_split import Rows, split_rows
from recbole_adv.data.split_file import Split, fingerprint, load_split, part_named, save_split
from recbole_adv.data.split_report import (
    as_table,
    describe,
    fingerprint_of,
    log_later_rows,
    log_leaks,
    statistics,
)
from recbole_adv.data.test_set_file import file_parts
from recbole_adv.data.train_sampler import replace_samplers
from recbole_adv.errors import DataError

SPLIT_FILES = ("split.json", "split.npz")
"""What :meth:`Prepared.write` writes."""


@dataclass
class Prepared:
    """The data of a run, split.

    train, valid, test: RecBole's loaders; others: loaders of the parts that are only reported, by
    name; parts: the datasets of all parts by name, train first; record: statistics, plain data;
    split: which row is in which part, None where RecBole split; leaked: the pairs of each part that
    leak and stay.
    """

    parts: dict[str, Any] = field(default_factory=dict)
    valid_name: str = "valid"
    test_name: str = "test"
    loaders: tuple = ()
    others: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    split: Split | None = None
    leaked: dict[str, np.ndarray] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """``split.json``, and ``split.npz``, which ``shift_file`` reads."""
        aside = folder / "split.json.tmp"
        aside.write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")
        os.replace(aside, folder / "split.json")
        if self.split is not None:
            save_split(folder / "split.npz", self.split)


def split_data(config, dataset) -> Prepared:
    """Split a dataset and check the parts for leaks; :func:`prepare_data` builds the loaders."""
    prepared = Prepared()
    _split(config, dataset, prepared)
    prepared.parts |= file_parts(config, prepared.parts)
    prepared.leaked = _check(config, prepared)
    return prepared


def prepare_data(config, dataset, prepared: Prepared | None = None) -> Prepared:
    """Split a dataset, unless ``prepared`` is what :func:`split_data` made of it, and load the parts.

    Without ``shift_*`` keys the loaders are those of RecBole's ``data_preparation``, bit for bit.
    """

    def build():
        nonlocal prepared
        vars(dataset).pop("build")  # the parts are copies and must not hold this function
        prepared = prepared or split_data(config, dataset)
        return [prepared.parts[n] for n in ("train", prepared.valid_name, prepared.test_name)]

    dataset.build = build
    try:
        loaders = data_preparation(config, dataset)
    finally:
        vars(dataset).pop("build", None)
    if prepared is None:  # RecBole found saved loaders
        built = (loader._dataset for loader in loaders)
        prepared = Prepared(dict(zip(("train", "valid", "test"), built)))
        prepared.parts |= _further_files(config, dataset)
        prepared.parts |= file_parts(config, prepared.parts)
        prepared.leaked = _check(config, prepared)
        for name, loader in zip(("train", "valid", "test"), loaders):
            n_leaked = len(loader._dataset) - len(prepared.parts[name])
            if n_leaked:
                raise DataError(
                    f"drop_leaks: True leaves out {n_leaked} rows of {name}, which the loaders saved in "
                    f"{config['checkpoint_dir']} hold; remove that file, or write drop_leaks: False"
                )
    prepared.loaders = loaders
    replace_samplers(config, prepared.loaders[0])
    _load_others(config, dataset, prepared)
    if config["mask_leaks"]:
        _mask(config, prepared)
    dataset.prepared = prepared
    return prepared


def _split(config, dataset, prepared: Prepared) -> None:
    plan = plan_of(config)
    if plan is None and config["shift_file"] is None:
        names = list(config["benchmark_filename"] or ())[3:]
        parts = dataset.build()
        prepared.parts = dict(zip(("train", "valid", "test", *names), parts))
        return
    dataset._change_feat_format()  # a sequential dataset makes its sequences here
    rows = _rows(dataset)
    notes: dict[str, dict[str, float]] = {}
    if config["shift_file"] is not None:
        settings = plan.settings if plan else None
        split = load_split(split_path(config), settings, rows.user, rows.item)
        text = f"split by shift_file {config['shift_file']}: {split.settings}"
    else:
        assert plan is not None
        split, notes = _draw(config, dataset, rows, plan)
        text = describe(plan, notes)
    getLogger().info(text)
    dataset._drop_unused_col()
    for code, name in enumerate(split.names):
        index = torch.from_numpy(np.flatnonzero(split.part == code))
        prepared.parts[name] = leak_check.take_rows(dataset, index)
    prepared.split = split
    prepared.valid_name = f"valid_{config['shift_valid'][0]}"
    prepared.test_name = f"test_{config['shift_test'][0]}"
    for key in ("valid", "test"):
        for which in config[f"shift_{key}"]:
            part_named(split, f"{key}_{which}")
    prepared.record |= {"settings": split.settings, "draws": notes}


def _further_files(config, dataset) -> dict[str, Any]:
    """The parts that ``benchmark_filename`` names after the third, of which RecBole saves no loaders."""
    names = list(config["benchmark_filename"] or ())
    if len(names) <= 3:
        return {}
    dataset._drop_unused_col()
    end = np.cumsum(dataset.file_size_list)
    cut = {name: torch.arange(end[k - 1], end[k]) for k, name in enumerate(names) if k >= 3}
    return {name: leak_check.take_rows(dataset, index) for name, index in cut.items()}


def _rows(dataset) -> Rows:
    rows, sequential = dataset.inter_feat, isinstance(dataset, SequentialDataset)
    time = None
    if dataset.time_field is not None and dataset.time_field in rows:
        time = rows[dataset.time_field].numpy().reshape(len(rows), -1)[:, 0]
    user, item = rows[dataset.uid_field].numpy(), rows[dataset.iid_field].numpy()
    return Rows(user, item, time, sequential)


def _draw(config, dataset, rows: Rows, plan: Plan) -> tuple[Split, dict[str, dict[str, float]]]:
    group = None
    if any(draw.kind == "users" for draw in plan.draws):
        group = users_in_group(dataset, rows.user, config["shift_column"], config["shift_values"])
    if any(draw.kind == "time" for draw in plan.draws) and rows.time is None:
        raise DataError(
            f"shift_split: time needs the timestamps of the interactions, got no column "
            f"{dataset.time_field!r}; add it to load_col"
        )
    part, notes = split_rows(rows, plan.draws, group, plan.seed)
    for code, draw in enumerate(plan.draws, start=1):
        if not (part == code).any():
            key = "shift_share" if draw.n_max is None else "shift_n_max"
            raise DataError(
                f"{draw.name} is empty: with {key}: {config[key]:g} chance has drawn none of "
                f"{len(part)} interactions; write a larger {key}"
            )
    return Split(part, plan.names, plan.settings, fingerprint(rows.user, rows.item)), notes


def _check(config, prepared: Prepared) -> dict[str, np.ndarray]:
    """Count, say and, where asked, drop what leaks.

    Returns the pairs of each part that leak and stay.
    """
    leaked, counts = leak_check.find_leaks(prepared.parts)
    sequential = isinstance(prepared.parts["train"], SequentialDataset)
    n_dropped = 0
    if config["drop_leaks"]:
        prepared.parts = leak_check.drop_rows(prepared.parts, leaked)
        n_dropped = sum(int(mask.sum()) for mask in leaked.values())
    parts, of_part = prepared.parts, statistics(prepared.parts)
    getLogger().info("the parts of the data\n%s", as_table(of_part))
    log_leaks(config, counts, sequential, n_dropped)
    prepared.record |= {
        "parts": of_part,
        "test": prepared.test_name,
        "fingerprints": {name: fingerprint_of(part) for name, part in parts.items()},
        "leaks": counts,
        "dropped": n_dropped,
        "masked": bool(config["mask_leaks"]),
        "later_training_rows": log_later_rows(config, parts, prepared.split, sequential),
    }
    if config["drop_leaks"]:
        return {}
    return {name: leak_check.pairs_of(parts[name])[mask] for name, mask in leaked.items()}


def _load_others(config, dataset, prepared: Prepared) -> None:
    """Loaders of the parts that are only reported; each is masked as the part it stands beside."""
    train, valid = (prepared.parts[n] for n in ("train", prepared.valid_name))
    for name, part in prepared.parts.items():
        if name in ("train", prepared.valid_name, prepared.test_name) or not len(part):
            continue
        phase = "valid" if name.startswith("valid") else "test"
        built = [train, part, part] if phase == "valid" else [train, valid, part]
        _, *samplers = create_samplers(config, dataset, built)
        sampler = samplers[0 if phase == "valid" else 1]
        prepared.others[name] = get_dataloader(config, phase)(config, part, sampler, shuffle=False)


def _mask(config, prepared: Prepared) -> None:
    _, valid, test = prepared.loaders
    loaders = {prepared.valid_name: valid, prepared.test_name: test, **prepared.others}
    for name, pairs in prepared.leaked.items():
        if len(pairs):
            leak_check.mask_pairs(loaders[name], pairs, config["topk"])
