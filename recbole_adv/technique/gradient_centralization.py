"""Gradients without their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from recbole_adv.technique.base import Technique, gradient_values
from recbole_adv.technique.parameter_choice import chosen, pattern_of, tables_of

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer
    from recbole_adv.trainer.turn import Turn


def centralize_(gradient: Tensor) -> Tensor:
    """Subtract from each output's part ``gradient[i]`` its mean, in place (Yong et al., eq. 1)."""
    return gradient.sub_(gradient.mean(dim=tuple(range(1, gradient.dim())), keepdim=True))


class GradientCentralization(Technique):
    """Gradients of weights get the mean zero over all dimensions but the output's, the first.

    Yong et al., ECCV 2020; vectors and scalars are left alone. A row of an embedding table is no
    weight vector of an output, so tables are left out unless asked for.

    Args:
        embeddings: centre the rows of embedding tables too.
        exclude: parameters whose name matches this regular expression are left alone.
    """

    def __init__(self, *, embeddings: bool = False, exclude: str | None = None):
        self.embeddings = embeddings
        self.pattern = pattern_of(exclude, "gradient_centralization_exclude")

    def attach(self, trainer: AdvTrainer, player: Player) -> None:
        left_out = {id(p) for p in player.parameters if p.dim() < 2}
        left_out |= set() if self.embeddings else tables_of(trainer.model)
        hint = "write gradient_centralization_embeddings: True"
        self.ids = chosen(
            trainer.model, player, "gradient_centralization", self.pattern, left_out, hint
        )

    def edit_gradients(self, turn: Turn) -> None:
        for parameter in turn.parameters:
            if parameter.grad is not None and id(parameter) in self.ids:
                centralize_(gradient_values(parameter))
