"""Says which tensor caused "Trying to backward through the graph a second time"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def explain_kept_graph(model: nn.Module) -> str:
    """The sentence that names the attributes whose graph was freed in an earlier batch.

    ``retain_graph`` cannot help there: the graph is already gone. A tensor is the cause if going
    back through it alone fails in the same way.
    """
    found = dict(graph_tensors(model))
    stale = [name for name, tensor in found.items() if _is_freed(tensor, model)]
    names = stale or list(found)
    if not names:
        return (
            "the loss goes back through a graph that was freed, and no attribute of "
            f"{type(model).__name__} holds one; look for a tensor kept outside of the model, and "
            "detach() it"
        )
    listed = ", ".join(f"self.{name}" for name in names)
    return (
        f"{listed} of {type(model).__name__} keeps the graph of an earlier batch, which was freed "
        "by that batch's backward (retain_graph cannot bring it back); assign it with .detach(), or "
        "compute it anew in each batch"
    )


def graph_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Attributes of the model and its submodules that carry a graph, by dotted name."""
    for prefix, module in model.named_modules():
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_modules")}
        for name, value in {**own, **own.pop("_buffers", {})}.items():
            yield from _inside(f"{prefix}.{name}" if prefix else name, value)


def _inside(label: str, value: Any, depth: int = 2) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield label, value
    elif depth and isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _inside(f"{label}[{index}]", item, depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(f"{label}[{key!r}]", item, depth - 1)


def _is_freed(tensor: Tensor, model: nn.Module) -> bool:
    leaves = [p for p in model.parameters() if p.requires_grad]
    try:
        torch.autograd.grad(tensor.sum(), leaves, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        return "second time" in str(error)
    return False
