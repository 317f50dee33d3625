"""How sharply a player's loss bends where it stands, leaving no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adv.model_state import random_state, replayed
from recbole_adv.objective.curvature import hessian_product, largest_eigenvalue
from recbole_adv.objective.parts import Loss, total
from recbole_adv.objective.sharpness import steepest
from recbole_adv.technique.ema import replaced


class LossSurface:
    """The mean loss over some batches around the weights, as it is on the same random numbers each time.

    Args:
        weights: the parameters to move, by name; all others are constants.
        loss: the loss on a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        loss: Callable[[Any], Loss],
        batches: Sequence[Any],
    ):
        self.model, self.loss, self.batches = model, loss, batches
        self.weights = dict(weights)
        self._random = random_state()

    def _mean(self, of: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        """The mean over the batches of what ``of`` makes of the loss."""
        sums: list[Tensor] = []
        with replayed(self.model, self._random), _dense_gradients(self.model):
            for batch in self.batches:
                found = of(total(self.loss(batch)))
                sums = [a + b for a, b in zip(sums, found)] if sums else list(found)
        return [value / len(self.batches) for value in sums]

    def value(self) -> float:
        """The loss where the weights are."""
        return self._mean(lambda loss: [loss.detach()])[0].item()

    def gradient(self) -> list[Tensor]:
        """In each of the weights, 0 where the loss does not depend on it."""
        weights = list(self.weights.values())

        def of(loss: Tensor) -> list[Tensor]:
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found)]

        return self._mean(of)

    def hessian_times(self, vector: list[Tensor]) -> list[Tensor]:
        """The Hessian in the weights times a vector."""
        weights = list(self.weights.values())
        return self._mean(lambda loss: hessian_product(loss, weights, vector))

    def sharpness(self, iterations: int, tolerance: float) -> dict[str, float]:
        """A lower bound of the largest eigenvalue of the Hessian, and how near to it there is one."""
        generator = torch.Generator().manual_seed(0)
        start = [
            torch.randn(w.shape, generator=generator).to(w.device, w.dtype)
            for w in self.weights.values()
        ]
        found = largest_eigenvalue(self.hessian_times, start, iterations, tolerance)
        return {"sharpness": found.value, "sharpness_residual": found.residual}

    def rises(self, radii: Sequence[float]) -> dict[str, float]:
        """L(w + e) - L(w) for each radius, e the step of this length along the gradient (as in SAM)."""
        here, gradient = self.value(), self.gradient()
        found = {}
        for radius in radii:
            steps, _ = steepest(gradient, [radius] * len(gradient))
            there = {n: w + e for (n, w), e in zip(self.weights.items(), steps)}
            with replaced(self.weights, {n: w.detach() for n, w in there.items()}):
                found[f"rise_{radius:g}"] = self.value() - here
        return found


@contextmanager
def _dense_gradients(model: nn.Module) -> Iterator[None]:
    """No table has a sparse gradient inside: these are mixed with dense vectors here."""
    sparse = [module for module in model.modules() if getattr(module, "sparse", False) is True]
    for module in sparse:
        module.sparse = False
    try:
        yield
    finally:
        for module in sparse:
            module.sparse = True
