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
            if parameter.grad is not None and parameter.grad.is_sparse
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
        own = nn.Parameter(parameter.detach().index_select(0, rows))
        own.grad = parameter.grad.values()
        for name, value in self.state.get(parameter, {}).items():
            of_rows = _has_rows(value, n_rows)
            self.state[own][name] = value.index_select(0, rows) if of_rows else value
        return own

    def _put_back(self, parameter: nn.Parameter, own: nn.Parameter) -> None:
        rows, n_rows = parameter.grad.indices()[0], parameter.shape[0]
        parameter.index_copy_(0, rows, own.detach())
        state = self.state[parameter]
        for name, value in self.state.pop(own, {}).items():
            if not _has_rows(value, rows.numel()):
                state[name] = value
                continue
            if name not in state:
                # Written to at once: pages that are only promised would be made one by one later.
                state[name] = value.new_empty(n_rows, *value.shape[1:]).zero_()
            state[name].index_copy_(0, rows, value)


def _has_rows(value: Any, n_rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == n_rows


@cache
def lazy(cls: type[optim.Optimizer]) -> type[optim.Optimizer]:
    """The optimizer with :class:`LazyRows`; ``LazyAdam`` for Adam."""
    return type(f"Lazy{cls.__name__}", (LazyRows, cls), {"__doc__": LazyRows.__doc__})
