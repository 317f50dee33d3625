"""One player's move, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adv.game.player import Player
from recbole_adv.objective.parts import Loss, total
from recbole_adv.technique import Technique
from recbole_adv.trainer.random_stream import RandomStream


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
        waiting: batches whose gradients wait in ``.grad`` for the next step.
        on_triples: the batch holds triples of a knowledge graph, not interactions.
        weight: what this process's share of the batch counts in the mean over processes; 1 where all
            have as many rows, as in a run of one process.
        forward: the loss that is minimised, by the techniques' ``wrap_loss``, under autocast; set
            by the engine for the time of a step.
    """

    player: Player
    optimizer: torch.optim.Optimizer | None
    loss: Callable[[Any], Loss] | None
    scaler: torch.amp.GradScaler | None = None
    techniques: Sequence[Technique] = ()
    stream: RandomStream | None = None
    others: tuple[nn.Parameter, ...] = ()
    steps: int = 0
    waiting: int = 0
    on_triples: bool = False
    weight: float = 1.0
    forward: Callable[[Any], Loss] | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer moves: the player's, or those of RecVAETrainer's half of the model."""
        if self.optimizer is None:
            return list(self.player.parameters)
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def gradient(self, batch: Any, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """Loss (detached) and its gradient in ``tensors``, scaled as in ``.grad``; fills no ``.grad``.

        A gradient is None where the loss does not depend on the tensor.
        """
        loss = total(self.forward(batch))
        scaled = self.scaler.scale(loss) if self.scaler is not None else loss
        return loss.detach(), list(torch.autograd.grad(scaled, tensors, allow_unused=True))


@dataclass
class Outcome:
    """What one step was: the loss parts, detached, and, where it was sampled, two figures more.

    ``gain``: the objective of a player that maximises, after minus before its step, on the batch of
    the step and the same random numbers.
    """

    parts: tuple[Tensor, ...] = ()
    gradient_norm: Tensor | None = None
    gain: Tensor | None = None


def total_norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """The L2 norm of all gradients together, dense or sparse; 0 without any."""
    norms = [
        torch.linalg.vector_norm(g.coalesce().values() if g.is_sparse else g)
        for g in gradients
        if g is not None
    ]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def in_stream(turn: Turn):
    """The context in which the player draws random numbers."""
    return turn.stream or nullcontext()
