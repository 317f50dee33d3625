"""Rows of an Interaction on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_adv.loader.sequences import SequenceRows


class DeviceColumns:
    """Columns on a device; copied again where the source has another tensor or was written to."""

    def __init__(self, device: torch.device):
        self.device = device
        self._kept: dict[str, tuple[Tensor, int, Tensor]] = {}

    def of(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The columns on the device; on the host of a CPU, the columns themselves."""
        before, self._kept = self._kept, {}
        for name, source in columns.items():
            kept = before.get(name)
            if kept is None or kept[0] is not source or kept[1] != source._version:
                kept = (source, source._version, source.to(self.device))
            self._kept[name] = kept
        return {name: kept[2] for name, kept in self._kept.items()}


class DeviceRows:
    """The rows of an Interaction, batches of which are taken on a device.

    read: gives the Interaction, which may have changed, when an epoch begins.
    """

    def __init__(self, read: Callable[[], Interaction], device: torch.device):
        self.read, self.device = read, device
        self._rows, self._histories = DeviceColumns(device), DeviceColumns(device)
        self.refresh()

    def refresh(self) -> None:
        """Take over what was written to the rows, or added to them, since the last time."""
        source = self.read()
        self.source = source if isinstance(source, SequenceRows) else None
        plain = source.rows if self.source is not None else source
        self.columns = self._rows.of(plain.interaction)
        self.histories = (
            self._histories.of(self.source.histories) if self.source is not None else {}
        )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """The columns of some rows without their sequences; index: [B] int64 on the device."""
        return {name: value.index_select(0, index) for name, value in self.columns.items()}

    def with_sequences(self, taken: dict[str, Tensor]) -> dict[str, Tensor]:
        """What was taken, with its sequences."""
        return taken if self.source is None else self.source.read(taken, self.histories)


def size_in_bytes(rows: Interaction) -> int:
    """Of all columns; of sequences, what is kept and not what is read."""
    columns = list(rows.interaction.values()) if not isinstance(rows, SequenceRows) else []
    if isinstance(rows, SequenceRows):
        columns = [*rows.rows.interaction.values(), *rows.histories.values()]
    return sum(column.numel() * column.element_size() for column in columns)
