"""Clippy's factor, and the Adagrad that the official code has it in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim


def load(update: Tensor, bound: Tensor, by_row: bool = False) -> Tensor:
    r"""How far the update fills its bound: :math:`\max_i |\delta_i| / b_i`.

    An update of 0 fills nothing, also of a bound of 0; any other overfills that without end. A nan
    gives nan.

    update, bound >= 0: of one shape.
    Returns a scalar, or, by row, [n, 1, ...].
    """
    return largest(torch.where(update == 0, 0.0, update.abs() / bound), by_row)


def largest(filled: Tensor, by_row: bool) -> Tensor:
    """The maximum, 0 of nothing; or, by row, [n, 1, ...]."""
    if by_row:
        return filled.amax(dim=tuple(range(1, filled.dim())), keepdim=True)
    return filled.amax() if filled.numel() else filled.new_zeros(())


def clipping_factor(load: Tensor) -> Tensor:
    """What an update of this load is multiplied with: min(1, 1 / load) (Tang et al., KDD 2023).

    One factor for all numbers of a tensor keeps the direction; nan stays nan.
    """
    return load.reciprocal().clamp(max=1.0)


class ClippyAdagrad(optim.Optimizer):
    r"""Adagrad with Clippy, to the semantics of the official TensorFlow code.

    tensorflow/recommenders, ``experimental/optimizers/clippy_adagrad.py`` at cf1dafa. For each
    tensor, with :math:`p = (G + \epsilon)^{-1/2}`:

    .. math::
        \delta = \eta g p, \quad
        b = \lambda_{rel} |w| + \lambda_{acc} p + \lambda_{abs}, \quad
        w \leftarrow w - \min(1, \min_i b_i / |\delta_i|) \, \delta

    and :math:`G \leftarrow G + g^2` after the step, or before it (the paper's order) with
    ``use_standard_accumulator_update``. Of a sparse gradient duplicates are summed first; bound,
    factor and both updates see the touched rows only. An infinite gradient stops its tensor and
    makes its own place nan, a nan spoils the tensor, as officially.

    Deviation: the default thresholds are the paper's (0.5 and 0.01); the official code's are 0.1 and
    1e-7, under which a bias that begins at 0 takes about a hundred steps to reach 0.01.

    Args:
        variable_relative_threshold, accumulator_relative_threshold, absolute_threshold: lambda_rel,
            lambda_acc and lambda_abs.
        eps: the official ``epsilon``, inside of the root.
        clip_accumulator_update: G grows by the square of the clipped gradient.
        weight_decay: decoupled: ``w -= lr * weight_decay * w`` first, not clipped, as in Keras.

    ``state[parameter]`` has the accumulator as ``sum`` and the last factor as ``clipping_factor``.
    """

    by_tensor = True  # the factor is that of a tensor's worst number

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        initial_accumulator_value: float = 0.1,
        variable_relative_threshold: float = 0.5,
        accumulator_relative_threshold: float = 0.0,
        absolute_threshold: float = 1e-2,
        eps: float = 1e-7,
        clip_accumulator_update: bool = False,
        use_standard_accumulator_update: bool = False,
        weight_decay: float = 0.0,
    ):
        defaults = {name: v for name, v in locals().items() if name not in ("self", "params")}
        defaults.pop("__class__", None)
        for name, value in defaults.items():
            if not isinstance(value, bool) and not value >= 0:
                raise ValueError(f"{name} must be a number >= 0, got {value}")
        if clip_accumulator_update and use_standard_accumulator_update:
            raise ValueError(
                "clip_accumulator_update needs the factor before the accumulator grows, which "
                "use_standard_accumulator_update makes grow first; choose one of them"
            )
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sum"] = torch.full_like(p, initial_accumulator_value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on ``.grad``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_one(p, group)
        return loss

    def _step_one(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[p]
        if group["weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        if not p.grad.is_sparse:
            state["clipping_factor"] = _update(p, p.grad, state["sum"], group)
            return
        gradient = p.grad.coalesce()
        rows = gradient.indices()[0]
        weight, accumulator = p[rows], state["sum"][rows]
        state["clipping_factor"] = _update(weight, gradient.values(), accumulator, group)
        p.index_copy_(0, rows, weight)
        state["sum"].index_copy_(0, rows, accumulator)


def _update(weight: Tensor, gradient: Tensor, accumulator: Tensor, group: dict) -> Tensor:
    """Move weight and accumulator in place; returns the factor."""
    if group["use_standard_accumulator_update"]:
        accumulator.addcmul_(gradient, gradient)
    precondition = (accumulator + group["eps"]).rsqrt()
    delta = gradient * precondition * group["lr"]
    bound = weight.abs() * group["variable_relative_threshold"] + group["absolute_threshold"]
    if group["accumulator_relative_threshold"]:
        bound += precondition * group["accumulator_relative_threshold"]
    factor = clipping_factor(load(delta, bound))
    weight.sub_(delta * factor)
    if not group["use_standard_accumulator_update"]:
        seen = gradient * factor if group["clip_accumulator_update"] else gradient
        accumulator.addcmul_(seen, seen)
    return factor
