"""RecBole's metrics on rankings and labelled rows, of all rows and of groups of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from copy import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recbole.evaluator import Evaluator
from recbole.evaluator.collector import Collector, DataStruct
from recbole.evaluator.metrics import AveragePopularity, TailPercentage
from recbole.evaluator.register import metric_information, smaller_metrics
from torch import Tensor

from recbole_adv import processes
from recbole_adv.evaluation.groups import Grouping
from recbole_adv.evaluation.part import Part
from recbole_adv.evaluation.ranking import Ranking

POPULARITY = ("averagepopularity", "giniindex", "itemcoverage", "tailpercentage")
"""What ``popularity_metrics`` adds."""
_COLLECTED = ("rec.items", "rec.topk", "rec.meanrank", "rec.score", "data.label")
"""What RecBole collects row by row."""
_OF_ROWS = ({"rec.topk"}, {"rec.score", "data.label"})
"""What a metric may need to be one of each row, so that it has a meaning for some of them."""


class JoinedEvaluator:
    """RecBole's Evaluator, on the rows that all processes have collected."""

    def __init__(self, stock: Evaluator):
        self.stock = stock

    def evaluate(self, struct: DataStruct) -> Mapping[str, float]:
        """RecBole's method; every process must call it."""
        for name in _COLLECTED:
            rows = processes.joined_rows(struct[name] if name in struct else None)
            if rows is not None:
                struct.set(name, rows)
        return self.stock.evaluate(struct)


class ByItem:
    """RecBole looks up each place of each list; here each item, once. The values are the same."""

    def get_pop(self, item_matrix, item_count):
        return _by_item(item_matrix, lambda items: super(ByItem, self).get_pop(items, item_count))

    def get_tail(self, item_matrix, count_items):
        return _by_item(item_matrix, lambda items: super(ByItem, self).get_tail(items, count_items))


def _by_item(item_matrix: np.ndarray, look_up) -> np.ndarray:
    items, place = np.unique(item_matrix, return_inverse=True)
    return look_up(items[:, None])[place.reshape(item_matrix.shape), 0]


_FASTER = {
    "averagepopularity": type("AveragePopularity", (ByItem, AveragePopularity), {}),
    "tailpercentage": type("TailPercentage", (ByItem, TailPercentage), {}),
}


class Metrics:
    """RecBole's Evaluator for a list of metrics.

    needs: what they are computed from, in RecBole's names.
    """

    def __init__(self, config: Mapping[str, Any], names: Iterable[str]):
        self.names = list(names)
        # RecBole's classes read a configuration in which a missing key is None.
        self._settings = defaultdict(type(None), {**config, "metrics": self.names})
        self.evaluator = Evaluator(self._settings)
        self.needs = {need for name in self.names for need in metric_information[name]}
        for name, faster in _FASTER.items():
            if name in self.evaluator.metric_class:
                self.evaluator.metric_class[name] = faster(self._settings)

    def of_rows(self) -> Metrics:
        """Those that have a meaning for some of the rows."""
        names = [name for name in self.names if set(metric_information[name]) in _OF_ROWS]
        return Metrics(self._settings, names)

    def rank_collector(self) -> Collector | None:
        """RecBole's collector of the average ranks that GAUC is made of; None if none needs them."""
        names = [name for name in self.names if "rec.meanrank" in metric_information[name]]
        return Collector(Metrics(self._settings, names)._settings) if names else None

    def of_training(self, train_data) -> dict[str, Any]:
        """What these metrics need of the training data, as RecBole collects it."""
        collector = Collector(self._settings)
        # Of a loader with a knowledge graph RecBole does not find the data.
        collector.data_collect(SimpleNamespace(dataset=train_data._dataset))
        return collector.data_struct._data_dict

    def of_each_row(self, table: Tensor) -> dict[str, np.ndarray]:
        """What RecBole takes the mean of, [n] by metric, of those that count hits in lists.

        table: RecBole's ``rec.topk``, as :func:`hits` returns it.
        """
        struct = DataStruct()
        found: dict[str, np.ndarray] = {}
        struct.set("rec.topk", table)
        for name in self.names:
            if set(metric_information[name]) == {"rec.topk"}:
                metric = copy(self.evaluator.metric_class[name])
                metric.topk_result = partial(_columns, metric.topk)
                found |= metric.calculate_metric(struct)
        return found

    def __call__(self, data: Mapping[str, Any]) -> dict[str, float]:
        """The metrics by RecBole's names.   data: what they need, by name."""
        struct = DataStruct()
        for name, value in data.items():
            struct.set(name, value)
        return {k: float(v) for k, v in self.evaluator.evaluate(struct).items()}


def _columns(topk: Iterable[int], name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """In the place of RecBole's ``topk_result``: the values themselves.   value: [n, K]."""
    return {f"{name}@{k}": value[:, k - 1] for k in topk}


def hits(ranking: Ranking, part: Part, member: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """RecBole's ``rec.topk`` and the rows it is of.

    member: [P] bool, the targets that count; rows without any are left out. None counts all.
    Returns [n, K + 1] int32, for each place 1 where it is a hit, and the number of targets; [n].
    """
    n_rows = len(part)
    owner = torch.repeat_interleave(torch.arange(n_rows), part.targets.start.diff())
    hit = ranking.target >= 0
    if member is not None:
        hit &= member[ranking.target.clamp(min=0)]
        owner = owner[member]
    n_targets = torch.bincount(owner, minlength=n_rows)
    rows = (n_targets > 0).nonzero().squeeze(1)
    table = torch.cat([hit[rows].int(), n_targets[rows].int().unsqueeze(1)], dim=1)
    return table, rows


def by_group(metrics: Metrics, grouping: Grouping, group: Tensor, data_of) -> dict[str, float]:
    """The metrics of each group that has rows, and the worst, as ``<name>/<label>/<metric>``.

    group: [P] int64, of each target or labelled row; data_of: what the metrics need, of a [P] mask.
    """
    found: dict[str, dict[str, float]] = {}
    for g in group.unique().tolist():
        found[grouping.labels[g]] = metrics(data_of(group == g))
    result = {f"{grouping.name}/{g}/{k}": v for g, of_g in found.items() for k, v in of_g.items()}
    for name in next(iter(found.values()), {}):
        values = [of_g[name] for of_g in found.values()]
        worst = np.nanmax if name.split("@")[0] in smaller_metrics else np.nanmin
        known = any(value == value for value in values)
        result[f"{grouping.name}/worst/{name}"] = float(worst(values)) if known else float("nan")
    return result
