"""What an attack on the tables of a model reaches, measured on one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adv.model_state import random_state, replayed
from recbole_adv.objective.parts import Loss, total
from recbole_adv.technique.attack.radius import mean_row_norm
from recbole_adv.technique.attack.tables import Table, embedding_tables
from recbole_adv.technique.attack.weights import looked_up

EXACT = 1e-5
"""A smaller ``direct_frac`` is rounding: the lookups carry the whole gradient."""


@dataclass(frozen=True)
class Coverage:
    """How the loss of a batch reads a table.

    Attributes:
        gradient_norm: L2 norm of the table's gradient; None without a gradient, and then so are
            the figures about it.
        direct_frac: ``||gradient - gradient through lookups|| / ||gradient||``, the share that
            hooks on the lookups would miss.
        n_touched: rows with a non-zero gradient; ``n_looked_up``: rows that lookups read.
        padding_norm: norm of the gradient of the padding row; None without one.
        mean_row_norm: of the table's weights, padding left out.
    """

    table: Table
    gradient_norm: float | None
    direct_frac: float | None
    n_touched: int
    n_looked_up: int
    padding_norm: float | None
    mean_row_norm: float

    @property
    def by_lookup(self) -> bool:
        """Whether lookups carry the whole gradient, so that no other row can have one.

        Not decided by which rows have a gradient: a small graph model may happen to have one only
        in rows that the first batch looks up.
        """
        return self.direct_frac is not None and self.direct_frac <= EXACT


def coverage(
    tables: Sequence[Table], gradient: Callable[[Sequence[Tensor]], Sequence[Tensor | None]]
) -> list[Coverage]:
    """A row for each table.

    gradient: makes one forward and backward pass; returns the gradients of the tensors it is given.
    """
    with _lookups(tables) as through_lookups:
        found = gradient([table.parameter for table in tables])
    return [_row(t, g, *through_lookups[t.name]) for t, g in zip(tables, found)]


@contextmanager
def _lookups(tables: Sequence[Table]) -> Iterator[dict[str, tuple[list, list]]]:
    """For each table the indices looked up inside, and pairs (index, gradient of the output)."""
    seen: dict[str, tuple[list, list]] = {table.name: ([], []) for table in tables}

    def noting(table: Table):
        indices, pairs = seen[table.name]

        def hook(module, args, kwargs, output):
            index = looked_up(args, kwargs)
            indices.append(index.flatten())
            # A bag sums its rows in weights of its own: its share counts as not seen by lookups.
            if isinstance(module, nn.Embedding) and output.requires_grad:
                output.register_hook(lambda g: pairs.append((index, g.detach())))

        return hook

    handles = [
        module.register_forward_hook(noting(table), with_kwargs=True)
        for table in tables
        for module in table.modules
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _row(table: Table, gradient: Tensor | None, indices: list, pairs: list) -> Coverage:
    mean, device = mean_row_norm(table), table.parameter.device
    rows = torch.unique(torch.cat(indices)) if indices else torch.empty(0).long().to(device)
    if gradient is None:
        return Coverage(table, None, None, 0, rows.numel(), None, mean)
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    gradient = gradient.flatten(1).double()
    missed = (gradient - _sum_of_lookups(table, gradient, pairs)).norm()
    touched = gradient.abs().amax(1) > 0
    n_touched = int(touched.sum())
    padding = None if table.padding is None else gradient[table.padding].norm().item()
    total = gradient.norm()
    return Coverage(
        table,
        gradient_norm=total.item(),
        direct_frac=(missed / total).item() if total > 0 else 0.0,
        n_touched=n_touched,
        n_looked_up=rows.numel(),
        padding_norm=padding,
        mean_row_norm=mean,
    )


def _sum_of_lookups(table: Table, like: Tensor, pairs: list) -> Tensor:
    """The gradient of the table if there were nothing but its lookups; float64, [rows, D]."""
    total = torch.zeros_like(like)
    paddings = {module.padding_idx for module in table.modules}
    for index, gradient in pairs:
        index, gradient = index.flatten(), gradient.reshape(-1, like.shape[1]).double()
        for padding in paddings - {None}:  # such a module gives its padding row no gradient
            gradient = gradient.masked_fill((index == padding).unsqueeze(1), 0.0)
        total.index_add_(0, index, gradient)
    return total


@dataclass(frozen=True)
class Audit:
    """What an attack reaches of a model.

    Attributes:
        rows: a coverage for each table, those that are attacked first.
        n_attacked: how many of them are.
        square_norm: the squared norm of the gradient in all parameters.
        loss: of the batch.
    """

    rows: list[Coverage]
    n_attacked: int
    square_norm: float
    loss: float

    @property
    def share(self) -> float:
        """The attacked tables' part of ``square_norm``."""
        squares = sum((row.gradient_norm or 0.0) ** 2 for row in self.rows[: self.n_attacked])
        return squares / self.square_norm if self.square_norm > 0 else 0.0


def audit(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    attacked: Sequence[Table],
    loss: Callable[[Any], Loss],
    batch: Any,
) -> Audit:
    """One pass on a batch, with what it draws and counts taken back.

    parameters: those of the player that is attacked; attacked: the tables among them.
    """
    names = {table.name for table in attacked}
    others = [t for t in embedding_tables(model, parameters) if t.name not in names]
    kept: dict[str, Any] = {}

    def gradient(tensors: Sequence[Tensor]) -> Sequence[Tensor | None]:
        trained = [p for p in parameters if p.requires_grad]
        kept["loss"] = total(loss(batch))
        found = torch.autograd.grad(kept["loss"], trained, allow_unused=True)
        kept["squares"] = sum(g.double().square().sum().item() for g in found if g is not None)
        of = {id(p): g for p, g in zip(trained, found)}
        return [of[id(t)] for t in tensors]

    with replayed(model, random_state()):
        rows = coverage([*attacked, *others], gradient)
    return Audit(rows, len(attacked), kept["squares"], kept["loss"].item())
