"""What RecBole's TrainDataLoader and KGDataLoader make of some rows: features and negatives."""

from __future__ import annotations

import torch
from recbole.data.interaction import Interaction
from recbole.utils import InputType
from torch import Tensor

from recbole_adv.data.negatives import as_tiles
from recbole_adv.loader.device_rows import DeviceRows
from recbole_adv.loader.negatives import Draw

Columns = dict[str, Tensor]


class TrainCompletion:
    """Joins the features of users and items and adds negatives, pairwise or pointwise.

    stock: a TrainDataLoader; draw: its negatives, None where it has none; alone: they depend on
    nothing but the row, so that those of several batches can be drawn at once.
    """

    def __init__(self, stock, draw: Draw | None, device: torch.device, alone: bool = True):
        self.stock, self.draw = stock, draw
        self.dynamic = stock.neg_sample_args.get("dynamic", False)
        self.alone = alone and not self.dynamic
        self.n_negatives = stock.neg_sample_num if draw is not None else 0
        dataset = stock._dataset
        self.user, self.item = stock.uid_field, stock.iid_field
        self.features = {
            field: DeviceRows(lambda name=name: getattr(dataset, name), device)
            for field, name in ((self.user, "user_feat"), (self.item, "item_feat"))
            if getattr(dataset, name) is not None
        }

    def refresh(self) -> None:
        """Take over what was written to the features since the last epoch."""
        for rows in self.features.values():
            rows.refresh()

    def negatives(self, columns: Columns) -> Tensor:
        """n for each row.   Returns [B, n] int64."""
        return self.draw(columns[self.user], columns[self.item], self.n_negatives)

    def __call__(self, columns: Columns, negatives: Tensor | None) -> Columns:
        """The batch of some rows; negatives: [B, n], drawn here where there are none yet."""
        if self.draw is None:
            return self._joined(columns)
        if self.dynamic:
            tiles = self._hardest(columns)
        else:
            tiles = as_tiles(self.negatives(columns) if negatives is None else negatives)
        if self.stock.dl_format == InputType.PAIRWISE:
            columns = tiled(self._joined(columns), self.stock.times)
            prefix = self.stock.neg_prefix
            found = self._joined({self.item: tiles})
            return columns | {prefix + name: value for name, value in found.items()}
        n_positives = len(columns[self.item])
        items = torch.cat([columns[self.item], tiles])
        columns = self._joined(tiled(columns, self.stock.times) | {self.item: items})
        label = torch.zeros(len(items), device=items.device)
        label[:n_positives] = 1.0
        return columns | {self.stock.label_field: label}

    def _joined(self, columns: Columns) -> Columns:
        for field, rows in self.features.items():
            if field in columns:
                columns = columns | rows.take(columns[field])
        return columns

    def _hardest(self, columns: Columns) -> Tensor:
        """n tiles of the candidate that the model scores highest, [n B]."""
        n_candidates = self.stock.neg_sample_args["candidate_num"]
        times = self.n_negatives * n_candidates
        candidates = as_tiles(self.draw(columns[self.user], columns[self.item], times))
        with torch.no_grad():
            scores = self._scores(columns, candidates, times)
        best = scores.view(n_candidates, -1).argmax(dim=0, keepdim=True)
        return candidates.view(n_candidates, -1).gather(0, best.to(candidates.device)).squeeze(0)

    def _scores(self, columns: Columns, candidates: Tensor, times: int) -> Tensor:
        """The model's scores of candidates, each with the features of its own item."""
        model = self.stock.model
        training = model.training
        model.eval()
        batch = Interaction(self._joined(tiled(columns, times) | {self.item: candidates}))
        scores = model.predict(batch.to(model.device))
        model.train(training)
        return scores.reshape(-1)


class TripleCompletion:
    """Adds a tail that the head has no triple with.   stock: a KGDataLoader; draw: its tails."""

    alone = True

    def __init__(self, stock, draw: Draw):
        self.stock, self.draw, self.n_negatives = stock, draw, stock.neg_sample_num

    def refresh(self) -> None:
        """There is nothing to refresh."""

    def negatives(self, columns: Columns) -> Tensor:
        """n tails for each head.   Returns [B, n] int64."""
        head = columns[self.stock.hid_field]
        return self.draw(head, head, self.n_negatives)

    def __call__(self, columns: Columns, negatives: Tensor) -> Columns:
        return columns | {self.stock.neg_tid_field: as_tiles(negatives)}


def tiled(columns: Columns, times: int) -> Columns:
    """Every column ``times`` times, one below the other."""
    if times == 1:
        return columns
    return {k: v.repeat(times, *[1] * (v.dim() - 1)) for k, v in columns.items()}
