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


@dataclass(frozen=True)
class _Last:
    """A step that was seen: what any number of the table moved by at most, and under which rate."""

    optimizer: optim.Optimizer
    steps: int
    rate: float
    furthest: float


class QuietRows:
    """Bounds on the update of rows whose gradient is zero, from the updates of the step before.

    SGD, Adagrad and RMSprop leave such a row alone. Adam goes on with its averages: a number with

    .. math:: |\\delta_{t+1}| \\le |\\delta_t| \\, \\frac{\\eta_{t+1}}{\\eta_t} \\,
        \\frac{\\beta_1 (1 - \\beta_1^t)}{1 - \\beta_1^{t+1}} \\,
        \\max\\left(1, \\sqrt{\\frac{1 - \\beta_2^{t+1}}{\\beta_2 (1 - \\beta_2^t)}}\\right)

    whatever its averages are. Momentum and weight decay may move a row further, and nothing is known
    after a step that was not seen: the bound is inf then. Reading it would make another device wait.
    """

    def __init__(self):
        self._last: dict[int, _Last] = {}
        self._asked: dict[int, tuple[int, float]] = (
            {}
        )  # steps before the one to come, and its bound

    def bound(self, parameter: nn.Parameter, optimizer: optim.Optimizer) -> float:
        """No number of a row without gradient moves further in the step to come; may be inf."""
        steps = _steps(parameter, optimizer)
        bound = self._bound(parameter, optimizer, steps)
        self._asked[id(parameter)] = (steps, bound)
        return bound

    def _bound(self, parameter: nn.Parameter, optimizer: optim.Optimizer, steps: int) -> float:
        group, kind = _group_of(parameter, optimizer), type(optimizer).__name__
        if group.get("momentum") or group.get("weight_decay") or group.get("eps", 1) < _LEAST_EPS:
            return math.inf
        if kind in _STILL:
            return 0.0
        if kind not in ("Adam", "AdamW") or not group["betas"][1]:
            return math.inf
        if not steps:
            return 0.0
        last = self._last.get(id(parameter))
        if last is None or last.optimizer is not optimizer or last.steps != steps or not last.rate:
            return math.inf
        first, second = group["betas"]
        growth = first * (1 - first**steps) / (1 - first ** (steps + 1))
        spread = (1 - second ** (steps + 1)) / (second * (1 - second**steps))
        rates = float(group["lr"]) / last.rate
        return last.furthest * rates * growth * max(1.0, math.sqrt(spread)) * _SLACK

    def moved(
        self, parameter: nn.Parameter, optimizer: optim.Optimizer, furthest: float, everywhere: bool
    ) -> None:
        """Note the step whose :meth:`bound` was asked.

        furthest: no number that was looked at was to move by more. everywhere: all were looked at,
        else those of the rows with a gradient.
        """
        steps_before, bound = self._asked[id(parameter)]
        steps = _steps(parameter, optimizer)
        if steps == steps_before:
            return  # a GradScaler left the step out, and the averages are what they were
        rate = float(_group_of(parameter, optimizer)["lr"])
        furthest = furthest if everywhere else max(furthest, bound)  # nan stays
        self._last[id(parameter)] = _Last(optimizer, steps, rate, furthest)


def rows_with_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The rows [n] in which a dense gradient is not zero; None where they are most of the table."""
    gradient = parameter.grad
    norm = torch.linalg.vector_norm(gradient, dim=tuple(range(1, gradient.dim())))
    rows = norm.nonzero().squeeze(1)
    return rows if 2 * len(rows) < len(norm) else None


def _group_of(parameter: nn.Parameter, optimizer: optim.Optimizer) -> dict[str, Any]:
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def _steps(parameter: nn.Parameter, optimizer: optim.Optimizer) -> int:
    return int(optimizer.state[parameter].get("step", 0))
