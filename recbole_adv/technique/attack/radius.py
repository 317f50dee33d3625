"""How far each row may be moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recbole_adv.technique.attack.lookups import LookupPlace
from recbole_adv.technique.attack.presets import Recipe
from recbole_adv.technique.attack.tables import Table
from recbole_adv.technique.attack.user_scale import UserScale
from recbole_adv.technique.attack.weights import WeightPlace


class Radius:
    """Epsilon, in units of a table's rows where it is relative, times the user's factor.

    Relative to a table: epsilon times its mean row norm, and for the norm ``linf`` that over
    ``sqrt(D)``, so that the corners of the box are as far as the ball of L2 reaches.

    Args:
        user_scale: None: every user's factor is 1.
    """

    def __init__(self, recipe: Recipe, tables: Sequence[Table], user_scale: UserScale | None):
        self.recipe, self.tables, self.user_scale = recipe, list(tables), user_scale
        self.mean_row_norms: dict[str, float] = {}

    @torch.no_grad()
    def measure(self) -> None:
        """Take the mean row norms of this moment, padding left out; they hold for an epoch."""
        self.mean_row_norms = {table.name: mean_row_norm(table) for table in self.tables}

    def of_table(self, table: Table) -> float:
        """Without a user's factor."""
        if not self.recipe.relative:
            return self.recipe.epsilon
        unit = self.mean_row_norms[table.name]
        if self.recipe.norm == "linf":
            unit /= math.sqrt(table.parameter[0].numel())
        return self.recipe.epsilon * unit

    def of(
        self, place: WeightPlace | LookupPlace, batch: Any, repeat: Callable[[], Any]
    ) -> list[Tensor | float]:
        """For each tensor of the place; a number, or one for each first index.

        repeat: makes the context of the passes that the users' factors need.
        """
        plain = [self.of_table(table) for table in place.tables]
        if self.user_scale is None:
            return plain
        with repeat():
            factors = self.user_scale.of_batch(batch)
        return [
            radius if own is None else radius * own.view(-1, *(1,) * (like.dim() - 1))
            for radius, own, like in zip(plain, self._own(place, batch, factors), place.shapes())
        ]

    def _own(self, place, batch: Any, factors: Tensor) -> list[Tensor | None]:
        if isinstance(place, LookupPlace):
            return [factors if len(like) == len(factors) else None for like in place.shapes()]
        found = []
        for table, rows in zip(place.tables, place.rows):
            of_table = self.user_scale.of_table(table, batch, factors)
            found.append(of_table if of_table is None or rows is None else of_table[rows])
        return found


def mean_row_norm(table: Table) -> float:
    """The mean L2 norm of the rows, padding left out."""
    norms = torch.linalg.vector_norm(table.parameter.detach().flatten(1), dim=1).double()
    if table.padding is None:
        return norms.mean().item()
    return ((norms.sum() - norms[table.padding]) / max(len(norms) - 1, 1)).item()
