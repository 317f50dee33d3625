"""Adagrad with one accumulator for each row of a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim


class RowAdagrad(optim.Optimizer):
    r"""Row-wise Adagrad: the state of a table is a number for each row, not for each weight.

    .. math::
        G_i \leftarrow G_i + \frac{1}{D} \sum_j g_{ij}^2, \quad
        w_{ij} \leftarrow w_{ij} - \eta \, g_{ij} / (\sqrt{G_i} + \epsilon)

    The "exact row-wise Adagrad" of FBGEMM's embedding kernels, which TorchRec trains with. A vector
    has an accumulator for each number, as in Adagrad. A row without a gradient does not move, so
    sparse gradients (:mod:`recbole_adv.game.lazy_rows`) change nothing but the time.

    Args:
        initial_accumulator_value: G at the start.
        eps: beside the root, as in torch's Adagrad.
        weight_decay: added to the gradient, as in torch's Adagrad.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ):
        defaults = {
            "lr": lr,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        for name, value in defaults.items():
            if not value >= 0:
                raise ValueError(f"{name} must be a number >= 0, got {value}")
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                shape = (p.shape[0], *(1,) * (p.dim() - 1)) if p.dim() else ()
                self.state[p]["sum"] = p.new_full(shape, initial_accumulator_value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on ``.grad``, which is dense."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_one(p, self.state[p]["sum"], group)
        return loss

    @staticmethod
    def _step_one(p: Tensor, accumulator: Tensor, group: dict[str, Any]) -> None:
        if p.grad.is_sparse:
            raise RuntimeError(
                "RowAdagrad steps sparse gradients under sparse_embeddings: True alone"
            )
        gradient = p.grad.add(p, alpha=group["weight_decay"]) if group["weight_decay"] else p.grad
        square = gradient.square()
        accumulator.add_(
            square.mean(dim=tuple(range(1, p.dim())), keepdim=True) if p.dim() > 1 else square
        )
        p.addcdiv_(gradient, accumulator.sqrt().add_(group["eps"]).expand_as(p), value=-group["lr"])
