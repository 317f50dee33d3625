"""Optimizers that move the rows of a sparse gradient and leave all other rows alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn, optim

# Numbers of a table, 256 KB: what is gathered is still in the cache when it is written back.
_BLOCK = 2**16


class LazyRows:
    """Mixed in before an optimizer: of a sparse gradient only its rows take part in a step.

    Weights and state of the rows are gathered, the optimizer steps on them as on a small dense tensor,
    and they are written back. So a row that has a gradient in every step moves exactly as under the
    optimizer itself, whatever that is; in a step without a gradient neither the row nor its moments
    change, and it has no weight decay. Adam's and Adagrad's count of steps is the table's, not the
    row's. Dense gradients, and what ``state_dict()`` holds, are as in the optimizer itself.
    """

    by_tensor = False  # whether what becomes of a row depends on the others, as in ClippyAdagrad

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on ``.grad``, which is coalesced where it is sparse."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        whole = [group["params"] for group in self.param_groups]
        tables = {p: _Touched(p, self.state.get(p, {}), self.by_tensor) for p in _sparse(whole)}
        taken: list[tuple[_Touched, Tensor, nn.Parameter]] = []
        try:
            for number in range(max([1, *(len(table.blocks) for table in tables.values())])):
                taken = self._show(number, whole, tables)
                super().step()
                for table, rows, own in taken:
                    table.put_back(self.state[table.parameter], rows, own, self.state.pop(own, {}))
        finally:
            for group, parameters in zip(self.param_groups, whole):
                group["params"] = parameters
            for _, _, own in taken:  # there are some only after an error
                self.state.pop(own, None)
        return loss

    def _show(self, number: int, whole: list[list], tables: dict) -> list[tuple]:
        """Put the rows of a block into the groups, and with the first one all that is dense."""
        kept = self.__dict__.setdefault("_gathered", {})
        taken = []
        for group, parameters in zip(self.param_groups, whole):
            group["params"] = [] if number else [p for p in parameters if p not in tables]
            for table in (tables[p] for p in parameters if p in tables):
                if number >= len(table.blocks):
                    continue
                memory = kept.setdefault(table.parameter, {})
                own, state = table.take(number, self.state.get(table.parameter, {}), memory)
                self.state[own].update(state)
                group["params"].append(own)
                taken.append((table, table.blocks[number], own))
        return taken


class _Touched:
    """The rows of a table that a step moves.

    Attributes:
        blocks: the rows, a part at a time; values: their gradients, likewise.
        counts: what of the state is not by row, as it was before the step.
    """

    def __init__(self, parameter: nn.Parameter, state: dict[str, Any], in_one: bool):
        self.parameter = parameter
        parameter.grad = parameter.grad.coalesce()
        rows, values = parameter.grad.indices()[0], parameter.grad.values()
        # The first step makes the state, and its counts must not begin again with each block.
        in_one = in_one or not state or parameter.device.type != "cpu"
        size = max(1, rows.numel() if in_one else _BLOCK // max(1, parameter.shape[1:].numel()))
        self.blocks, self.values = rows.split(size), values.split(size)
        self.counts = {n: _copy(v) for n, v in state.items() if not _by_row(v, parameter.shape[0])}

    def take(self, number: int, state: dict, memory: dict) -> tuple[nn.Parameter, dict[str, Any]]:
        """A block as a parameter with its gradient, and its state; ``memory`` is used again."""
        rows = self.blocks[number]
        own = nn.Parameter(_gather(self.parameter.detach(), rows, memory, "weight"))
        own.grad = self.values[number]
        by_row = {n: v for n, v in state.items() if _by_row(v, self.parameter.shape[0])}
        found = {name: _gather(value, rows, memory, name) for name, value in by_row.items()}
        return own, found | {name: _copy(value) for name, value in self.counts.items()}

    def put_back(self, state: dict, rows: Tensor, own: nn.Parameter, found: dict) -> None:
        """Write weights and state of a block to the table and its state."""
        _scatter(self.parameter.detach(), rows, own.detach())
        for name, value in found.items():
            if not _by_row(value, rows.numel()):
                state[name] = value
                continue
            if name not in state:
                # Written to at once: pages that are only promised would be made one by one later.
                shape = (self.parameter.shape[0], *value.shape[1:])
                state[name] = value.new_empty(shape).zero_()
            _scatter(state[name], rows, value)


def _sparse(groups: list[list[nn.Parameter]]) -> list[nn.Parameter]:
    found = [p for parameters in groups for p in parameters if p.grad is not None]
    return [p for p in found if p.grad.is_sparse and p.grad.sparse_dim() == 1]


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _by_row(value: Any, n_rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == n_rows


def _gather(table: Tensor, rows: Tensor, memory: dict[str, Tensor], name: str) -> Tensor:
    """The rows, in memory that is kept from step to step: to get it anew costs as much as the step."""
    if name not in memory or memory[name].shape[0] < rows.numel():
        memory[name] = table.new_empty(rows.numel(), *table.shape[1:])
    return torch.index_select(table, 0, rows, out=memory[name][: rows.numel()])


def _scatter(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """``table[rows] = values``, in numbers of 16 bytes: index_copy_ takes its time for each number."""
    row_bytes = table.element_size() * table.shape[1:].numel()
    if table.device.type == "cpu" and table.dim() == 2 and row_bytes % 16 == 0:
        if table.is_contiguous() and values.is_contiguous():
            table, values = table.view(torch.complex128), values.view(torch.complex128)
    table.index_copy_(0, rows, values)


@cache
def lazy(cls: type[optim.Optimizer]) -> type[optim.Optimizer]:
    """The optimizer with :class:`LazyRows`; ``LazyAdam`` for Adam."""
    own = {"__doc__": LazyRows.__doc__, "by_tensor": getattr(cls, "by_tensor", False)}
    return type(f"Lazy{cls.__name__}", (LazyRows, cls), own)
