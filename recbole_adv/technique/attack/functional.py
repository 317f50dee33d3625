"""The loss at other weights without writing any: slower than in place, and the tests' oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from recbole_adv.objective.parts import Loss


class _Call(nn.Module):
    """A module whose forward is a loss of the model in it."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Loss]):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Loss:
        return self.loss(batch)


def loss_at(
    model: nn.Module, deltas: Mapping[str, Tensor], loss: Callable[[Any], Loss], batch: Any
) -> Loss:
    """``loss(batch)`` with ``deltas`` added to the parameters of those names.

    Differentiable in the parameters and in the deltas. ``loss`` is a method of the model.
    """
    parameters = dict(model.named_parameters())
    moved = {f"model.{name}": parameters[name] + delta for name, delta in deltas.items()}
    return functional_call(_Call(model, loss), moved, (batch,))
