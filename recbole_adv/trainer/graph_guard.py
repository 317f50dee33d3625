"""Finds what in a model spoils a step: graphs kept or cut, gradients filled by the model, losses that
are no numbers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adv.errors import TrainingError
from recbole_adv.objective.parts import Loss, explain_no_loss, is_number, parts


def sequence_number() -> int:
    """The number that autograd gives to the next node of a graph; nodes are numbered upwards."""
    return torch.autograd._get_sequence_nr()


def explain_kept_graph(model: nn.Module, losses: Iterable[Tensor], begun: int) -> str:
    """The sentence that names the attributes by which ``losses`` reached an earlier, freed graph.

    ``retain_graph`` cannot help there: the graph is already gone. An attribute is to blame if going
    back from it leads through a node of the loss's graph that is older than the forward pass of the
    loss, which began at :func:`sequence_number` ``begun``. Whether its graph is freed says
    nothing: the backward that failed has freed new nodes too.
    """
    old = set().union(*(_older_nodes(loss, begun) for loss in losses))
    found = [
        name
        for name, value in graph_tensors(model)
        if not old.isdisjoint(_older_nodes(value, begun))
    ]
    if not found:
        return (
            "the loss goes back through a graph that was freed, and no tensor, list, tuple, deque, set "
            f"or dict that is an attribute of {type(model).__name__} holds it; look for a tensor kept in "
            "an object of another kind or outside of the model, and detach() it"
        )
    listed = ", ".join(f"self.{name}" for name in dict.fromkeys(found))
    return (
        f"{listed} of {type(model).__name__} keeps the graph of an earlier forward pass, which was "
        "freed by the backward of that pass (retain_graph cannot bring it back); assign it with "
        ".detach(), or compute it anew in each forward pass"
    )


def explain_independence(player: str) -> str:
    """The sentence about a loss from which no gradient reaches its player."""
    return (
        f"the loss of player {player!r} does not depend on its parameters; look for a detach(), a "
        "no_grad() or a tensor kept from another player's turn in it"
    )


def explain_not_apart(model: nn.Module, player: str, stranger: Tensor) -> str:
    """The sentence about a joint loss that was declared to depend on its player's parameters alone."""
    name = next(name for name, parameter in model.named_parameters() if parameter is stranger)
    return (
        f"calculate_joint of {type(model).__name__} is marked @graphs_apart, but the loss of player "
        f"{player!r} leads back to {name!r} of another; take the mark away, or detach() what is shared"
    )


def explain_no_pair(model: nn.Module, batch: Any) -> str:
    """The sentence about a ``calculate_joint`` that returns no pair, or none; this calls it once more."""
    values = model.calculate_joint(batch)
    if isinstance(values, (tuple, list)) and len(values) == 2 and is_number(values[1]):
        return ""
    what = f"calculate_joint of {type(model).__name__}"
    return f"{explain_no_loss(what, values)}, for min's loss and for max's objective"


def explain_nonfinite(loss: Loss, player: str, step: int) -> str:
    """The sentence about a part of the loss that is nan or inf, or none; this reads the device."""
    for number, part in enumerate(parts(loss), start=1):
        value = part.item()
        if not math.isfinite(value):
            which = f"part {number} of the loss" if isinstance(loss, tuple) else "the loss"
            return (
                f"{which} of player {player!r} is {value} at its step {step}; lower the learning "
                "rate or set clip_grad_norm"
            )
    return ""


def graph_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Attributes of the model and its submodules that carry a graph, by dotted name."""
    for prefix, module in model.named_modules():
        for name, value in {**vars(module), **module._buffers}.items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            yield from _inside(f"{prefix}.{name}" if prefix else name, value)


def _inside(label: str, value: Any, depth: int = 2) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield label, value
    elif depth and isinstance(value, (list, tuple, deque)):
        for index, item in enumerate(value):
            yield from _inside(f"{label}[{index}]", item, depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(f"{label}[{key!r}]", item, depth - 1)
    elif depth and isinstance(value, (set, frozenset)):
        for item in value:  # it has no name of its own
            yield from _inside(label, item, depth - 1)


def reached_by(value: Tensor) -> list[Tensor]:
    """The parameters, and other leaves that require a gradient, to which ``value`` leads back."""
    return [node.variable for node in _nodes(value) if hasattr(node, "variable")]


def _older_nodes(value: Tensor, begun: int) -> set[Any]:
    """The nodes of the graph of ``value`` that were made before ``begun``; parameters are none."""
    return {node for node in _nodes(value) if node._sequence_nr() < begun}


def _nodes(value: Tensor) -> set[Any]:
    """The nodes of the graph of ``value``."""
    seen: set[Any] = set()
    waiting: list[Any] = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return seen


@contextmanager
def untouched(parameters: Iterable[nn.Parameter], what: str) -> Iterator[None]:
    """Raise :class:`TrainingError` if ``what`` runs inside and changes gradients of ``parameters``."""
    parameters = tuple(parameters)
    before = _gradients(parameters)
    yield
    if _gradients(parameters) != before:
        raise TrainingError(
            f"{what} changed gradients that are not its own to fill; leave backward() to the "
            "trainer, or take the gradient by torch.autograd.grad()"
        )


def _gradients(parameters: tuple[nn.Parameter, ...]) -> list[tuple[int, int] | None]:
    return [None if p.grad is None else (id(p.grad), p.grad._version) for p in parameters]
