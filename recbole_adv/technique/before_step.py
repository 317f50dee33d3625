"""A parameter as it was before a step of its optimizer, so that the step can be shortened."""

from __future__ import annotations

import torch
from torch import Tensor, nn, optim

from recbole_adv.errors import ConfigError

# The optimizer's averages; the second number is the power of the gradient in them.
_AVERAGES = {"momentum_buffer": 1, "exp_avg": 1, "grad_avg": 1, "sum": 2, "exp_avg_sq": 2}
_AVERAGES |= {"max_exp_avg_sq": 2, "square_avg": 2}


class BeforeStep:
    """Copies of what a step may move; of a sparse gradient the touched rows where only they move.

    Args:
        parameter: has a gradient.
        optimizer: is about to step.
        with_averages: of its state too.

    Attributes:
        start: the weights before the step.
    """

    def __init__(self, parameter: nn.Parameter, optimizer: optim.Optimizer, with_averages: bool):
        self.parameter = parameter
        self.rows = touched_rows(parameter, optimizer)
        self.start = self._read(parameter).clone()
        self.state = optimizer.state[parameter] if with_averages else {}
        self.averages = {
            name: self._read(value).clone() for name, value in self._present_averages().items()
        }

    def now(self) -> Tensor:
        """The weights after it."""
        return self._read(self.parameter)

    def narrow(self, keep: Tensor) -> None:
        """Go on with some of the rows only; keep: [k] their places in ``start``."""
        self.rows = keep if self.rows is None else self.rows[keep]
        self.start = self.start[keep]
        self.averages = {name: value[keep] for name, value in self.averages.items()}

    @torch.no_grad()
    def shorten(self, factor: Tensor) -> None:
        """Leave ``factor`` of the step where it is below 1; elsewhere nothing is written anew.

        factor: a scalar, or [n, 1, ...] for rows.
        """
        self._write(self.parameter, self.start, factor)
        for name, value in self._present_averages().items():
            before = self.averages.get(name)
            before = torch.zeros_like(self._read(value)) if before is None else before
            self._write(value, before, factor ** _AVERAGES[name])

    def _present_averages(self) -> dict[str, Tensor]:
        kept = {n: v for n, v in self.state.items() if n in _AVERAGES and v is not None}
        if any(value.is_sparse for value in kept.values()):
            raise ConfigError(
                "clippy_clip_state cannot follow the momentum of sparse gradients; set "
                "learner_momentum to 0, or leave clippy_clip_state out"
            )
        return kept

    def _read(self, tensor: Tensor) -> Tensor:
        return tensor.detach() if self.rows is None else tensor.detach()[self.rows]

    def _write(self, tensor: Tensor, before: Tensor, factor: Tensor) -> None:
        now = self._read(tensor)
        # lerp begins at before where the factor is small: after a large step nothing of it is in now.
        shortened = torch.where(factor < 1, torch.lerp(before, now, factor), now)
        if self.rows is None:
            tensor.copy_(shortened)
        else:
            tensor.index_copy_(0, self.rows, shortened)


def touched_rows(parameter: nn.Parameter, optimizer: optim.Optimizer) -> Tensor | None:
    """The rows [n] of a sparse gradient; None where the step may move any row.

    Momentum and weight decay move rows that have no gradient.
    """
    elsewhere = any(g.get("momentum") or g.get("weight_decay") for g in optimizer.param_groups)
    if not parameter.grad.is_sparse or elsewhere:
        return None
    parameter.grad = parameter.grad.coalesce()
    return parameter.grad.indices()[0]
