"""A radius of its own for each user: VAT (Zhang et al., RecSys 2024) and PamaCF (NeurIPS 2024).

Official code: Kaike-Zhang/VAT at 0ca1f25, Kaike-Zhang/PamaCF at 3e44a24. There a perturbation is put
on each occurrence of the final representations, and the user's factor also scales those of the
row's items. That is the scope ``sample`` here. On rows of tables, where occurrences are merged, the
user's row has the user's factor and an item's row the mean factor of the batch rows it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from recbole_adv.model_state import clear_caches
from recbole_adv.technique.attack.tables import Table

LARGEST = 2.0
"""The official lambda_u, the bound of a factor; it makes the average user's factor 1."""


def vat_factors(losses: Tensor, users: Tensor, reduce: str = "sum") -> Tensor:
    """``2 sigmoid(mean(L) / L_u - 1)``: users fitted better than the average get more.

    ``L_u`` is the ``sum`` of the losses of the user's rows in the batch, as in the official code, or
    their ``mean``, which does not take a user of many rows for a badly fitted one. The average is
    over the distinct users.

    losses, users: [B].   Returns [B], in (0.538, 2) where losses are positive.
    """
    distinct, row = torch.unique(users, return_inverse=True)
    of_user = losses.new_zeros(distinct.numel()).index_add_(0, row, losses)
    if reduce == "mean":
        of_user = of_user / torch.bincount(row, minlength=distinct.numel())
    factors = LARGEST * torch.sigmoid(of_user.mean() / (of_user + 1e-9) - 1)
    return factors[row]


def pama_factors(squared_norms: Tensor) -> Tensor:
    """``2 sigmoid(||h_u||^2 / mean(||h||^2) - 1)``: users of a longer embedding get more.

    The mean is over the rows of the batch.   squared_norms: [B].   Returns [B], in (0.538, 2).
    """
    return LARGEST * torch.sigmoid(squared_norms / (squared_norms.mean() + 1e-9) - 1)


def row_factors(n_rows: int, ids: Sequence[Tensor], factors: Tensor) -> Tensor:
    """For each row of a table the mean factor of the batch rows that it is in, 1 without any.

    ids: tensors [B] of rows, each in the order of ``factors`` [B].   Returns [n_rows].
    """
    total, count = factors.new_zeros(n_rows), factors.new_zeros(n_rows)
    for rows in ids:
        total.index_add_(0, rows, factors)
        count.index_add_(0, rows, torch.ones_like(factors))
    return torch.where(count > 0, total / count.clamp_min(1), 1.0)


class UserScale:
    """The factors of a batch.

    Args:
        kind: ``vat`` or ``pama``.
        reduce: as in :func:`vat_factors`.
        tables: those that are attacked; users' tables among them give PamaCF its norms.
        model: whose ``predict`` gives ``vat`` the loss of each row, in pairs.
        fields: the names of user, item and sampled item in a batch.
        autocast: makes the context of a forward pass.
    """

    def __init__(
        self,
        kind: str,
        reduce: str,
        tables: Sequence[Table],
        model: nn.Module,
        fields: tuple[str, str, str],
        autocast: Callable[[], Any],
    ):
        self.kind, self.reduce, self.model, self.autocast = kind, reduce, model, autocast
        self.tables = [table for table in tables if table.kind == "user"]
        self.user, self.item, self.negative = fields

    @torch.no_grad()
    def of_batch(self, batch: Any) -> Tensor:
        """The factor of each row of the batch, [B]."""
        users = batch[self.user]
        if self.kind == "pama":
            return pama_factors(sum(t.parameter[users].square().sum(1) for t in self.tables))
        clear_caches(self.model)
        with self.autocast():
            margin = pair_margin(self.model.predict, batch, self.item, self.negative)
        clear_caches(self.model)
        return vat_factors(softplus(-at_least_float32(margin)), users, self.reduce)

    def of_table(self, table: Table, batch: Any, factors: Tensor) -> Tensor | None:
        """The factor of each row of a table, [rows]; None where rows are no users and no items."""
        if table.kind is None:
            return None
        ids = [self.user] if table.kind == "user" else [self.item, self.negative]
        rows = [batch[name] for name in ids if name in batch.interaction]
        return row_factors(table.parameter.shape[0], rows, factors)


def pair_margin(predict: Callable, batch: Any, item: str, negative: str) -> Tensor:
    """``predict`` of the positive minus that of the sampled item, [B]."""
    swapped = type(batch)({**batch.interaction, item: batch[negative]})
    return predict(batch).flatten() - predict(swapped).flatten()


def at_least_float32(scores: Tensor) -> Tensor:
    """What autocast made of lower precision, in float32."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
