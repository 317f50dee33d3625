"""An evaluation as the keys ask for it, in the place of RecBole's loop over the batches."""

from __future__ import annotations

from collections.abc import Iterable
from logging import getLogger
from typing import Any

import pandas
import torch
from recbole.utils import EvaluatorType

from recbole_adv import processes
from recbole_adv.errors import ConfigError
from recbole_adv.evaluation import metrics as scoring
from recbole_adv.evaluation.groups import Grouping, groupings
from recbole_adv.evaluation.part import Part, names_of_users, phase_of, ranked_part
from recbole_adv.evaluation.ranking import rank, rows_at_once
from recbole_adv.evaluation.user_metrics import table_of_users

_KEYS = (
    *("valid_pool", "test_pool", "eval_mask", "eval_groups"),
    *("popularity_metrics", "eval_memory_mb", "save_user_metrics"),
)


def evaluation_of(config) -> Evaluation | None:
    """The evaluation that a configuration asks for; None where it is RecBole's."""
    return Evaluation(config) if any(config[key] for key in _KEYS) else None


class Evaluation:
    """Evaluates a trainer's model on loaders of RecBole.

    What a loader's part is like, its targets, pools and groups, is found out once.

    Attributes:
        of_users: with ``save_user_metrics``, the metrics of each user in the latest test.
    """

    of_users: pandas.DataFrame | None = None

    def __init__(self, config):
        self.config = config
        names = [name.lower() for name in config["metrics"]]
        if config["popularity_metrics"]:
            names += [name for name in scoring.POPULARITY if name not in names]
        self.metrics = scoring.Metrics(config.final_config_dict, names)
        self.metrics_of_groups = self.metrics.of_rows()
        self._groupings: list[Grouping] | None = None
        self._training: dict[str, Any] | None = None
        self._parts: dict[int, tuple[Any, Part]] = {}

    def groupings(self, trainer) -> list[Grouping]:
        """The groups, by the data that the trainer trains on."""
        if self._groupings is None:
            wanted = self.config["eval_groups"]
            data = trainer.train_data._dataset if wanted else None
            self._groupings = groupings(self.config, data)
        return self._groupings

    def _of_training(self, trainer) -> dict[str, Any]:
        if self._training is None:
            wanted = any(need.startswith("data.") for need in self.metrics.needs)
            self._training = self.metrics.of_training(trainer.train_data) if wanted else {}
        return self._training

    def __call__(self, trainer, loader, show_progress: bool = False) -> dict[str, float]:
        """Metrics by name; those of groups as ``<group>/<value>/<metric>``."""
        trainer.model.eval()
        if self.config["eval_type"] == EvaluatorType.VALUE:
            return self._of_labels(trainer, loader)
        part = self._part(trainer, loader)
        collector = self.metrics.rank_collector()
        look = collector and (lambda *a: collector.eval_batch_collect(a[0], None, *a[1:]))
        n_rows = rows_at_once(self.config["eval_memory_mb"], loader, collector is not None)
        k = max(self.config["topk"])
        ranking = rank(trainer, loader, part, k, n_rows, show_progress, look)
        table, _ = scoring.hits(ranking, part)
        if self.config["save_user_metrics"] and phase_of(loader) == "test":
            values = self.metrics.of_each_row(table)
            self.of_users = table_of_users(names_of_users(loader)[part.rows.numpy()], values)
        data = {"rec.topk": table, "rec.items": ranking.item, **self._of_training(trainer)}
        if collector is not None:
            struct = collector.get_data_struct()
            own = struct["rec.meanrank"] if "rec.meanrank" in struct else None
            data["rec.meanrank"] = processes.joined_rows(own)
        result = self.metrics(data)
        for grouping in self.groupings(trainer):

            def data_of(member):
                return {"rec.topk": scoring.hits(ranking, part, member)[0]}

            group = part.group[grouping.name]
            result |= scoring.by_group(self.metrics_of_groups, grouping, group, data_of)
        return result

    def prepare(self, trainer, loaders: Iterable[Any]) -> None:
        """Find out what these loaders' parts are like, so that mistakes show before training."""
        for grouping in self.groupings(trainer):
            _check_label(grouping, self.config["valid_metric"])
        for loader in loaders:
            if self.config["eval_type"] == EvaluatorType.RANKING:
                self._part(trainer, loader)

    def _part(self, trainer, loader) -> Part:
        if id(loader) not in self._parts:
            lists = "rec.items" in self.metrics.needs
            part = ranked_part(self.config, loader, self.groupings(trainer), lists)
            self._parts[id(loader)] = loader, part
            for grouping in self.groupings(trainer):
                _say_sizes(phase_of(loader), grouping, part.group[grouping.name])
        return self._parts[id(loader)][1]

    def _of_labels(self, trainer, loader) -> dict[str, float]:
        """Metrics of labelled rows, which RecBole's loader gives in the order of the data."""
        scores, labels, groups = [], [], {g.name: [] for g in self.groupings(trainer)}
        for batch in loader:
            rows, score, _, _ = trainer._neg_sample_batch_eval(batch)
            scores.append(score.cpu())
            labels.append(rows[self.config["LABEL_FIELD"]].cpu())
            for grouping in self.groupings(trainer):
                groups[grouping.name].append(grouping.of(rows.to("cpu")))
        # A column each, as RecBole's metrics take off the last dimension: of a single row else the only one.
        data = {"rec.score": _joined(scores).view(-1, 1), "data.label": _joined(labels).view(-1, 1)}
        result = self.metrics(data)
        for grouping in self.groupings(trainer):

            def data_of(member):
                return {name: values[member] for name, values in data.items()}

            group = _joined(groups[grouping.name])
            result |= scoring.by_group(self.metrics_of_groups, grouping, group, data_of)
        return result


def _joined(batches: list[torch.Tensor]) -> torch.Tensor:
    """The rows of all batches, of all processes."""
    return processes.joined_rows(torch.cat(batches) if batches else None)


def _check_label(grouping: Grouping, valid_metric: str) -> None:
    """Raise :class:`ConfigError` where validation is by a group that there is not."""
    before, found, after = valid_metric.partition(f"{grouping.name}/")
    label = after.rpartition("/")[0]
    known = [*grouping.labels, "worst"]
    if (
        found
        and (not before or before.endswith("/"))
        and label.lower() not in map(str.lower, known)
    ):
        raise ConfigError(
            f"valid_metric {valid_metric!r} names the group {label!r} of {grouping.name}, which has "
            f"{', '.join(grouping.labels)}; write one of them, or {grouping.name}/worst"
        )


def _say_sizes(phase: str, grouping: Grouping, group: torch.Tensor) -> None:
    count = torch.bincount(group, minlength=len(grouping.labels)).tolist()
    sizes = ", ".join(f"{g} {n}" for g, n in zip(grouping.labels, count) if n)
    getLogger().info("%s: targets by %s: %s", phase, grouping.name, sizes)


def with_prefix(name: str, result: dict[str, float]) -> dict[str, float]:
    """``<name>/<metric>``."""
    return {f"{name}/{metric}": value for metric, value in result.items()}


def score_of(result: dict[str, float], valid_metric: str) -> float:
    """The validation score.   valid_metric: in lower case, as RecBole's trainer has it."""
    by_name = {name.lower(): value for name, value in result.items()}
    if valid_metric not in by_name:
        raise ConfigError(
            f"valid_metric {valid_metric!r} is not among the results of the validation; write one of "
            f"{', '.join(result)}"
        )
    return by_name[valid_metric]
