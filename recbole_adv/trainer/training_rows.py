"""The training data as rows: their index in each batch, and a faster way to take a batch of them."""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_adv.errors import ConfigError


class TensorRows(Interaction):
    """An Interaction that takes rows by a tensor; RecBole makes a Python list of the index first,
    which every column then turns into a tensor of its own. The rows are the same."""

    def __getitem__(self, index):
        if isinstance(index, np.ndarray) and index.dtype.kind == "i":
            index = torch.from_numpy(index)
        if not isinstance(index, torch.Tensor) or index.dtype != torch.int64 or index.dim() != 1:
            return super().__getitem__(index)
        return Interaction({k: v.index_select(0, index) for k, v in self.interaction.items()})


def take_rows_by_tensor(train_data) -> None:
    """Let batches be taken from the training rows by tensor."""
    dataset = train_data._dataset
    if type(dataset.inter_feat) is Interaction:
        dataset.inter_feat.__class__ = TensorRows


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
