"""Clipping by the total norm: RecBole's ``clip_grad_norm``, for each player by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from recbole_adv.errors import TrainingError
from recbole_adv.technique.base import Technique, gradient_values
from recbole_adv.technique.epoch_means import EpochMeans

if TYPE_CHECKING:
    from recbole_adv.trainer.turn import Turn

_EPSILON = 1e-6  # torch's


def clip_total_norm_(gradients: Sequence[Tensor], max_norm: float, norm_type: float) -> Tensor:
    """Multiply all by ``min(1, max_norm / (total + 1e-6))`` in place; returns their total norm.

    ``torch.nn.utils.clip_grad_norm_`` for tensors, to the same bits; given the summed values of each
    touched row it does for sparse gradients what that refuses to do.
    """
    norms = [torch.linalg.vector_norm(gradient, norm_type) for gradient in gradients]
    total = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    factor = (max_norm / (total + _EPSILON)).clamp(max=1.0)
    # Looking makes another device wait; on a CPU it saves writing each number times 1.
    if factor.device.type != "cpu" or factor.item() != 1.0:
        for gradient in gradients:
            gradient.mul_(factor)
    return total


class ClipNorm(Technique):
    """``torch.nn.utils.clip_grad_norm_`` over the gradients of the player that moves.

    Logged are the mean total norm before clipping and the share of steps that were clipped.

    Args:
        max_norm, norm_type, error_if_nonfinite, foreach: its arguments.
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
        self.means = EpochMeans()

    def edit_gradients(self, turn: Turn) -> None:
        # RecBole clips all of the model, also the half of RecVAE that does not move now; under a
        # scaler only the gradients of the half that moves are true ones.
        owned = turn.player.parameters if turn.scaler is None else turn.parameters
        total = self._clip([p for p in owned if p.grad is not None])
        if total is not None:
            clipped = (total + _EPSILON > self.arguments["max_norm"]).to(total.dtype)
            self.means.add(total_norm=total, clipped=torch.where(total.isfinite(), clipped, total))

    def _clip(self, parameters: list) -> Tensor | None:
        if not parameters:
            return None
        dense = not any(p.grad.is_sparse for p in parameters)
        if dense and any(p.grad.device.type != "cpu" for p in parameters):
            try:
                return clip_grad_norm_(parameters, **self.arguments)
            except RuntimeError as error:
                raise TrainingError(" ".join(str(error).split())) from error
        values = [gradient_values(p) for p in parameters]
        max_norm, norm_type = self.arguments["max_norm"], self.arguments["norm_type"]
        total = clip_total_norm_(values, max_norm, norm_type)
        if self.arguments["error_if_nonfinite"] and not total.isfinite():
            raise TrainingError(
                f"the total norm of the gradients is {total.item()}, which is non-finite"
            )
        return total

    def figures(self) -> dict[str, float]:
        return self.means.read()
