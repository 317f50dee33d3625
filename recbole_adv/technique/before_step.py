"""A parameter as it was before a step of its optimizer, so that the step can be shortened."""

from __future__ import annotations

import torch
from torch import Tensor, nn, optim

from recbole_adv.errors import ConfigError
from recbole_adv.game.lazy_rows import LazyRows

# The optimizers' sums of gradients and of their squares.
_FIRST = ("momentum_buffer", "exp_avg", "grad_avg")
_SECOND = ("sum", "exp_avg_sq", "max_exp_avg_sq", "square_avg")


class BeforeStep:
    """Copies of what a step may move; of a sparse gradient the touched rows where only they move.

    Args:
        parameter: has a gradient.
        optimizer: is about to step.
        with_state: shorten its state too.
        rows: those that are copied, [n]; None: all that may move.

    Attributes:
        start: the weights before the step.
    """

    def __init__(
        self,
        parameter: nn.Parameter,
        optimizer: optim.Optimizer,
        with_state: bool,
        rows: Tensor | None = None,
    ):
        self.parameter = parameter
        self.rows = touched_rows(parameter, optimizer) if rows is None else rows
        self.start = self._copy(parameter)
        self.state = optimizer.state[parameter] if with_state else {}
        self.squares = {name: self._copy(value) for name, value in self._present(_SECOND).items()}

    def now(self) -> Tensor:
        """The weights after it."""
        return self._read(self.parameter)

    def narrow(self, keep: Tensor) -> None:
        """Go on with some of the rows only; keep: [k] their places in ``start``."""
        self.rows = keep if self.rows is None else self.rows[keep]
        self.start = self.start[keep]
        self.squares = {name: value[keep] for name, value in self.squares.items()}

    @torch.no_grad()
    def shorten(self, factor: Tensor) -> None:
        """Leave ``factor`` of the step where it is below 1; elsewhere nothing is written anew.

        The optimizer's state shrinks with it: sums of gradients, which made the step, by ``factor``,
        and what sums of squares grew by, by its square.

        factor: a scalar, or [n, 1, ...] for rows.
        """
        self._write(self.parameter, self.start, factor)
        for value in self._present(_FIRST).values():
            self._write(value, torch.zeros_like(self._read(value)), factor)
        for name, value in self._present(_SECOND).items():
            before = self.squares.get(name)
            before = torch.zeros_like(self._read(value)) if before is None else before
            self._write(value, before, factor**2)

    def _present(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        kept = {name: self.state[name] for name in names if self.state.get(name) is not None}
        if any(value.is_sparse for value in kept.values()):
            raise ConfigError(
                "clippy_clip_state cannot follow the momentum of sparse gradients; set "
                "learner_momentum to 0, or leave clippy_clip_state out"
            )
        return kept

    def _copy(self, tensor: Tensor) -> Tensor:
        return self._read(tensor).clone() if self.rows is None else self._read(tensor)

    def _read(self, tensor: Tensor) -> Tensor:
        # index_select reads rows in half the time of an index in brackets.
        tensor = tensor.detach()
        return tensor if self.rows is None else tensor.index_select(0, self.rows)

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

    Momentum and weight decay of torch's optimizers move rows that have no gradient.
    """
    elsewhere = not isinstance(optimizer, LazyRows) and any(
        g.get("momentum") or g.get("weight_decay") for g in optimizer.param_groups
    )
    if not parameter.grad.is_sparse or elsewhere:
        return None
    parameter.grad = parameter.grad.coalesce()
    return parameter.grad.indices()[0]
