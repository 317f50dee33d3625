"""How sharply a loss bends; tensors in, numbers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[list[Tensor]], list[Tensor]]
"""A symmetric matrix times a vector, the vector in several tensors."""


class Eigenvalue(NamedTuple):
    """What a power iteration found: the largest is at least ``value``, and one is within ``residual``."""

    value: float
    residual: float


def largest_eigenvalue(
    product: Product, start: Sequence[Tensor], iterations: int, tolerance: float
) -> Eigenvalue:
    """The largest eigenvalue of a symmetric matrix, by power iteration.

    That finds the one of largest absolute value, a. Where a < 0 a second one on the matrix minus a
    times the identity, which has no negative eigenvalue, finds the largest.

    product: called at most twice ``iterations`` times; start: a random vector; tolerance: a share of
    the eigenvalue that the residual, the norm of H v - value v, may have at the end.
    """
    value, residual = _dominant(product, start, iterations, tolerance)
    if value < 0:
        lowest = value

        def shifted(vector: list[Tensor]) -> list[Tensor]:
            return [p - lowest * v for p, v in zip(product(vector), vector)]

        value, residual = _dominant(shifted, start, iterations, tolerance)
        value += lowest
    return Eigenvalue(value, residual)


def _dominant(
    product: Product, start: Sequence[Tensor], iterations: int, tolerance: float
) -> tuple[float, float]:
    """The eigenvalue of largest absolute value and the norm of its residual."""
    length = _dot(start, start) ** 0.5
    vector = [tensor / length for tensor in start]
    value = residual = 0.0
    for _ in range(iterations):
        image = product(vector)
        value = _dot(vector, image)
        rest = [i - value * v for i, v in zip(image, vector)]
        residual, length = _dot(rest, rest) ** 0.5, _dot(image, image) ** 0.5
        if residual <= tolerance * abs(value):
            break
        vector = [tensor / length for tensor in image]
    return value, residual


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(first, second)))


def hessian_product(loss: Tensor, weights: Sequence[Tensor], vector: Sequence[Tensor]):
    """The Hessian of ``loss`` [scalar] in ``weights`` times ``vector``, by two backward passes."""
    gradient = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    along = sum((g * v).sum() for g, v in zip(gradient, vector) if g is not None)
    if not isinstance(along, Tensor) or not along.requires_grad:
        return [torch.zeros_like(weight) for weight in weights]
    found = torch.autograd.grad(along, weights, allow_unused=True)
    return [torch.zeros_like(w) if f is None else f for w, f in zip(weights, found)]
