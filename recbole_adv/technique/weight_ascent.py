"""The gradient at weights that were moved uphill: what SAM, ASAM and AWP have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from recbole_adv.errors import ConfigError
from recbole_adv.model_state import forward_state, random_state, replayed
from recbole_adv.objective.parts import Loss, total
from recbole_adv.objective.sharpness import steepest
from recbole_adv.technique.base import Backward, Technique, gradients_aside
from recbole_adv.technique.epoch_means import EpochMeans
from recbole_adv.technique.parameter_choice import chosen, tables_of

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer
    from recbole_adv.trainer.turn import Turn

SCOPES = ("all", "embeddings", "dense")


@dataclass(frozen=True)
class Touched:
    """What a gradient says of a parameter: all of it, or the rows of a sparse gradient.

    values: the gradient; weight: the weights there, of the same shape; rows: [R], None for all.
    """

    parameter: nn.Parameter
    values: Tensor
    weight: Tensor
    rows: Tensor | None


def touched(parameter: nn.Parameter) -> Touched:
    """What ``parameter.grad`` touches."""
    gradient = parameter.grad
    if not gradient.is_sparse:
        return Touched(parameter, gradient, parameter.detach(), None)
    gradient = gradient.coalesce()
    rows = gradient.indices()[0]
    return Touched(parameter, gradient.values(), parameter.detach()[rows], rows)


@contextmanager
def moved(places: Sequence[Touched], moves: Sequence[Tensor]) -> Iterator[None]:
    """The weights are larger by ``moves`` inside, and to the last bit what they were afterwards."""
    kept: list[Tensor] = []
    try:
        with torch.no_grad():
            for place, move in zip(places, moves):
                if place.rows is None:
                    kept.append(place.weight.clone())
                    place.parameter.add_(move)
                else:
                    kept.append(place.weight)  # indexing has copied it
                    place.parameter.index_add_(0, place.rows, move)
        yield
    finally:
        with torch.no_grad():
            for place, old in zip(places, kept):
                if place.rows is None:
                    place.parameter.copy_(old)
                else:
                    place.parameter.index_copy_(0, place.rows, old)


class WeightAscent(Technique):
    """Two passes: the second, at the weights plus e, gives the gradient for the step at the weights.

    Both passes draw the same random numbers, and the second advances no statistics and no counter.
    e comes from the gradient of this batch alone (under ``gradient_accumulation`` each batch has its
    own), touches the parameters that the optimizer moves, and only rows with a gradient where it is
    sparse. Where its norm is 0, nan or inf there is no e and the second pass gives the gradient of
    the first; the figure ``skipped`` is the share of steps in which that was so. Weight decay, which
    is the optimizer's, is taken at the weights.

    Logged are ``sharpness``, the loss at w + e minus that at w, and ``perturbation_norm``, the L2
    norm of e: the means over the steps of an epoch. The loss in the log is that at w.

    A subclass says how far each parameter may be moved. Arguments they share:

    Args:
        scope: ``all`` parameters, the ``embeddings`` (weights of nn.Embedding) or all but those
            (``dense``); the others keep still, and have the gradient at w + e all the same.
        apart: each parameter has a norm of its own, not all together.
        start_epoch, stop_epoch: first epoch with, and first one again without.
        interval: steps from one with two passes to the next.
        weight: of the gradient at w + e; keep_clean: that at w is added.
        strength: 0 changes nothing: there is one pass.
    """

    def __init__(
        self,
        *,
        strength: float,
        scope: str,
        apart: bool,
        start_epoch: int,
        stop_epoch: int | None,
        interval: int,
        weight: float = 1.0,
        keep_clean: bool = False,
    ):
        self.name = type(self).__name__.lower()
        if stop_epoch is not None and stop_epoch <= start_epoch:
            raise ConfigError(
                f"{self.name}_stop_epoch must be above {self.name}_start_epoch {start_epoch}, got "
                f"{stop_epoch}; None never stops"
            )
        self.strength, self.scope, self.apart = strength, scope, apart
        self.start_epoch, self.stop_epoch, self.interval = start_epoch, stop_epoch, interval
        self.weight, self.keep_clean = weight, keep_clean
        self.epoch, self.means = 0, EpochMeans()

    def radius(self, place: Touched) -> Tensor | float:
        """How far the parameter, or where norms are not apart all of them, may be moved."""
        raise NotImplementedError

    def scale(self, place: Touched) -> Tensor | None:
        """The size of each weight, in whose units it is moved; None for 1."""
        return None

    def left_out(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter is never moved."""
        return False

    def attach(self, trainer: AdvTrainer, player: Player) -> None:
        self._model = trainer.model
        own, tables = {id(p) for p in player.parameters}, tables_of(trainer.model)
        without = {"all": set(), "embeddings": own - tables, "dense": tables}[self.scope]
        without = without | {id(p) for p in player.parameters if self.left_out(p)}
        hint = f"write {self.name}_scope: all" if self.scope != "all" else "leave it out"
        self._ids = chosen(trainer.model, player, self.name, without=without, hint=hint)

    def before_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def wraps_gradient(self) -> bool:
        begun = self.epoch >= self.start_epoch
        return (
            self.strength > 0
            and begun
            and not (self.stop_epoch is not None and self.epoch >= self.stop_epoch)
        )

    def wrap_backward(self, backward: Backward, turn: Turn) -> Backward:
        # A group of accumulated batches is one step.
        if not self.wraps_gradient() or turn.steps % self.interval:
            return backward

        def uphill(batch: Any, weight: float = 1.0) -> Loss:
            numbers, start = random_state(), forward_state(self._model)
            with gradients_aside(turn.player.parameters):
                clean = backward(batch, weight)
                places = self._places(turn)
                if not places:
                    return clean
                moves, skipped = self._moves(places, math.copysign(1.0, weight))
                if not self.keep_clean:
                    for parameter in turn.player.parameters:
                        parameter.grad = None
                with moved(places, moves), replayed(self._model, numbers, start):
                    there = backward(batch, weight * self.weight)
            self._note(clean, there, moves, skipped)
            return clean

        return uphill

    def figures(self) -> dict[str, float]:
        return self.means.read()

    def _places(self, turn: Turn) -> list[Touched]:
        own = (p for p in turn.parameters if id(p) in self._ids and p.grad is not None)
        return [touched(parameter) for parameter in own]

    @torch.no_grad()
    def _moves(self, places: list[Touched], sign: float) -> tuple[list[Tensor], Tensor]:
        scales = [self.scale(place) for place in places]
        return steepest(
            [place.values for place in places],
            [sign * self.radius(place) for place in places],
            None if scales[0] is None else scales,
            self.apart,
        )

    @torch.no_grad()
    def _note(self, clean: Loss, there: Loss, moves: Sequence[Tensor], skipped: Tensor) -> None:
        self.means.add(
            sharpness=(total(there) - total(clean)).sum(),  # some losses have shape [1]
            perturbation_norm=torch.stack([m.norm() for m in moves]).norm(),
            skipped=skipped,
        )
