"""Fills gradients: the one place that calls ``backward()``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adv.errors import TrainingError
from recbole_adv.game.player import frozen
from recbole_adv.objective.parts import Loss, explain_no_loss, is_loss, total
from recbole_adv.technique.base import gradients_aside
from recbole_adv.trainer.graph_guard import (
    explain_independence,
    explain_kept_graph,
    explain_no_pair,
    explain_nonfinite,
    explain_not_apart,
    reached_by,
    sequence_number,
    untouched,
)
from recbole_adv.trainer.sparse_tables import SparseTables
from recbole_adv.trainer.turn import Turn, in_stream

Joint = Callable[[Any], Mapping[str, Loss]]
"""Takes a batch, returns the losses of all players by name, of one forward pass."""


class Gradients:
    """Fills ``.grad`` of a player's parameters, and of nobody else's, from its loss on a batch.

    Args:
        autocast: makes the context of the forward passes.
        check_every: a loss is checked for nan and inf in every ``check_every``-th step; 1 costs a
            synchronisation of the device for each batch.
        check_gradients: assert that only a backward fills gradients, and only its player's.

    Attributes:
        tolerates_nonfinite: a technique looks at the losses, of all players, in place of the check.
        sparse_tables: learns from the first gradients which tables are sparse; None if none is to be.
    """

    def __init__(
        self,
        model: nn.Module,
        autocast: Callable[[], Any] = nullcontext,
        check_every: int = 1,
        check_gradients: bool = False,
    ):
        self.model = model
        self.autocast = autocast
        self.check_every = check_every
        self.check_gradients = check_gradients
        self.tolerates_nonfinite = False
        self.sparse_tables: SparseTables | None = None
        self._seen_apart = False

    def of(self, turn: Turn, batch: Any) -> Loss:
        """Fill the gradients of the player's loss on a batch."""
        loss_of = self._checked(turn.loss, turn)
        for technique in reversed(turn.techniques):
            loss_of = technique.wrap_loss(loss_of, turn)
        turn.forward = self._forward(turn, loss_of)

        def backward(batch: Any, weight: float = 1.0) -> Loss:
            begun = sequence_number()
            loss = turn.forward(batch)
            self._check_finite(turn, loss)
            self._backward_alone(turn, _scaled(turn, loss, weight), begun)
            self._settle(turn, batch)
            return loss

        for technique in reversed(turn.techniques):
            backward = technique.wrap_backward(backward, turn)
        try:
            with self._fresh_gradients(turn), frozen(turn.others) if turn.others else nullcontext():
                return backward(batch)
        finally:
            turn.forward = None

    def of_joint(self, turn: Turn, joint: Joint, batch: Any) -> Loss:
        """The same for the player's part of a joint loss, by a forward pass of its own."""
        own = turn.loss
        turn.loss = lambda batch: self._losses(joint, [turn], batch)[turn.player.name]
        try:
            with in_stream(turn):
                return self.of(turn, batch)
        finally:
            turn.loss = own

    def together(self, turns: Sequence[Turn], joint: Joint, batch: Any) -> Mapping[str, Loss]:
        """Fill the gradients of several players from one forward pass, each only into its own.

        Under :func:`~recbole_adv.game.player.graphs_apart` one backward pass fills them all and no graph
        is kept; the one that was built last goes first, while the cache still has it.
        """
        for turn in turns:
            if not turn.waiting:
                _forget_gradients(turn)
        begun = sequence_number()
        guarded = self._guarded(self.model.parameters(), "calculate_joint")
        with in_stream(turns[0]), guarded, self.autocast():
            losses = self._losses(joint, turns, batch)
        scaled = []
        for turn in turns:
            self._check_finite(turn, losses[turn.player.name])
            scaled.append(_scaled(turn, losses[turn.player.name]))
        if getattr(getattr(self.model, "calculate_joint", None), "graphs_are_apart", False):
            self._must_be_apart(turns, scaled)
            self._backward(turns, scaled, begun)
        else:
            for turn, loss in zip(turns, scaled):
                self._backward_alone(turn, loss, begun, retain_graph=turn is not turns[-1])
        for turn in turns:
            self._settle(turn, batch)
        return losses

    def _checked(self, loss_of: Callable[[Any], Any], turn: Turn) -> Callable[[Any], Loss]:
        """``loss_of``, with a sentence where it returns no loss, before a technique reckons with it."""

        def checked(batch: Any) -> Loss:
            loss = loss_of(batch)
            if not is_loss(loss):
                name = getattr(loss_of, "__name__", "")  # a lambda's or a wrapper's says nothing
                known = hasattr(self.model, name)
                what = name if known else f"the loss of player {turn.player.name!r}"
                raise TrainingError(explain_no_loss(f"{what} of {type(self.model).__name__}", loss))
            return loss

        return checked

    def _losses(self, joint: Joint, turns: Sequence[Turn], batch: Any) -> Mapping[str, Loss]:
        """What ``joint`` returns, with a sentence where there is no loss for a player."""
        try:
            losses = joint(batch)
        except (TypeError, ValueError) as error:
            # The model's own, or that of INVTrainer, which takes a pair apart and negates.
            sentence = explain_no_pair(self.model, batch)
            if sentence:
                raise TrainingError(sentence) from error
            raise
        for turn in turns:
            loss = losses.get(turn.player.name)
            if not is_loss(loss):
                what = f"calculate_joint of {type(self.model).__name__}"
                for_whom = f"{what}, for player {turn.player.name!r},"
                raise TrainingError(explain_no_loss(for_whom, loss))
        return losses

    def _forward(self, turn: Turn, loss_of) -> Callable[[Any], Loss]:
        what = f"the loss of {turn.player.name!r}"

        def forward(batch: Any) -> Loss:
            with self._guarded(self.model.parameters(), what), self.autocast():
                return loss_of(batch)

        return forward

    def _fresh_gradients(self, turn: Turn) -> AbstractContextManager:
        """Techniques see the gradient of this batch alone, also where others wait."""
        if turn.waiting:
            return gradients_aside(turn.player.parameters)
        _forget_gradients(turn)
        return nullcontext()

    def _backward_alone(
        self, turn: Turn, loss: Tensor, begun: int, retain_graph: bool = False
    ) -> None:
        """Fill the gradients of one player and no other; the loss may depend on everybody's."""
        # Restricting backward to the owner's parameters costs a walk of the graph, which one
        # player who owns all of them does not need.
        inputs = [p for p in turn.player.parameters if p.requires_grad] if turn.others else None
        with self._guarded(turn.others, f"the backward of {turn.player.name!r}"):
            self._backward([turn], [loss], begun, inputs=inputs, retain_graph=retain_graph)

    def _backward(
        self, turns: Sequence[Turn], losses: list[Tensor], begun: int, **how: Any
    ) -> None:
        """One backward pass; ``begun`` is autograd's number where the forward began."""
        for turn, loss in zip(turns, losses):
            if not loss.requires_grad:
                raise TrainingError(explain_independence(turn.player.name))
        try:
            torch.autograd.backward(losses, **how)
        except RuntimeError as error:
            if "backward through the graph a second time" in str(error):
                raise TrainingError(explain_kept_graph(self.model, losses, begun)) from error
            raise
        # On a shared graph torch is silent about a loss that depends on another player only.
        for turn in turns:
            if turn.others and all(p.grad is None for p in turn.player.parameters):
                raise TrainingError(explain_independence(turn.player.name))

    def _must_be_apart(self, turns: Sequence[Turn], losses: Sequence[Tensor]) -> None:
        """Once, and at every step where gradients are checked."""
        if self._seen_apart and not self.check_gradients:
            return
        self._seen_apart = True
        for turn, loss in zip(turns, losses):
            others = {id(p) for p in turn.others}
            stranger = next((p for p in reached_by(loss) if id(p) in others), None)
            if stranger is not None:
                raise TrainingError(explain_not_apart(self.model, turn.player.name, stranger))

    def _settle(self, turn: Turn, batch: Any) -> None:
        if self.sparse_tables is not None:
            self.sparse_tables.settle(turn.player.name, batch, not turn.on_triples)

    def _guarded(self, parameters: Iterable[nn.Parameter], what: str) -> AbstractContextManager:
        return untouched(parameters, what) if self.check_gradients else nullcontext()

    def _check_finite(self, turn: Turn, loss: Loss) -> None:
        if self.tolerates_nonfinite or turn.steps % self.check_every:
            return
        sentence = explain_nonfinite(loss, turn.player.name, turn.steps)
        if sentence:
            raise TrainingError(sentence)


def _scaled(turn: Turn, loss: Loss, weight: float = 1.0) -> Tensor:
    """The sum of a loss's parts, as its gradient is to lie in ``.grad``."""
    scalar = total(loss)
    for factor in (weight, turn.weight):
        if factor != 1.0:
            scalar = factor * scalar
    return scalar if turn.scaler is None else turn.scaler.scale(scalar)


def _forget_gradients(turn: Turn) -> None:
    """Of all that the player owns: RecVAETrainer's optimizer moves one half of it at a time, and the
    other half's gradients would pile up, and count in a clipped norm."""
    for parameter in turn.player.parameters:
        parameter.grad = None
