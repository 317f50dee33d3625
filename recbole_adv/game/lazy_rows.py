"""Optimizers that move the rows of a sparse gradient and leave all other rows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn, optim


class LazyRows:
    """Mixed in before an optimizer: of a sparse gradient only its rows take part in a step.

    Weights and state of the rows are gathered, the optimizer steps on them as on a small dense tensor,
    and they are written back. So a row that has a gradient in every step moves exactly as under the
    optimizer itself, whatever that is; in a step without a gradient neither the row nor its moments
    change, and it has no weight decay. Adam's and Adagrad's count of steps is the table's, not the
    row's. Dense gradients, and what ``state_dict()`` holds, are as in the optimizer itself.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on ``.grad``, which is coalesced where it is sparse."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._rows_alone():
            super().step()
        return loss

    @contextmanager
    def _rows_alone(self) -> Iterator[None]:
        """Inside, the touched rows stand in the groups for their tables."""
        places = [
            (group["params"], index, parameter)
            for group in self.param_groups
            for index, parameter in enumerate(group["params"])
            if parameter.grad is not None
            and parameter.grad.is_sparse
            and parameter.grad.sparse_dim() == 1
        ]
        taken = []
        try:
            for parameters, index, parameter in places:
                parameters[index] = self._take(parameter)
                taken.append(parameters[index])
            yield
        finally:
            for (parameters, index, parameter), own in zip(places, taken):
                parameters[index] = parameter
                self._put_back(parameter, own)

    def _take(self, parameter: nn.Parameter) -> nn.Parameter:
        """The touched rows, with their gradient and their part of the state."""
        parameter.grad = parameter.grad.coalesce()
        rows, n_rows = parameter.grad.indices()[0], parameter.shape[0]
        kept = self.__dict__.setdefault("_gathered", {}).setdefault(parameter, {})
        own = nn.Parameter(_gather(parameter.detach(), rows, kept, "weight"))
        own.grad = parameter.grad.values()
        for name, value in self.state.get(parameter, {}).items():
            if _has_rows(value, n_rows):
                value = _gather(value, rows, kept, name)
            self.state[own][name] = value
        return own

    def _put_back(self, parameter: nn.Parameter, own: nn.Parameter) -> None:
        rows, n_rows = parameter.grad.indices()[0], parameter.shape[0]
        _scatter(parameter.detach(), rows, own.detach())
        state = self.state[parameter]
        for name, value in self.state.pop(own, {}).items():
            if not _has_rows(value, rows.numel()):
                state[name] = value
                continue
            if name not in state:
                # Written to at once: pages that are only promised would be made one by one later.
                state[name] = value.new_empty(n_rows, *value.shape[1:]).zero_()
            _scatter(state[name], rows, value)


def _gather(table: Tensor, rows: Tensor, kept: dict[str, Tensor], name: str) -> Tensor:
    """The rows, in memory that is kept from step to step: to get it anew costs as much as the step."""
    if name not in kept or kept[name].shape[0] < rows.numel():
        kept[name] = table.new_empty(rows.numel(), *table.shape[1:])
    return torch.index_select(table, 0, rows, out=kept[name][: rows.numel()])


def _scatter(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """``table[rows] = values``, in numbers of 16 bytes: index_copy_ takes its time for each number."""
    row_bytes = table.element_size() * table[0].numel()
    if table.device.type == "cpu" and table.dim() == 2 and row_bytes % 16 == 0:
        if table.is_contiguous() and values.is_contiguous():
            table, values = table.view(torch.complex128), values.view(torch.complex128)
    table.index_copy_(0, rows, values)


def _has_rows(value: Any, n_rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == n_rows


@cache
def lazy(cls: type[optim.Optimizer]) -> type[optim.Optimizer]:
    """The optimizer with :class:`LazyRows`; ``LazyAdam`` for Adam."""
    return type(f"Lazy{cls.__name__}", (LazyRows, cls), {"__doc__": LazyRows.__doc__})
