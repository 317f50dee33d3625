"""Listens to the modules by which RecBole's models make their losses."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from recbole.model.loss import BPRLoss
from torch import Tensor, nn

from recbole_adv.objective.parts import Loss, total

KINDS = (BPRLoss, nn.BCEWithLogitsLoss, nn.BCELoss, nn.CrossEntropyLoss)
"""Of each the inputs are two tensors: scores of positives and negatives, or scores and targets."""

KIND_NAMES = ", ".join(kind.__name__ for kind in KINDS)


class Call(NamedTuple):
    """One call of a loss module: its inputs, in the order of its ``forward``, and its value."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    value: Tensor


def loss_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of these kinds below ``model``; a subclass may compute something else."""
    return [module for module in model.modules() if type(module) in KINDS]


@contextmanager
def recorded(modules: Sequence[nn.Module]) -> Iterator[list[Call]]:
    """The calls made inside, in order. They hold the graph: keep them no longer than the batch."""
    calls: list[Call] = []

    def note(module, args, kwargs, value) -> None:
        if kwargs:
            args = inspect.signature(module.forward).bind(*args, **kwargs).args
        calls.append(Call(module, args, value))

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def factors(loss: Loss, calls: Sequence[Call]) -> list[Tensor | None]:
    """The derivative of a model's loss in the value of each call: what the model multiplies it by.

    None where the loss does not depend on it. The graph is kept.
    """
    found: list[Tensor | None] = [None] * len(calls)
    wanted = [i for i, call in enumerate(calls) if call.value.requires_grad]
    values = [calls[i].value for i in wanted]
    if values:
        pulls = torch.autograd.grad(total(loss), values, retain_graph=True, allow_unused=True)
        for i, pull in zip(wanted, pulls):
            found[i] = pull
    return found
