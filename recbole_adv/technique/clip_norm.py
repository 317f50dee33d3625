"""Clipping by the total norm: RecBole's ``clip_grad_norm``, for each player by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch.nn.utils import clip_grad_norm_

from recbole_adv.technique.base import Technique

if TYPE_CHECKING:
    from recbole_adv.trainer.turn import Turn


class ClipNorm(Technique):
    """``torch.nn.utils.clip_grad_norm_`` over the gradients of the player that moves.

    Args:
        max_norm, norm_type, error_if_nonfinite: its arguments.
    """

    concerns: ClassVar[str] = "all"

    def __init__(
        self,
        *,
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        foreach: bool | None = None,
    ):
        self.arguments = {
            "max_norm": max_norm,
            "norm_type": norm_type,
            "error_if_nonfinite": error_if_nonfinite,
            "foreach": foreach,
        }

    def edit_gradients(self, turn: Turn) -> None:
        clip_grad_norm_(turn.player.parameters, **self.arguments)
