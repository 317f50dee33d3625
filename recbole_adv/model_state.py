"""What a forward pass changes besides gradients, and how to take it back.

A second forward pass on one batch (an attack, the gain of a player) must draw the same random numbers
as the first and advance nothing twice: not the generators, not BatchNorm's statistics, not a counter
like MultiVAE's annealing step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CACHES = ("i_embedding",)  # DMF's
_SMALL = 65536  # elements; a larger plain tensor is data (an adjacency, a history), not a counter


def random_state() -> dict[str, Any]:
    """The state of every global random generator, as data."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        **host_random_state(),
    }


def host_random_state() -> dict[str, Any]:
    """Of it what is not torch's: numpy's and Python's."""
    return {"numpy": np.random.get_state(), "python": random.getstate()}


def set_random_state(state: dict[str, Any]) -> None:
    """Take back :func:`random_state`."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    set_host_random_state(state)


def set_host_random_state(state: dict[str, Any]) -> None:
    """Take back :func:`host_random_state`."""
    np.random.set_state(tuple(state["numpy"]))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


@contextmanager
def host_seeded(seed: int) -> Iterator[None]:
    """Inside, numpy and Python draw from ``seed`` on; outside they go on as if nothing had been drawn."""
    outside = host_random_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        set_host_random_state(outside)


@dataclass(frozen=True)
class ForwardState:
    """What a forward pass reads and advances: small buffers, and numbers and small tensors held as
    attributes, by the module that has them."""

    buffers: list[tuple[Tensor, Tensor]]
    attributes: list[tuple[dict[str, Any], dict[str, Any]]]


def forward_state(model: nn.Module) -> ForwardState:
    """A copy of the state, to be set again by :func:`set_forward_state`.

    In it are small buffers (BatchNorm's statistics among them), and the numbers and small plain
    tensors that the modules hold as attributes (MultiVAE's ``update``, DiffRec's ``Lt_history``).
    Parameters, gradients and random generators are not.
    """
    return ForwardState(
        [(b, b.clone()) for b in model.buffers() if _is_small(b)],
        [(m.__dict__, _plain_state(m)) for m in model.modules() if _holds_state(m)],
    )


def set_forward_state(state: ForwardState) -> None:
    """Take back :func:`forward_state`; any number of times."""
    with torch.no_grad():
        for buffer, value in state.buffers:
            buffer.copy_(value)
    for target, kept in state.attributes:
        target.update({n: v.clone() if isinstance(v, Tensor) else v for n, v in kept.items()})


@contextmanager
def traceless(model: nn.Module, start: ForwardState | None = None) -> Iterator[None]:
    """Forward passes inside leave buffers and counters of the model as they were.

    start: where they begin, instead of at the state of this moment: that before the first pass on
        a batch makes a second one see what the first one saw.
    """
    now = forward_state(model)
    if start is not None:
        set_forward_state(start)
    try:
        yield
    finally:
        set_forward_state(now)


def _is_small(buffer: Tensor | None) -> bool:
    return buffer is not None and buffer.numel() <= _SMALL and not buffer.is_sparse


def _holds_state(module: nn.Module) -> bool:
    """torch's own layers keep theirs in buffers; ``training`` is no state."""
    return not type(module).__module__.startswith("torch.")


def _plain_state(module: nn.Module) -> dict[str, Any]:
    """The numbers and small tensors without a graph among a module's plain attributes."""
    kept: dict[str, Any] = {}
    for name, value in module.__dict__.items():
        if name == "training" or name.startswith("_"):
            continue
        if isinstance(value, (bool, int, float)):
            kept[name] = value
        elif isinstance(value, Tensor) and value.layout == torch.strided:
            if value.numel() <= _SMALL and not value.requires_grad:
                kept[name] = value.clone()
    return kept


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Forward passes inside draw the same random numbers each time and leave no trace."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with traceless(model), torch.random.fork_rng(devices=list(devices)), host_seeded(0):
        torch.manual_seed(0)
        yield


@contextmanager
def drawing_from(state: dict[str, Any]) -> Iterator[None]:
    """Random numbers inside are those from ``state`` on; outside the generators go on as if nothing
    had been drawn."""
    outside = random_state()
    set_random_state(state)
    try:
        yield
    finally:
        set_random_state(outside)


@contextmanager
def replayed(
    model: nn.Module, state: dict[str, Any], start: ForwardState | None = None
) -> Iterator[None]:
    """Forward passes inside draw random numbers from ``state`` on and leave no trace.

    start: as in :func:`traceless`.
    """
    with drawing_from(state), traceless(model, start):
        yield


@contextmanager
def beside(model: nn.Module) -> Iterator[None]:
    """As :func:`traceless`, for a pass whose graph outlives it: it works on copies of small buffers.

    Writing the old values back would spoil the backward of both passes, which have saved the
    buffers (BatchNorm's do).
    """
    own = [(m._buffers, dict(m._buffers)) for m in model.modules() if m._buffers]
    attributes = forward_state(model).attributes
    for target, buffers in own:
        target.update({n: b.clone() if _is_small(b) else b for n, b in buffers.items()})
    try:
        yield
    finally:
        for target, kept in [*own, *attributes]:
            target.update(kept)


def clear_caches(model: nn.Module) -> None:
    """Forget the final embeddings that RecBole's graph models keep from one evaluation to the next.

    LightGCN, NGCF, DGCF, SGL, NCL, SpectralCF, KGAT, KGIN and MCCLK rank from ``restore_user_e``
    and its kin as long as these are not None, whatever the weights are by then.
    """
    for module in model.modules():
        for name, value in module.__dict__.items():
            if (name.startswith("restore_") or name in _CACHES) and value is not None:
                module.__dict__[name] = None
