"""Clipping by the total norm: RecBole's ``clip_grad_norm``, for each player by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn.utils import clip_grad_norm_

from recbole_adv.technique.base import Technique

if TYPE_CHECKING:
    from recbole_adv.trainer.step import Turn


class ClipNorm(Technique):
    """``torch.nn.utils.clip_grad_norm_`` over the gradients of the player that moves.

    Args:
        arguments: its keyword arguments: ``max_norm``, ``norm_type``, ``error_if_nonfinite``.
    """

    def __init__(self, **arguments: Any):
        self.arguments = arguments

    def edit_gradients(self, turn: Turn) -> None:
        clip_grad_norm_(turn.player.parameters, **self.arguments)
