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

    stock: a TrainDataLoader; draw: its negatives, None where it has none.
    """

    def __init__(self, stock, draw: Draw | None, device: torch.device):
        self.stock, self.draw = stock, draw
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

    def __call__(self, columns: Columns) -> Columns:
        if self.draw is None:
            return self._joined(columns)
        negatives = self._negatives(columns)
        if self.stock.dl_format == InputType.PAIRWISE:
            columns = tiled(self._joined(columns), self.stock.times)
            prefix = self.stock.neg_prefix
            found = self._joined({self.item: negatives})
            return columns | {prefix + name: value for name, value in found.items()}
        n_positives = len(columns[self.item])
        items = torch.cat([columns[self.item], negatives])
        columns = self._joined(tiled(columns, self.stock.times) | {self.item: items})
        label = torch.zeros(len(items), device=items.device)
        label[:n_positives] = 1.0
        return columns | {self.stock.label_field: label}

    def _joined(self, columns: Columns) -> Columns:
        for field, rows in self.features.items():
            if field in columns:
                columns = columns | rows.take(columns[field])
        return columns

    def _negatives(self, columns: Columns) -> Tensor:
        """n tiles of one negative for each row, [n B]."""
        user, item, n = columns[self.user], columns[self.item], self.stock.neg_sample_num
        if not self.stock.neg_sample_args.get("dynamic", False):
            return as_tiles(self.draw(user, item, n))
        n_candidates = self.stock.neg_sample_args["candidate_num"]
        candidates = as_tiles(self.draw(user, item, n * n_candidates))
        with torch.no_grad():
            scores = self._scores(columns, candidates, n * n_candidates)
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

    def __init__(self, stock, draw: Draw):
        self.stock, self.draw = stock, draw

    def refresh(self) -> None:
        """There is nothing to refresh."""

    def __call__(self, columns: Columns) -> Columns:
        head = columns[self.stock.hid_field]
        negatives = as_tiles(self.draw(head, head, self.stock.neg_sample_num))
        return columns | {self.stock.neg_tid_field: negatives}


def tiled(columns: Columns, times: int) -> Columns:
    """Every column ``times`` times, one below the other."""
    if times == 1:
        return columns
    return {k: v.repeat(times, *[1] * (v.dim() - 1)) for k, v in columns.items()}
