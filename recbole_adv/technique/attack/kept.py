"""Perturbations that outlive their batch (Free AT): one for each row of a table."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recbole_adv.technique.attack.weights import WeightPlace


class KeptMoves:
    """By the name of a table the move of each of its rows, in units of the radius."""

    def __init__(self):
        self.moves: dict[str, Tensor] = {}

    def take(self, place: WeightPlace) -> list[Tensor]:
        """Those of the rows of the place; its rows must be known."""
        taken = []
        for table, rows in zip(place.tables, place.rows):
            if table.name not in self.moves:
                self.moves[table.name] = torch.zeros_like(table.parameter.detach())
            all_rows = self.moves[table.name]
            taken.append(all_rows if rows is None else all_rows.index_select(0, rows))
        return taken

    def put(self, place: WeightPlace, moves: list[Tensor] | None) -> None:
        """Keep what became of them; None: begin again at zero."""
        for index, (table, rows) in enumerate(zip(place.tables, place.rows)):
            all_rows = self.moves[table.name]
            if rows is None:
                all_rows.copy_(moves[index]) if moves else all_rows.zero_()
            elif moves:
                all_rows.index_copy_(0, rows, moves[index])
            else:
                all_rows.index_fill_(0, rows, 0.0)

    def load(self, moves: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
        """Take back ``moves``, onto the devices of the tables ``like``."""
        self.moves = {name: move.to(like[name].device) for name, move in moves.items()}
