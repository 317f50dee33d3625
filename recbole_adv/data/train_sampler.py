"""The keys ``train_negatives`` and ``train_positives``: other samplers in RecBole's training loader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import TrainDataLoader
from recbole.utils import ModelType

from recbole_adv.data.negatives import (
    InBatchNegatives,
    StaticNegatives,
    UserUniformPositives,
    as_tiles,
)
from recbole_adv.errors import ConfigError


def check_train_sampler(final: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` if RecBole is not asked for the negatives that are replaced or needed."""
    kind, asked = final["train_negatives"], final.get("train_neg_sample_args")
    distribution = asked.get("distribution", "uniform") if asked else "none"
    if kind != "recbole" and distribution != "uniform":
        raise ConfigError(
            f"train_negatives: {kind} takes the place of uniform sampling, got train_neg_sample_args "
            f"{asked}; write train_neg_sample_args: {{'distribution': 'uniform', 'sample_num': 1}}"
        )
    # RecBole's KGTrainer reads a graph unless told to take no steps on it.
    reads_graph = final.get("train_kg_step") != 0 or not final.get("train_rec_step")
    if final["MODEL_TYPE"] == ModelType.KNOWLEDGE and distribution == "none" and reads_graph:
        raise ConfigError(
            "a knowledge-aware model trains on triples, whose negative tails RecBole draws by the "
            f"distribution of train_neg_sample_args, got {asked}; write train_neg_sample_args: "
            "{'distribution': 'uniform', 'sample_num': 1}"
        )


class _Sampler:
    """What RecBole's training loader calls."""

    def __init__(self, draw):
        self.draw = draw

    def sample_by_user_ids(self, user_ids, item_ids, num: int) -> torch.Tensor:
        """num negatives for each row, in RecBole's order: the k-th of row i at k B + i."""
        user, item = torch.as_tensor(user_ids), torch.as_tensor(item_ids)
        return as_tiles(self.draw(user, item, num))


def replace_samplers(config, train_data) -> None:
    """Put the samplers that the keys name into a training loader, in place."""
    if config["train_negatives"] == "recbole" and config["train_positives"] == "rows":
        return
    loader = getattr(train_data, "general_dataloader", train_data)  # beside that of a graph
    if not isinstance(loader, TrainDataLoader):
        raise ConfigError(
            f"{config['model']} trains on whole users, not on interactions, got train_negatives: "
            f"{config['train_negatives']} and train_positives: {config['train_positives']}; leave "
            "both out"
        )
    dataset = loader._dataset
    rows = dataset.inter_feat
    user, item = rows[dataset.uid_field], rows[dataset.iid_field]
    size = dataset.user_num, dataset.item_num

    def name_of(user_id: int) -> str:
        return str(dataset.id2token(dataset.uid_field, user_id))

    if config["train_negatives"] == "static":
        static = StaticNegatives(user, item, *size, name_of=name_of, seed=config["seed"])
        loader._sampler = _Sampler(static.of)
    elif config["train_negatives"] == "in_batch":
        in_batch = InBatchNegatives(user, item, *size, name_of=name_of)
        loader._sampler = _Sampler(in_batch.sample)
    if config["train_positives"] == "user_uniform":
        loader.collate_fn = _UserUniform(user, loader.collate_fn)


class _UserUniform:
    """A loader's ``collate_fn`` on rows drawn for the users in turn."""

    def __init__(self, user: torch.Tensor, collate_fn):
        self.positives = UserUniformPositives(user, torch.arange(len(user)))
        self.collate_fn = collate_fn

    def __call__(self, index):
        _, row = self.positives.positives_of(torch.as_tensor(np.asarray(index)))
        return self.collate_fn(row.numpy())
