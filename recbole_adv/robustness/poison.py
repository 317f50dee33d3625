"""The command ``poison``: a model trained again on data with fake users, beside one on clean data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recbole.utils import init_seed

from recbole_adv.config import Config
from recbole_adv.data.check import check_dataset
from recbole_adv.data.preparation import split_data
from recbole_adv.errors import ConfigError, suggest
from recbole_adv.prepared_run import in_words, load_dataset, make_loaders, prepared_run
from recbole_adv.robustness import fake_users
from recbole_adv.robustness.output import output_of, write_json, written
from recbole_adv.robustness.plan import count_of, numbers_of, seeds_of, words_of
from recbole_adv.robustness.poison_report import write_report
from recbole_adv.robustness.promotion import Promotion, promotion
from recbole_adv.robustness.tables import Point
from recbole_adv.robustness.trained import main_metric

ATTACKS = ("random", "bandwagon", "pga")


@dataclass(frozen=True)
class PoisonPlan:
    """What is trained.

    shares: fake users by real ones; target_items: tokens, or None for ``n_targets`` drawn by seed;
    profile_size: items of a fake user, None for the mean of real ones; popular_share: of a bandwagon's
    fillers; keep_checkpoints: else a training's files of weights are removed when it is measured.
    """

    attacks: tuple[str, ...]
    shares: tuple[float, ...]
    n_targets: int = 5
    target_items: tuple[str, ...] | None = None
    profile_size: int | None = None
    popular_share: float = 0.5
    seeds: str = "3"
    metric: str | None = None
    output: str | None = None
    keep_checkpoints: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> PoisonPlan:
        """From the flags by name, checked."""
        items = given["target_items"]
        if items is not None and given["n_targets"] is not None:
            raise ConfigError(
                f"--target_items names the targets, got --n_targets {given['n_targets']!r} too; leave "
                "one out"
            )
        items = (
            None if items is None else [word for part in items for word in part.split(",") if word]
        )
        if items is not None and (not items or len(set(items)) < len(items)):
            raise ConfigError(
                f"--target_items must be different items as the data name them, got {items!r}; write "
                "--target_items 12 345, or --n_targets 5"
            )
        share = (
            "shares of fake users above 0 and up to 1, as 0.01 (the clean data are always there)"
        )
        (popular,) = numbers_of(
            "--popular_share", [given["popular_share"]], lambda p: 0 < p <= 1, "one share, as 0.5"
        )
        size = given["profile_size"]
        n_targets = 5 if given["n_targets"] is None else given["n_targets"]
        seeds_of(given["seeds"])
        return cls(
            tuple(words_of("--attacks", given["attacks"], ATTACKS)),
            tuple(numbers_of("--share", given["share"], lambda p: 0 < p <= 1, share)),
            count_of("--n_targets", n_targets),
            None if items is None else tuple(items),
            None if size is None else count_of("--profile_size", size, 2),
            popular,
            str(given["seeds"]),
            given["metric"],
            given["output"],
            given["keep_checkpoints"],
        )


def poison(
    plan: PoisonPlan,
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    say: Callable[[str], Any] = lambda line: None,
) -> tuple[Path, str]:
    """Train on clean and on poisoned data for every seed, attack and share, and write the report.

    Returns the folder and the report as markdown.
    """

    def configuration(**own: Any) -> Config:
        quiet = {"state": "error", "show_progress": False}
        given = {**quiet, **(config_dict or {}), **own}
        return Config(model, dataset, config_file_list, given, settings)

    config = configuration()
    metric = main_metric(config, plan.metric)
    seeds = seeds_of(plan.seeds, config["seed"])
    folder = output_of(
        plan.output, Path("runs") / f"{config['model']}-{config['dataset']}", "poison"
    )
    check_dataset(config)
    points: list[Point] = []
    settled = [("none", 0.0), *((a, s) for a in plan.attacks for s in plan.shares)]
    with written(folder, keep="runs/*/figures.json") as aside:
        for seed in seeds:
            clean: list[Promotion] = []  # of the first training, on the clean data
            for attack, share in settled:
                name = f"{attack}-{share:g}-seed-{seed}"
                own = configuration(seed=seed, run_dir=str(aside / "runs" / name))
                figures = _train(own, plan, attack, share, clean)
                points.append(Point(config["model"], attack, share, seed, figures))
                write_json(aside / "runs" / name / "figures.json", figures)
                told = f"{metric} {figures[metric]:.4f}, {_told(figures)}"
                say(f"{attack} {share:g}, seed {seed}: {told}")
        given = {**vars(plan), "model": config["model"], "dataset": config["dataset"]}
        keys = {"techniques": config["techniques"], **config.external_config_dict}
        text = write_report(aside, points, metric, {**given, "config": keys})
    return folder, f"{text}\n\n{folder}"


def _told(figures: Mapping[str, float]) -> str:
    name = next(name for name in figures if name.startswith("t-hr@"))
    return f"{name} {figures[name]:.4f}"


def _train(
    config: Config, plan: PoisonPlan, attack: str, share: float, clean: list[Promotion]
) -> dict[str, float]:
    """Metrics on the test data, of the targets, and the number of fake users.

    clean: the targets in the lists of clean training; empty if this is it, which is then put in.
    """
    found: dict[str, Any] = {}

    def load(config):
        return load_poisoned(config, plan, attack, share, found)

    with prepared_run(config, load=load) as run:
        run.trainer.fit(run.train_data, run.valid_data, saved=True, show_progress=False)
        figures = run.test(load_best_model=True) or {}
        promoted = promotion(run, found["targets"], found["n_real"])
        clean += [] if clean else [promoted]
        figures |= {**promoted.figures, "t-shift": promoted.shift_from(clean[0])}
        run.directory.write_result({"test_result": figures, **found["record"]})
    if not plan.keep_checkpoints:
        for file in Path(config["run_dir"]).glob("*.pth"):
            file.unlink()
    return figures | {"fake_users": float(found["n_fake"])}


def load_poisoned(
    config, plan: PoisonPlan, attack: str, share: float, found: dict[str, Any]
) -> tuple:
    """RecBole's dataset and loaders with fake users in the training part.

    Real interactions are split before any fake one is made, by the random numbers of a run without
    them, so that every part of the real data is what it is in the clean run of the same seed. ``found``
    receives ``targets`` [t], ``n_real``, ``n_fake`` and a ``record`` of plain data.
    """
    init_seed(config["seed"], config["reproducibility"])
    dataset = load_dataset(config)
    prepared = in_words(config, lambda: split_data(config, dataset))
    train, n_real = prepared.parts["train"], dataset.user_num
    targets = _targets(plan, dataset, train, config["seed"])
    size = fake_users.profile_size(train, len(targets), plan.profile_size)
    n_fake = math.ceil(round(share * (n_real - 1), 9)) if attack != "none" else 0
    if n_fake:
        profiles = fake_users.profiles_of(
            attack, train, targets, n_fake, size, config["seed"], plan.popular_share
        )
        fake_users.add_fake_users(dataset, prepared.parts, profiles, config["seed"])
    tokens = [str(token) for token in dataset.id2token(dataset.iid_field, targets)]
    record = {"targets": tokens, "fake_users": n_fake, "profile_size": size}
    prepared.record["poison"] = {"attack": attack, "share": share, **record}
    found |= {"targets": targets, "n_real": n_real, "n_fake": n_fake, "record": record}
    return dataset, *make_loaders(config, dataset, prepared)


def _targets(plan: PoisonPlan, dataset, train, seed: int) -> np.ndarray:
    """Ids, ascending."""
    if plan.target_items is None:
        return fake_users.draw_targets(fake_users.popularity(train), plan.n_targets, seed)
    known = dataset.field2token_id[dataset.iid_field]
    for token in plan.target_items:
        if token not in known or token == "[PAD]":
            hint = suggest(token, map(str, known)) or "; write an item as the data name it"
            raise ConfigError(
                f"--target_items: {dataset.dataset_name!r} has no item {token!r}{hint}"
            )
    return np.sort([known[token] for token in plan.target_items])
