"""Annealed Gaussian noise on gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from recbole_adv.technique.base import Technique, gradient_values
from recbole_adv.technique.parameter_choice import chosen, pattern_of, tables_of

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer
    from recbole_adv.trainer.turn import Turn

_SEEDS_APART = 1_000_003  # from the seeds of the run and of the players' streams


def noise_deviation(step: int, eta: float, gamma: float) -> float:
    """The standard deviation sqrt(eta / (1 + step)^gamma) in a step, counted from 0."""
    return math.sqrt(eta / (1 + step) ** gamma)


class GradientNoise(Technique):
    """Adds normal noise of a falling variance to the gradients (Neelakantan et al., 2015).

    The numbers come from a generator of their own, so all else in a run draws what it would without
    noise. Deviations from the paper: the default eta is smaller than its 0.01, 0.3 and 1, as
    gradients of recommenders are; embedding tables are left out unless asked for, and then only the
    rows that have a gradient in this batch get noise. Under Adam, which divides by the size of a
    gradient, noise alone would make every row walk by the whole learning rate.

    Args:
        eta, gamma: the variance in step t, counted from 0, is eta / (1 + t)^gamma.
        embeddings: put noise on embedding tables too.
        exclude: parameters whose name matches this regular expression get none.
    """

    def __init__(
        self,
        *,
        eta: float = 1e-6,
        gamma: float = 0.55,
        embeddings: bool = False,
        exclude: str | None = None,
    ):
        self.eta, self.gamma, self.embeddings = eta, gamma, embeddings
        self.pattern = pattern_of(exclude, "gradient_noise_exclude")
        self.deviation = 0.0

    def attach(self, trainer: AdvTrainer, player: Player) -> None:
        self.tables = tables_of(trainer.model)
        without = set() if self.embeddings else self.tables
        hint = "write gradient_noise_embeddings: True, or leave it out"
        self.ids = chosen(trainer.model, player, "gradient_noise", self.pattern, without, hint)
        number = 1 + [p.name for p in trainer.players].index(player.name)
        self.generator = torch.Generator(trainer.device)
        self.generator.manual_seed(trainer.config["seed"] + number * _SEEDS_APART)

    def edit_gradients(self, turn: Turn) -> None:
        self.deviation = noise_deviation(turn.steps, self.eta, self.gamma)
        for parameter in turn.parameters:
            if parameter.grad is None or id(parameter) not in self.ids:
                continue
            values = gradient_values(parameter)
            noise = torch.empty_like(values).normal_(0, self.deviation, generator=self.generator)
            if id(parameter) in self.tables:
                noise.mul_((values != 0).any(-1, keepdim=True))
            values.add_(noise)

    def figures(self) -> dict[str, float]:
        return {"deviation": self.deviation}

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())
