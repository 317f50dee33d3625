"""Which embedding tables have row-sparse gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from logging import getLogger
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adv.errors import ConfigError
from recbole_adv.game.player import Player
from recbole_adv.technique.attack.tables import Table, embedding_tables

_WHOLE = "read as a whole"
_EVERY_ROW = "looked up in all its rows"


def sparse_parameters(model: nn.Module, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those of the parameters whose gradient may be sparse now."""
    sparse = {id(m.weight) for m in model.modules() if getattr(m, "sparse", False) is True}
    return [p for p in parameters if id(p) in sparse]


class SparseTables:
    """Makes the tables sparse that nothing but lookups reads.

    Every table of an ``nn.Embedding`` begins sparse. torch adds a sparse and a dense gradient up to a
    dense one, so the first gradient of a table tells whether something else in the loss reads it (a
    graph convolution, scores of all items, the norm of the table): then it is dense from then on.
    So is a table of positions, which is looked up in all its rows, each equally often, and one with no
    more rows than a sample looks up.

    Args:
        model: its modules' ``sparse`` is set.
        players: the first one's tables decide whether there is a use.

    Attributes:
        sparse: by player, the names of the tables that were seen to be sparse.
        dense: by player, why a table is not, by its name.

    Raises:
        ConfigError: no table can be sparse; of a model with tables that is known after a batch.
    """

    def __init__(self, model: nn.Module, players: Sequence[Player]):
        self._name, self._first = type(model).__name__, players[0].name
        self.sparse: dict[str, list[str]] = {player.name: [] for player in players}
        self.dense: dict[str, dict[str, str]] = {player.name: {} for player in players}
        self._open = {
            player.name: [t for t in embedding_tables(model, player.parameters) if _can_be(t)]
            for player in players
        }
        if not self._open[self._first]:
            raise ConfigError(self._refusal())
        for table in (table for tables in self._open.values() for table in tables):
            _set(table, True)

    def settle(self, player: str, batch: Any, on_interactions: bool) -> None:
        """Look at the gradients of a backward on ``batch``, as long as some table was not seen."""
        seen = [table for table in self._open[player] if table.parameter.grad is not None]
        if not seen:
            return
        for table in seen:
            gradient = table.parameter.grad
            if not gradient.is_sparse:
                self.dense[player][table.name] = _WHOLE
            elif _in_all_rows(gradient, 1 if batch is None else len(batch)):
                self.dense[player][table.name] = _EVERY_ROW
            else:
                self.sparse[player].append(table.name)
            _set(table, table.name in self.sparse[player])
        self._open[player] = [table for table in self._open[player] if table not in seen]
        if player == self._first and on_interactions and not self.sparse[player]:
            raise ConfigError(self._refusal())
        self._tell(player)

    def state_dict(self) -> dict[str, Any]:
        """What was found out, which another first batch need not tell."""
        return {"sparse": self.sparse, "dense": self.dense}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back :meth:`state_dict`."""
        for player, tables in self._open.items():
            self.sparse[player] = list(state["sparse"][player])
            self.dense[player] = dict(state["dense"][player])
            seen = [*self.sparse[player], *self.dense[player]]
            for table in (table for table in tables if table.name in seen):
                _set(table, table.name in self.sparse[player])
            self._open[player] = [table for table in tables if table.name not in seen]

    def _refusal(self) -> str:
        dense = self.dense[self._first]
        why = ", ".join(f"{name} is {reason}" for name, reason in dense.items())
        return (
            f"sparse_embeddings: True finds no table of {self._name} that lookups alone read"
            f"{f' ({why})' if why else ', which has no nn.Embedding'}; leave it out"
        )

    def _tell(self, player: str) -> None:
        dense = "".join(f"; {n} stays dense, {why}" for n, why in self.dense[player].items())
        getLogger().info(
            "sparse_embeddings, player %s: %s%s",
            player,
            ", ".join(self.sparse[player]) or "none",
            dense,
        )


def _can_be(table: Table) -> bool:
    return all(isinstance(m, nn.Embedding) and not m.scale_grad_by_freq for m in table.modules)


def _in_all_rows(gradient: Tensor, n_samples: int) -> bool:
    """Whether there is nothing to leave out; gradient: not coalesced."""
    n_rows = gradient.shape[0]
    least, most = torch.bincount(gradient._indices()[0], minlength=n_rows).aminmax()
    return bool(least == most) or gradient._nnz() >= n_samples * n_rows


def _set(table: Table, sparse: bool) -> None:
    for module in table.modules:
        module.sparse = sparse
