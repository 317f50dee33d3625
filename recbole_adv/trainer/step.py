"""The one place that calls ``optimizer.step()``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adv.errors import ConfigError
from recbole_adv.model_state import undisturbed
from recbole_adv.objective.parts import Loss, parts, total
from recbole_adv.trainer.averaging import agree_after_move, average_gradients
from recbole_adv.trainer.gradient import Gradients, Joint
from recbole_adv.trainer.turn import Outcome, Turn, in_stream, total_norm


class StepEngine:
    """Runs a turn on a batch.

    One player (``run``)::

        freeze the others; zero_grad; loss; backward; unscale; edit gradients; step; project

    Several on one graph (``run_shared``)::

        zero_grad of each; one forward; backward of each, only into its own parameters, at the same
        point, the graph kept for all but the last (one backward where graphs are apart);
        unscale, edit, step and project of each

    No optimizer steps between two backward calls over one graph, so neither "backward through the
    graph a second time" nor "modified by an inplace operation" can come from the engine.

    Techniques come in at: the loss and the backward (``wrap_loss``, ``wrap_backward``), whether the
    gradient waits for another batch's (``holds_back``), the unscaled gradients
    (``edit_gradients``), the step (``wrap_step``), the end of it (``after_step``).

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
        self.gradients = Gradients(model, autocast, check_every, check_gradients)
        self.monitor_interval = monitor_interval
        self.clip_before_unscale = clip_before_unscale

    def run(self, turn: Turn, batch: Any) -> Outcome:
        """Move one player on one batch by its own forward pass."""
        with in_stream(turn):
            if turn.player.move is not None:
                with self.autocast():
                    moved = turn.player.move(batch)
                if moved is not NotImplemented:
                    return self._finish_move(turn, moved)
            loss = self.gradients.of(turn, batch)
        outcome = _outcome(turn, loss)
        del loss
        self._apply(turn, batch, outcome)
        return outcome

    def run_shared(self, turns: Sequence[Turn], joint: Joint, batch: Any) -> list[Outcome]:
        """Move several players on one batch from one forward pass, all at the same point.

        A technique that wraps a loss or a backward needs forward passes of its own, so then each
        player has one; the point is the same for all.
        """
        if any(t.wraps_gradient() for turn in turns for t in turn.techniques):
            losses = {
                turn.player.name: self.gradients.of_joint(turn, joint, batch) for turn in turns
            }
        else:
            losses = self.gradients.together(turns, joint, batch)
        outcomes = [_outcome(turn, losses[turn.player.name]) for turn in turns]
        del losses
        for turn, outcome in zip(turns, outcomes):  # the gradients are taken: any order will do
            self._apply(turn, batch, outcome)
        return outcomes

    def finish(self, turn: Turn) -> None:
        """Step on the gradients that still wait when the data end."""
        if turn.waiting:
            self._step(turn, None, Outcome())

    # --- from gradients to new weights ---------------------------------------------------------

    def _apply(self, turn: Turn, batch: Any, outcome: Outcome) -> None:
        turn.waiting += 1
        if not any(technique.holds_back(turn) for technique in turn.techniques):
            self._step(turn, batch, outcome)

    def _step(self, turn: Turn, batch: Any, outcome: Outcome) -> None:
        waiting, turn.waiting = turn.waiting, 0
        average_gradients(turn.player.parameters)
        if turn.scaler is not None and all(p.grad is None for p in turn.player.parameters):
            return  # a scaler cannot step an optimizer without a gradient (RecBole's Pop)
        sampled = self.monitor_interval and turn.steps % self.monitor_interval == 0
        if turn.scaler is not None and not self.clip_before_unscale:
            turn.scaler.unscale_(turn.optimizer)
        if waiting > 1:
            for parameter in turn.player.parameters:  # a clipped norm counts all of them
                if parameter.grad is not None:
                    parameter.grad.div_(waiting)
        if sampled:
            # What the optimizer does not move (RecVAETrainer's other half) is still scaled.
            own = turn.player.parameters if turn.scaler is None else turn.parameters
            outcome.gradient_norm = total_norm(p.grad for p in own)
        for technique in turn.techniques:
            technique.edit_gradients(turn)
        measured = sampled and turn.player.maximises and batch is not None
        before = self._value(turn, batch) if measured else None
        if self._stepped(turn):
            self._finish(turn, outcome)
        if measured:
            outcome.gain = before - self._value(turn, batch)

    def _stepped(self, turn: Turn) -> bool:
        """Step the optimizer; returns whether the scaler let it."""

        def step() -> None:
            if turn.scaler is not None:
                turn.scaler.step(turn.optimizer)
            else:
                turn.optimizer.step()

        for technique in reversed(turn.techniques):
            step = technique.wrap_step(step, turn)
        step()
        if turn.scaler is None:
            return True
        scale = turn.scaler.get_scale()
        turn.scaler.update()
        return turn.scaler.get_scale() >= scale

    def _finish_move(self, turn: Turn, moved: Any) -> Outcome:
        """After a closed-form move: follow the pairs (tensor, gradient) uphill, if it gave any."""
        outcome = Outcome()
        if not isinstance(moved, (list, tuple)):
            agree_after_move(turn.player.parameters, self.model)
            self._finish(turn, outcome)
            return outcome
        self._refuse_wrapping(turn)
        tensors, gradients = zip(*moved)
        downhill = [-turn.weight * gradient for gradient in gradients]
        if turn.scaler is not None:
            downhill = [turn.scaler.scale(gradient) for gradient in downhill]
        if not turn.waiting:
            for parameter in turn.player.parameters:
                parameter.grad = None
        owned = [p for p in turn.player.parameters if p.requires_grad]
        torch.autograd.backward(tensors, downhill, inputs=owned)
        self._apply(turn, None, outcome)
        return outcome

    @staticmethod
    def _refuse_wrapping(turn: Turn) -> None:
        for technique in turn.techniques:
            if technique.wraps_gradient():
                name = turn.player.name
                raise ConfigError(
                    f"{type(technique).__name__} changes a loss or how its gradient is found, and "
                    f"player {name!r} moves along gradients that it gives itself; take it out of "
                    f"{name}_techniques"
                )

    def _finish(self, turn: Turn, outcome: Outcome) -> None:
        turn.steps += 1
        if turn.player.project is not None:
            with torch.no_grad():
                turn.player.project()
        for technique in turn.techniques:
            technique.after_step(turn, outcome)

    def _value(self, turn: Turn, batch: Any) -> Tensor:
        """The player's loss where it stands, on fixed random numbers, leaving no trace.

        Gradients are on, for a loss may take some itself (a gradient penalty).
        """
        with undisturbed(self.model), self.autocast():
            return total(turn.loss(batch)).detach().float()


def _outcome(turn: Turn, loss: Loss) -> Outcome:
    """The parts of a loss, as they count in the mean over processes."""
    if turn.weight == 1.0:
        return Outcome(parts(loss))
    return Outcome(tuple(turn.weight * part for part in parts(loss)))
