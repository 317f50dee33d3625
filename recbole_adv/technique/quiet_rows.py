"""How far a step can move the rows of a table that have no gradient, so that nobody has to look."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim

_STILL = ("Adagrad", "ClippyAdagrad", "RMSprop", "SGD")  # without momentum and weight decay
_SLACK = 1.0001  # of rounding in the optimizer
_LEAST_EPS = 1e-15  # with less a gradient whose square is 0 in float32 could make a large update


Furthest = Tensor | float
"""What no number moves further than: by row, [n], or a float for all rows."""


@dataclass(frozen=True)
class _Seen:
    """A step that was seen: how far it was to move a number at most, at which rate."""

    optimizer: optim.Optimizer
    steps: int
    rate: float
    furthest: Furthest


@dataclass(frozen=True)
class _Asked:
    """A question about the step to come, and its answer."""

    steps: int
    limit: float
    bounds: Furthest


class QuietRows:
    r"""Bounds on the update of rows whose gradient is zero, from the updates of the step before.

    SGD, Adagrad and RMSprop leave such a row alone. Adam goes on with its averages: a number with

    .. math:: |\delta_{t+1}| \le |\delta_t| \, \frac{\eta_{t+1}}{\eta_t} \,
        \frac{\beta_1 (1 - \beta_1^t)}{1 - \beta_1^{t+1}} \,
        \max\left(1, \sqrt{\frac{1 - \beta_2^{t+1}}{\beta_2 (1 - \beta_2^t)}}\right)

    whatever its averages are. Momentum and weight decay may move a row further, and nothing is known
    after a step that was not seen. Reading the bounds would make another device wait.
    """

    def __init__(self):
        self._seen: dict[int, _Seen] = {}
        self._asked: dict[int, _Asked] = {}

    def other_rows(
        self, parameter: nn.Parameter, optimizer: optim.Optimizer, limit: float
    ) -> Tensor | None:
        """The rows [k] that have a gradient, or may move further than ``limit`` in the step to come.

        None where they are most of the table, or nothing is known.
        """
        bounds = self.bounds(parameter, optimizer, limit)
        if isinstance(bounds, Tensor):
            found = ~(bounds <= limit) | (gradient_norms(parameter) != 0)  # nan is among them
        elif bounds <= limit:
            found = gradient_norms(parameter)
        else:
            return None
        rows = found.nonzero().squeeze(1)
        return rows if 2 * len(rows) < len(parameter) else None

    def bounds(self, parameter: nn.Parameter, optimizer: optim.Optimizer, limit: float) -> Furthest:
        """No number of a row moves further than its bound in the step to come if the row has no
        gradient: [n], or a float for all of them, inf where nothing is known."""
        steps = _steps(parameter, optimizer)
        bounds = self._bounds(parameter, optimizer, steps)
        self._asked[id(parameter)] = _Asked(steps, limit, bounds)
        return bounds

    def _bounds(self, parameter: nn.Parameter, optimizer: optim.Optimizer, steps: int) -> Furthest:
        group, kind = _group_of(parameter, optimizer), type(optimizer).__name__
        if group.get("momentum") or group.get("weight_decay") or group.get("eps", 1) < _LEAST_EPS:
            return math.inf
        if kind in _STILL:
            return 0.0
        if kind not in ("Adam", "AdamW") or not group["betas"][1]:
            return math.inf
        if not steps:
            return 0.0
        seen = self._seen.get(id(parameter))
        if seen is None or seen.optimizer is not optimizer or seen.steps != steps or not seen.rate:
            return math.inf
        first, second = group["betas"]
        growth = first * (1 - first**steps) / (1 - first ** (steps + 1))
        spread = (1 - second ** (steps + 1)) / (second * (1 - second**steps))
        rates = float(group["lr"]) / seen.rate
        return seen.furthest * (rates * growth * max(1.0, math.sqrt(spread)) * _SLACK)

    def moved(
        self,
        parameter: nn.Parameter,
        optimizer: optim.Optimizer,
        rows: Tensor | None,
        furthest: Furthest,
    ) -> None:
        """Note the step whose :meth:`bounds` were asked.

        rows: [k], all with a gradient among them; None: all. furthest: [k], no number of the row was
        to move by more, or a float for all of them.
        """
        asked, steps = self._asked[id(parameter)], _steps(parameter, optimizer)
        if steps == asked.steps:
            return  # a GradScaler left the step out, and the averages are what they were
        rate = float(_group_of(parameter, optimizer)["lr"])
        known = _together(asked, rows, furthest, parameter)
        self._seen[id(parameter)] = _Seen(optimizer, steps, rate, known)


def _together(asked: _Asked, rows: Tensor | None, furthest: Furthest, table: Tensor) -> Furthest:
    """``furthest`` in these rows, the bounds in the others; a float where all are within the limit."""
    bounds = asked.bounds
    if rows is None:
        every = furthest
    elif isinstance(bounds, float) and isinstance(furthest, float):
        every = max(furthest, bounds)  # nan stays
    else:
        every = table.detach().new_empty(len(table)).copy_(torch.as_tensor(bounds))
        every[rows] = furthest
    if isinstance(every, Tensor):
        most = every.max().item()
        return most if most <= asked.limit else every
    return every


def gradient_norms(parameter: nn.Parameter) -> Tensor:
    """Of the rows [n] of a dense gradient."""
    gradient = parameter.grad
    return torch.linalg.vector_norm(gradient, dim=tuple(range(1, gradient.dim())))


def _group_of(parameter: nn.Parameter, optimizer: optim.Optimizer) -> dict[str, Any]:
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def _steps(parameter: nn.Parameter, optimizer: optim.Optimizer) -> int:
    return int(optimizer.state[parameter].get("step", 0))
