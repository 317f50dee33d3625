"""Tells each batch which rows of the training data it is made of."""

from __future__ import annotations

import torch

from recbole_adv.errors import ConfigError


def attach_row_index(train_data, field: str) -> None:
    """Add the column ``field`` = 0, 1, ..., N-1 to the training rows, once.

    It is added after the split and, for sequences, after their augmentation; RecBole's shuffling
    permutes it and its negative sampling repeats it with the positives, so ``batch[field]`` [rows]
    always names the row that a batch row, positive or negative, was made from.
    """
    dataset = train_data._dataset
    rows = torch.arange(len(dataset.inter_feat))
    if field in dataset.inter_feat:
        if not torch.equal(dataset.inter_feat[field], rows):
            raise ConfigError(
                f"the data has a column {field!r} of its own; write another INTER_IDX_FIELD"
            )
        return
    dataset.inter_feat[field] = rows
