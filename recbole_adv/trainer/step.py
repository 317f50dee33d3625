"""The one place that calls ``backward()`` and ``step()``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adv.errors import TrainingError
from recbole_adv.game.player import Player, frozen
from recbole_adv.objective.parts import Loss, parts, total
from recbole_adv.technique import Technique
from recbole_adv.trainer.graph_guard import (
    explain_independence,
    explain_kept_graph,
    sequence_number,
    untouched,
)
from recbole_adv.trainer.random_stream import RandomStream, undisturbed


@dataclass
class Turn:
    """One player's move: what the engine runs and what a technique is shown.

    Attributes:
        player: who moves.
        optimizer: steps its parameters; None for a player that only moves in closed form.
        loss: the loss on a batch; the player's own unless the trainer replaced it (the
            knowledge graph phase of KGTrainer).
        scaler: its own GradScaler, None without one.
        techniques: what is applied to it, in order.
        stream: its own random numbers, None for the first player, who uses the global ones.
        others: the parameters of all other players.
        steps: its optimizer steps so far, over the whole run.
    """

    player: Player
    optimizer: torch.optim.Optimizer | None
    loss: Callable[[Any], Loss] | None
    scaler: torch.amp.GradScaler | None = None
    techniques: Sequence[Technique] = ()
    stream: RandomStream | None = None
    others: tuple[nn.Parameter, ...] = ()
    steps: int = 0


@dataclass
class Outcome:
    """What one step was: the loss parts, detached, and, where it was sampled, two figures more.

    ``gain``: the objective of a player that maximises, after minus before its step, on the batch of
    the step and the same random numbers.
    """

    parts: tuple[Tensor, ...] = ()
    gradient_norm: Tensor | None = None
    gain: Tensor | None = None


class StepEngine:
    """Runs a turn on a batch.

    One player (``run``)::

        freeze the others; zero_grad; loss; backward; unscale; edit gradients; step; project

    Several on one graph (``run_shared``)::

        zero_grad of each; one forward; backward of each, only into its own parameters, at the same
        point, the graph kept for all but the last; unscale, edit, step and project of each

    No optimizer steps between two backward calls over one graph, so neither "backward through the
    graph a second time" nor "modified by an inplace operation" can come from the engine.

    Args:
        autocast: makes the context of the forward passes.
        check_every: a loss is checked for nan and inf in every ``check_every``-th step; 1 costs a
            synchronisation of the device for each batch.
        monitor_interval: a player's steps between two samples of gradient norm and gain; 0: none.
        check_gradients: assert that only a backward fills gradients, and only its player's.
        clip_before_unscale: RecBole's order under a scaler.
    """

    def __init__(
        self,
        model: nn.Module,
        autocast: Callable[[], Any] = nullcontext,
        check_every: int = 1,
        monitor_interval: int = 0,
        check_gradients: bool = False,
        clip_before_unscale: bool = False,
    ):
        self.model = model
        self.autocast = autocast
        self.check_every = check_every
        self.monitor_interval = monitor_interval
        self.check_gradients = check_gradients
        self.clip_before_unscale = clip_before_unscale

    def run(self, turn: Turn, batch: Any) -> Outcome:
        """Move one player on one batch by its own forward pass."""
        with turn.stream or nullcontext():
            if turn.player.move is not None:
                with self.autocast():
                    moved = turn.player.move(batch)
                if moved is not NotImplemented:
                    return self._finish_move(turn, moved)
            loss = self._descend(turn, batch)
        outcome = Outcome(parts(loss))
        del loss
        self._apply(turn, batch, outcome)
        return outcome

    def run_shared(
        self, turns: Sequence[Turn], joint: Callable[[Any], Mapping[str, Loss]], batch: Any
    ) -> list[Outcome]:
        """Move several players on one batch from one forward pass, all at the same point."""
        for turn in turns:
            turn.optimizer.zero_grad(set_to_none=True)
        begun = sequence_number()
        with self._guarded(self.model.parameters(), "calculate_joint"), self.autocast():
            losses = joint(batch)
        for turn in turns:
            loss = losses[turn.player.name]
            self._check_finite(turn, loss)
            self._backward(turn, total(loss), begun, retain_graph=turn is not turns[-1])
        outcomes = [Outcome(parts(losses[turn.player.name])) for turn in turns]
        del losses, loss
        for turn, outcome in zip(turns, outcomes):  # the gradients are taken: any order will do
            self._apply(turn, batch, outcome)
        return outcomes

    # --- the parts of a step -------------------------------------------------------------------

    def _descend(self, turn: Turn, batch: Any) -> Loss:
        def backward() -> Loss:
            loss_of = turn.loss
            for technique in reversed(turn.techniques):
                loss_of = technique.wrap_loss(loss_of, turn)
            turn.optimizer.zero_grad(set_to_none=True)
            begun = sequence_number()
            what = f"the loss of {turn.player.name!r}"
            with self._guarded(self.model.parameters(), what), self.autocast():
                loss = loss_of(batch)
            self._check_finite(turn, loss)
            self._backward(turn, total(loss), begun)
            return loss

        for technique in reversed(turn.techniques):
            backward = technique.wrap_backward(backward, turn)
        if not turn.others:
            return backward()
        with frozen(turn.others):
            return backward()

    def _backward(self, turn: Turn, loss: Tensor, begun: int, retain_graph: bool = False) -> None:
        """Fill the player's gradients; ``begun`` is autograd's number where the forward began."""
        if turn.scaler is not None:
            loss = turn.scaler.scale(loss)
        # Restricting backward to the owner's parameters costs a walk of the graph, which one
        # player who owns all of them does not need.
        inputs = [p for p in turn.player.parameters if p.requires_grad] if turn.others else None
        try:
            with self._guarded(turn.others, f"the backward of {turn.player.name!r}"):
                loss.backward(inputs=inputs, retain_graph=retain_graph)
        except RuntimeError as error:
            if "backward through the graph a second time" in str(error):
                raise TrainingError(explain_kept_graph(self.model, loss, begun)) from error
            if "does not require grad" in str(error):
                raise TrainingError(explain_independence(turn.player.name)) from error
            raise
        # On a shared graph torch is silent about a loss that depends on another player only.
        if turn.others and all(p.grad is None for p in turn.player.parameters):
            raise TrainingError(explain_independence(turn.player.name))

    def _guarded(self, parameters: Iterable[nn.Parameter], what: str) -> AbstractContextManager:
        return untouched(parameters, what) if self.check_gradients else nullcontext()

    def _apply(self, turn: Turn, batch: Any, outcome: Outcome) -> None:
        """From gradients to new weights."""
        if turn.scaler is not None and all(p.grad is None for p in turn.player.parameters):
            return  # a scaler cannot step an optimizer without a gradient (RecBole's Pop)
        sampled = self.monitor_interval and turn.steps % self.monitor_interval == 0
        if turn.scaler is not None and not self.clip_before_unscale:
            turn.scaler.unscale_(turn.optimizer)
        if sampled:
            outcome.gradient_norm = _norm(turn.player.parameters)
        for technique in turn.techniques:
            technique.edit_gradients(turn)
        measured = sampled and turn.player.maximises
        before = self._value(turn, batch) if measured else None
        if turn.scaler is not None:
            turn.scaler.step(turn.optimizer)
            turn.scaler.update()
        else:
            turn.optimizer.step()
        self._finish(turn)
        if measured:
            outcome.gain = before - self._value(turn, batch)

    def _finish_move(self, turn: Turn, moved: Any) -> Outcome:
        """After a closed-form move: follow the pairs (tensor, gradient) uphill, if it gave any."""
        if isinstance(moved, (list, tuple)):
            tensors, gradients = zip(*moved)
            turn.optimizer.zero_grad(set_to_none=True)
            owned = [p for p in turn.player.parameters if p.requires_grad]
            torch.autograd.backward(tensors, [-g for g in gradients], inputs=owned)
            turn.optimizer.step()
        self._finish(turn)
        return Outcome()

    def _finish(self, turn: Turn) -> None:
        turn.steps += 1
        if turn.player.project is not None:
            with torch.no_grad():
                turn.player.project()
        for technique in turn.techniques:
            technique.after_step(turn)

    def _check_finite(self, turn: Turn, loss: Loss) -> None:
        if turn.steps % self.check_every:
            return
        for number, part in enumerate(parts(loss), start=1):
            if not math.isfinite(part.item()):
                which = f"part {number} of the loss" if isinstance(loss, tuple) else "the loss"
                raise TrainingError(
                    f"{which} of player {turn.player.name!r} is {part.item()} at its step "
                    f"{turn.steps}; lower the learning rate or set clip_grad_norm"
                )

    @torch.no_grad()
    def _value(self, turn: Turn, batch: Any) -> Tensor:
        """The player's loss where it stands, on fixed random numbers, leaving no trace."""
        with undisturbed(self.model), self.autocast():
            return total(turn.loss(batch)).float()


def _norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    norms = [torch.linalg.vector_norm(_values(p.grad)) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient
