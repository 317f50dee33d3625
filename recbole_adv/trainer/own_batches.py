"""Batches that a player reads for itself, besides those that all see (``<player>_data: fresh``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from recbole.data.dataloader import KnowledgeBasedDataLoader
from recbole.utils import KGDataLoaderState

from recbole_adv.errors import ConfigError, DataError
from recbole_adv.loader.shares import weights


def on_device(batch, device: torch.device):
    """The batch there; RecBole copies the dict of a batch also where nothing has to move."""
    if next(iter(batch.interaction.values())).device == device:
        return batch
    return batch.to(device)


class OwnBatches:
    """A second reading of the training data for each player that wants one, within one epoch."""

    def __init__(self, device: torch.device):
        self.device = device
        self._readings: dict[str, Iterator[tuple[Any, float]]] = {}

    def next(self, name: str, train_data) -> tuple[Any, float]:
        """A batch for this player and what it counts in the mean over processes (``Turn.weight``)."""
        knowledge = isinstance(train_data, KnowledgeBasedDataLoader)
        if knowledge and train_data.state == KGDataLoaderState.RSKG:
            raise ConfigError(
                f"{name}_data: fresh does not work with a knowledge graph, whose loader cannot be "
                "read twice at a time; write same"
            )
        for _ in range(2):
            if name not in self._readings:
                self._readings[name] = zip(train_data, weights(train_data))
            batch, weight = next(self._readings[name], (None, 1.0))
            if batch is not None:
                return on_device(batch, self.device), weight
            del self._readings[name]
        raise DataError("the training data has no batch; check the filters of the dataset")
