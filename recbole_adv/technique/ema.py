"""An exponential moving average of the weights, which is validated, tested and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from recbole_adv import processes
from recbole_adv.errors import ConfigError
from recbole_adv.game.lazy_rows import LazyRows
from recbole_adv.technique.base import Step, Technique, gradient_values
from recbole_adv.technique.lazy_average import LazyAverage, log_of

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer
    from recbole_adv.trainer.turn import Outcome, Turn


def decay_at(update: int, decay: float, warmup: bool) -> float:
    """The decay of an update, counted from 0; with warm-up min(decay, (1 + t) / (10 + t))."""
    return min(decay, (1 + update) / (10 + update)) if warmup else decay


@torch.no_grad()
def average_(shadows: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float) -> None:
    """``shadow = decay * shadow + (1 - decay) * weight`` in place; decay 0 copies the weights."""
    torch._foreach_lerp_(list(shadows.values()), [weights[name] for name in shadows], 1.0 - decay)


@contextmanager
def replaced(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """The tensors hold ``values`` inside, and to the last bit what they held before afterwards."""
    before = {name: tensors[name].detach().clone() for name in values}
    try:
        _copy(tensors, values)
        yield
    finally:
        _copy(tensors, before)


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        tensors[name].copy_(value)


class Ema(Technique):
    """The moving average of a player's weights after each of its steps, as evaluation weights.

    The average begins as a copy of the weights: of those before the first step, or of those where
    ``start_epoch`` and ``start_step`` are both reached; until then the plain weights are evaluated.
    A step that a GradScaler leaves out is no update. All of the player is averaged, parameters
    without a gradient in a step too. Under ``sparse_embeddings`` a step reads and writes the touched
    rows of a sparse table alone, and every row has the same average but for rounding
    (:class:`~recbole_adv.technique.lazy_average.LazyAverage`).

    Args:
        decay: what stays of the average in one update; 0 evaluates the plain weights.
        warmup: the decay of update t, counted from 0, is at most (1 + t) / (10 + t).
        start_epoch, start_step: from when on; steps are the player's.
        buffers: ``copy``: buffers (BatchNorm's statistics) are evaluated as they are; ``average``:
            those of floating point that a checkpoint holds are averaged too.
    """

    def __init__(
        self,
        *,
        decay: float = 0.999,
        warmup: bool = True,
        start_epoch: int = 0,
        start_step: int = 0,
        buffers: str = "copy",
    ):
        self.decay, self.warmup = decay, warmup
        self.start_epoch, self.start_step, self.buffers = start_epoch, start_step, buffers
        self.shadows: dict[str, Tensor] = {}
        self.lazy: dict[str, LazyAverage] = {}  # of the tables among the shadows that are sparse
        self.so_far = 0.0  # sum of the logarithms of the decays
        self.epoch = self.steps = self.updates = 0
        self._inside = False

    def attach(self, trainer: AdvTrainer, player: Player) -> None:
        # Moves in closed form and projections may write to any row.
        self._may_be_lazy = player.move is None and player.project is None
        own = {id(parameter) for parameter in player.parameters}
        named = trainer.model.named_parameters()
        self.tensors = {name: p for name, p in named if id(p) in own and p.is_floating_point()}
        if self.buffers == "average":
            if processes.count() > 1:
                raise ConfigError(
                    "ema_buffers: average follows BatchNorm's statistics step by step, which several "
                    f"processes share once an epoch, got {processes.count()} processes; write copy"
                )
            self.tensors |= _saved_buffers(trainer.model)

    def before_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._begin()

    def wrap_step(self, step: Step, turn: Turn) -> Step:
        if not (self.shadows and self._may_be_lazy and isinstance(turn.optimizer, LazyRows)):
            return step

        def noted() -> None:
            for name, tensor in self.tensors.items():
                gradient = getattr(tensor, "grad", None)
                sparse = gradient is not None and gradient.is_sparse
                if sparse and name not in self.lazy:
                    self.lazy[name] = LazyAverage(self.shadows[name], self.so_far)
                if gradient is not None and name in self.lazy:
                    gradient_values(tensor)  # coalesces
                    rows = tensor.grad.indices()[0] if sparse else None
                    self.lazy[name].before_step(tensor, rows, self.so_far)
            step()

        return noted

    def after_step(self, turn: Turn, outcome: Outcome) -> None:
        assert not self._inside, "a step was taken while the model held the averaged weights"
        self.steps = turn.steps
        if not self.shadows:
            self._begin()
            return
        decay = decay_at(self.updates, self.decay, self.warmup)
        dense = {n: shadow for n, shadow in self.shadows.items() if n not in self.lazy}
        if dense:
            average_(dense, self.tensors, decay)
        self.so_far += log_of(decay)
        for name, lazy in self.lazy.items():
            lazy.after_step(self.tensors[name], decay, self.so_far)
        self.updates += 1

    def _begin(self) -> None:
        reached = self.epoch >= self.start_epoch and self.steps >= self.start_step
        if reached and not self.shadows:
            self.shadows = {name: t.detach().clone() for name, t in self.tensors.items()}

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        assert not self._inside, "the model already holds the averaged weights"
        if not self.shadows:
            yield
            return
        self._inside = True
        averages = self.shadows | {
            name: lazy.now(self.tensors[name], self.so_far) for name, lazy in self.lazy.items()
        }
        try:
            with replaced(self.tensors, averages):
                yield
        finally:
            self._inside = False

    def figures(self) -> dict[str, float]:
        if not self.updates:
            return {}
        return {"decay": decay_at(self.updates - 1, self.decay, self.warmup)}

    def state_dict(self) -> dict[str, Any]:
        return {
            "shadows": self.shadows,
            "seen": {name: lazy.seen for name, lazy in self.lazy.items()},
            "so_far": self.so_far,
            "updates": self.updates,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        unlike = sorted(state["shadows"].keys() ^ self.tensors.keys()) if state["shadows"] else []
        if unlike:
            raise KeyError(unlike[0])
        self.updates, self.steps = state["updates"], state["steps"]
        self.shadows = {n: v.to(self.tensors[n]).clone() for n, v in state["shadows"].items()}
        self.so_far = state.get("so_far", 0.0)
        self.lazy = {
            name: LazyAverage(
                self.shadows[name], self.so_far, seen.to(self.tensors[name].device).clone()
            )
            for name, seen in state.get("seen", {}).items()
        }


def _saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of floating point that are in ``state_dict()``, by name."""
    saved = model.state_dict(keep_vars=True)
    return {
        name: buffer
        for name, buffer in model.named_buffers()
        if name in saved and buffer.is_floating_point() and not buffer.is_sparse
    }
