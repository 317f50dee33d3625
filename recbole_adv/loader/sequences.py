"""The sequences of a sequential dataset, gathered when they are read.

RecBole writes for every row the last ``MAX_ITEM_LIST_LENGTH`` values of every column into a table. Here
the columns stand once, in the order of users and time, and a row knows where its sequence ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType
from torch import Tensor

END = "history_end"
"""The column of ``SequenceRows.rows`` with the position in the histories after a row's sequence."""


class SequenceRows(Interaction):
    """Rows of which the list columns are made when they are read.

    It is RecBole's Interaction to whoever reads it; a selection of rows is again one. What is not
    told otherwise below reads all columns.

    Attributes:
        rows: the other columns, and ``END``.
        histories: by list column, all values of its column [T, ...] in the order of users and time.
        length_field, max_length: the column with the lengths of the sequences, and their bound L.
    """

    def __init__(
        self, rows: Interaction, histories: Mapping[str, Tensor], length_field: str, max_length: int
    ):
        self.rows, self.histories = rows, dict(histories)
        self.length_field, self.max_length = length_field, max_length

    # --- reading --------------------------------------------------------------------------------

    @property
    def interaction(self) -> dict[str, Tensor]:
        """All columns; each reading makes the list columns anew."""
        return self.read(self.rows.interaction, self.histories)

    def read(
        self, rows: Mapping[str, Tensor], histories: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Columns of some rows with their sequences, on the device where both are."""
        columns = {name: value for name, value in rows.items() if name != END}
        if histories:
            place, beyond = sequence_places(rows[END], rows[self.length_field], self.max_length)
            columns |= {name: gather(values, place, beyond) for name, values in histories.items()}
        return columns

    def plain(self) -> Interaction:
        """RecBole's Interaction with all columns."""
        return Interaction(self.interaction)

    @property
    def columns(self) -> list[str]:
        return [name for name in self.rows.columns if name != END] + list(self.histories)

    @property
    def length(self) -> int:
        return len(self.rows)

    def __iter__(self):
        return iter(self.columns)

    def __contains__(self, item) -> bool:
        return item in self.columns

    def __getattr__(self, name):
        if "rows" not in self.__dict__ or name not in self.columns:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self[name]

    def __getitem__(self, index):
        if not isinstance(index, str):
            return self._like(take_rows(self.rows, index), self.histories)
        if index not in self.histories:
            return self.rows[index]
        return self.read(self.rows.interaction, {index: self.histories[index]})[index]

    def to(self, device, selected_field=None):
        return self.plain().to(device, selected_field)

    def repeat(self, sizes):
        return self.plain().repeat(sizes)

    def repeat_interleave(self, repeats, dim=0):
        return self.plain().repeat_interleave(repeats, dim)

    # --- writing --------------------------------------------------------------------------------

    def _like(self, rows: Interaction, histories: Mapping[str, Tensor]) -> SequenceRows:
        return SequenceRows(rows, histories, self.length_field, self.max_length)

    def __setitem__(self, key, value):
        if key in self.histories:
            del self.histories[key]
        self.rows[key] = value

    def __delitem__(self, key):
        if key in self.histories:
            del self.histories[key]
        else:
            del self.rows[key]

    def update(self, new_inter):
        for key in new_inter:
            self[key] = new_inter[key]

    def drop(self, column):
        if column not in self:
            raise ValueError(f"Column [{column}] is not in [{self}].")
        del self[column]

    def _reindex(self, index):
        self.rows._reindex(index)

    def sort(self, by, ascending=True):
        self.rows.sort(by, ascending)

    def add_prefix(self, prefix):
        raise NotImplementedError("the columns of a sequential dataset cannot be renamed")


def take_rows(rows: Interaction, index: Any) -> Interaction:
    """Some rows, by a tensor where RecBole makes a list of the index for every column."""
    if isinstance(index, (np.ndarray, list)) and len(index):
        index = torch.as_tensor(np.asarray(index))
    if isinstance(index, Tensor) and index.dtype == torch.bool and index.dim() == 1:
        index = index.nonzero().squeeze(1)
    if isinstance(index, Tensor) and index.dtype == torch.int64 and index.dim() == 1:
        columns = rows.interaction.items()
        return Interaction({name: value.index_select(0, index) for name, value in columns})
    return rows[index]


def sequence_places(end: Tensor, length: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
    """Positions [B, L] of the sequences in the histories, and where a sequence has no entry [B, L]."""
    steps = torch.arange(max_length, device=end.device)
    beyond = steps >= length.unsqueeze(-1)
    return (end - length).unsqueeze(-1) + steps.masked_fill(beyond, 0), beyond


def gather(values: Tensor, place: Tensor, beyond: Tensor) -> Tensor:
    """Sequences [B, L, ...] out of the histories [T, ...]; 0 where there is no entry."""
    shape = (*place.shape, *values.shape[1:])
    taken = values.index_select(0, place.view(-1)).view(shape)
    return taken.masked_fill_(beyond.view(*beyond.shape, *[1] * (values.dim() - 1)), 0)


def build_sequences_lazily(dataset) -> None:
    """Let a sequential dataset keep histories where its ``data_augmentation`` would write sequences.

    Nothing is done for other datasets, where a class has an augmentation of its own, or where the
    files hold the sequences.
    """
    stock = getattr(type(dataset), "data_augmentation", None)
    if stock is not SequentialDataset.data_augmentation or dataset.config["benchmark_filename"]:
        return

    def augment() -> None:
        del dataset.data_augmentation  # the parts are copies and must not hold this function
        if not _augment(dataset):
            dataset.data_augmentation()

    dataset.data_augmentation = augment


def _augment(dataset) -> bool:
    """RecBole's augmentation; False, and nothing but the order changed, for columns it pads."""
    dataset._aug_presets()
    dataset._check_field("uid_field", "time_field")
    dataset.sort(by=[dataset.uid_field, dataset.time_field], ascending=True)
    inter, max_length = dataset.inter_feat, dataset.max_item_list_len
    histories = {}
    for field in inter:
        if field == dataset.uid_field:
            continue
        name = getattr(dataset, f"{field}_list_field")
        if tuple(inter[field].shape[1:]) != _shape_of_a_step(dataset, field, name):
            return False
        histories[name] = inter[field]
    user = inter[dataset.uid_field]
    first = torch.ones(len(user), dtype=torch.bool)
    first[1:] = user[1:] != user[:-1]
    row = torch.arange(len(user))
    start = torch.where(first, row, 0).cummax(0).values if len(user) else row
    target = (~first).nonzero().squeeze(1)
    rows = take_rows(inter, target)
    length = (target - start[target]).clamp(max=max_length)
    rows[dataset.item_list_length_field] = length
    rows[END] = target
    dataset.inter_feat = SequenceRows(rows, histories, dataset.item_list_length_field, max_length)
    return True


def _shape_of_a_step(dataset, field: str, list_field: str) -> tuple[int, ...]:
    """The shape of one entry of a list column, in RecBole's tables."""
    length = dataset.field2seqlen[list_field]
    shape = () if isinstance(length, int) else tuple(length)[1:]
    number = dataset.field2type[field] in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)
    if number and field in dataset.config["numerical_features"]:
        shape += (2,)  # these carry the index of their column beside them
    return shape
