"""The command ``stability``: how other users' lists change with one training row of one user.

After Oh et al., *Rank List Sensitivity of Recommender Systems to Interaction Perturbations*, CIKM 2022
(CASPER), with random rows in the place of those that CASPER chooses: a model is trained again, on the
same seed, without one row, or with another item in it, and the lists of all other test users are compared:

    Jaccard@k = |A_k & B_k| / |A_k | B_k|
    RBO@k     = (1 - p) / (1 - p^k) sum over d = 1..k of p^(d-1) |A_d & B_d| / d,   p = .9

Both are 1 for equal lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.utils import init_seed
from torch import Tensor

from recbole_adv.config import Config
from recbole_adv.data.check import check_dataset
from recbole_adv.data.leak_check import take_rows
from recbole_adv.data.preparation import split_data
from recbole_adv.errors import ConfigError
from recbole_adv.evaluation.part import ranked_part
from recbole_adv.evaluation.ranking import rank
from recbole_adv.evaluation.summary import mean_and_error
from recbole_adv.prepared_run import in_words, load_dataset, make_loaders, prepared_run
from recbole_adv.robustness.fake_users import pairs_in
from recbole_adv.robustness.output import markdown, output_of, plus_minus, write_json, written
from recbole_adv.robustness.plan import count_of, seeds_of, words_of
from recbole_adv.robustness.trained import can_rank

CHANGES = ("drop", "replace")
PERSISTENCE = 0.9


@dataclass(frozen=True)
class StabilityPlan:
    """changes: names of ``CHANGES``; n_rows: trainings with one changed row, for each and each seed."""

    changes: tuple[str, ...] = CHANGES
    n_rows: int = 3
    seeds: str = "3"
    output: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> StabilityPlan:
        """From the flags by name, checked."""
        seeds_of(given["seeds"])
        return cls(
            tuple(words_of("--changes", given["changes"], CHANGES)),
            count_of("--n_rows", given["n_rows"]),
            str(given["seeds"]),
            given["output"],
        )


def similarity(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Jaccard@K and RBO@K of lists, [n] each.   one, other: [n, K] items, best first, none twice."""
    k = one.shape[1]
    same = (one.unsqueeze(2) == other.unsqueeze(1)).double()  # [n, K, K]
    shared = same.cumsum(1).cumsum(2).diagonal(dim1=1, dim2=2)  # [n, K], of the first d of both
    depth = torch.arange(1, k + 1, dtype=torch.float64)
    weight = PERSISTENCE ** (depth - 1)
    overlap = (weight * shared / depth).sum(1) / weight.sum()
    return shared[:, -1] / (2 * k - shared[:, -1]), overlap


def stability(
    plan: StabilityPlan,
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    say: Callable[[str], Any] = lambda line: None,
) -> tuple[Path, str]:
    """Train with and without changed rows, and write the report; arguments as of ``poison``."""

    def configuration(**own: Any) -> Config:
        quiet = {"state": "error", "show_progress": False}
        given = {**quiet, **(config_dict or {}), **own}
        return Config(model, dataset, config_file_list, given, settings)

    config = configuration()
    if not can_rank(config) or config["eval_args"]["mode"] not in ("full", _FULL):
        raise ConfigError(
            "stability compares lists out of all items, got eval_args mode "
            f"{config['eval_args']['mode']!r}; write eval_args: {{'mode': 'full'}}"
        )
    suffix = Path("runs") / f"{config['model']}-{config['dataset']}"
    folder = output_of(plan.output, suffix, "stability")
    check_dataset(config)
    rows: list[dict[str, Any]] = []
    with written(folder, keep="runs/*/result.json") as aside:
        for seed in seeds_of(plan.seeds, config["seed"]):
            of_seed: dict[str, Tensor] = {}
            for change, number in _trainings(plan):
                name = f"{change}-{number}-seed-{seed}"
                own = configuration(seed=seed, run_dir=str(aside / "runs" / name))
                user, lists, changed = _lists(own, change, number)
                if change == "none":
                    of_seed = {"user": user, "lists": lists}
                    continue
                others = user != changed
                jaccard, overlap = similarity(of_seed["lists"][others], lists[others])
                figures = {"jaccard": jaccard.mean().item(), "rbo": overlap.mean().item()}
                rows.append({"change": change, "seed": seed, "row": number, **figures})
                say(f"{name}: Jaccard {figures['jaccard']:.4f}, RBO {figures['rbo']:.4f}")
        text = _write(aside, rows, config, plan)
    return folder, f"{text}\n\n{folder}"


_FULL = {"valid": "full", "test": "full"}


def _trainings(plan: StabilityPlan) -> list[tuple[str, int]]:
    return [("none", 0), *((c, n) for c in plan.changes for n in range(plan.n_rows))]


def _lists(config: Config, change: str, number: int) -> tuple[Tensor, Tensor, int]:
    """The users of the test, their lists [n, K], and whose row was changed."""
    found: dict[str, int] = {}

    def load(config):
        return load_changed(config, change, number, found)

    with prepared_run(config, load=load) as run:
        run.trainer.fit(run.train_data, run.valid_data, saved=True, show_progress=False)
        result = run.test(load_best_model=True)
        loader = run.test_data
        assert isinstance(loader, FullSortEvalDataLoader)
        part = ranked_part(config, loader, [], lists=False)
        with torch.no_grad():
            lists = rank(run.trainer, loader, part, max(config["topk"]), loader.step).item
        run.directory.write_result({"test_result": result, "change": change, **found})
    for file in Path(config["run_dir"]).glob("*.pth"):
        file.unlink()
    if loader.is_sequential:
        user = loader._dataset.inter_feat[loader._dataset.uid_field]
    else:
        user = loader.uid_list
    return user[part.rows], lists, found.get("user", 0)


def load_changed(config, change: str, number: int, found: dict[str, int]) -> tuple:
    """RecBole's dataset and loaders with one training row dropped, or given another item.

    ``found`` receives the ``user`` of the row. The split is made before, as of a run without a change.
    """
    init_seed(config["seed"], config["reproducibility"])
    dataset = load_dataset(config)
    prepared = in_words(config, lambda: split_data(config, dataset))
    if change != "none":
        train, rng = prepared.parts["train"], np.random.default_rng([config["seed"], number])
        n = len(train.inter_feat)
        row = int(rng.integers(n))
        kept = torch.arange(n)
        part = take_rows(train, kept[kept != row] if change == "drop" else kept)
        user = int(train.inter_feat[train.uid_field][row])
        if change == "replace":
            of, item = pairs_in(train)
            free = np.setdiff1d(np.arange(1, train.item_num), item[of == user])
            column = part.inter_feat[train.iid_field].clone()
            column[row] = int(rng.choice(free))
            part.inter_feat[train.iid_field] = column
        prepared.parts["train"] = part
        found["user"] = user
    return dataset, *make_loaders(config, dataset, prepared)


def _write(folder: Path, rows: list[dict[str, Any]], config, plan: StabilityPlan) -> str:
    frame, k = pd.DataFrame(rows), max(config["topk"])
    frame.to_csv(folder / "lists.csv", index=False)
    cells, summary = [], []
    for change, own in frame.groupby("change", sort=False):
        spread = {name: mean_and_error(list(own[name])) for name in ("jaccard", "rbo")}
        summary.append({"change": change, "trainings": len(own), **spread})
        cells.append([change, len(own), *(plus_minus(*spread[n]) for n in ("jaccard", "rbo"))])
    settings = {**vars(plan), "model": config["model"], "dataset": config["dataset"], "k": k}
    settings["config"] = dict(config.external_config_dict)
    write_json(
        folder / "report.json", {"settings": settings, "summary": summary, "trainings": rows}
    )
    table = markdown(["one row of training", "trainings", f"Jaccard@{k}", f"RBO@{k}"], cells)
    text = f"# {config['model']}: lists of the other users after one changed row\n\n{table}\n\n"
    text += "Mean ± standard error over the trainings; 1: no list has changed."
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    return text
