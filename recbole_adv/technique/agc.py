"""Adaptive gradient clipping of NFNets: a unit's gradient is bounded by the norm of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from recbole_adv.errors import ConfigError
from recbole_adv.technique.base import Technique, gradient_values
from recbole_adv.technique.epoch_means import EpochMeans
from recbole_adv.technique.parameter_choice import chosen, head_of, pattern_of

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer
    from recbole_adv.trainer.turn import Turn

_SMALLEST_NORM = 1e-6  # of a gradient that is divided by, as officially


def unit_norm(tensor: Tensor) -> Tensor:
    """The L2 norm of each unit, to be multiplied with the tensor.

    A unit is what one output is made of: ``tensor[i]`` of a Linear or Conv weight, a row of a table,
    all of a vector or a scalar. Self-made ``[in, out]`` matrices have their units across.

    Returns [n, 1, ...] for two or more dimensions, else a scalar.
    """
    dims = tuple(range(1, tensor.dim()))
    return torch.linalg.vector_norm(tensor, dim=dims or None, keepdim=bool(dims))


def agc_factor(weight: Tensor, gradient: Tensor, threshold: float, eps: float) -> Tensor:
    r"""What each unit's gradient is multiplied with (Brock et al., ICML 2021, eq. 3).

    :math:`\lambda \|W_i\|^* / \|G_i\|` where :math:`\|G_i\| > \lambda \|W_i\|^*`, else 1, with
    :math:`\|W_i\|^* = \max(\|W_i\|, \epsilon)`. A norm of nan gives 1.

    weight, gradient: of one shape. Returns :func:`unit_norm`'s shape.
    """
    return _factor(unit_norm(weight), unit_norm(gradient), threshold, eps)


def _factor(weight_norm: Tensor, gradient_norm: Tensor, threshold: float, eps: float) -> Tensor:
    bound = weight_norm.clamp(min=eps) * threshold
    scaled = bound / gradient_norm.clamp(min=_SMALLEST_NORM)
    return torch.where(gradient_norm > bound, scaled, 1.0)


def clip_units_(weight: Tensor, gradient: Tensor, threshold: float, eps: float) -> Tensor:
    """Multiply the gradient by :func:`agc_factor` in place; returns how many units that shortened.

    On a CPU one pass over the gradient finds the units that are long enough to be clipped by any
    bound (no weight norm is below ``eps``), and all that follows is for those.
    """
    if gradient.device.type != "cpu" or gradient.dim() < 2:
        factor = agc_factor(weight, gradient, threshold, eps)
        gradient.mul_(factor)
        return (factor < 1).sum()
    norm = unit_norm(gradient)
    long = (norm > eps * threshold).flatten().nonzero().squeeze(1)
    factor = _factor(unit_norm(weight.index_select(0, long)), norm[long], threshold, eps)
    shortened = (factor < 1).flatten()
    rows = long[shortened]
    gradient.index_copy_(0, rows, gradient.index_select(0, rows) * factor[shortened])
    return shortened.sum()


class Agc(Technique):
    """Adaptive gradient clipping (Brock et al., ICML 2021), as in the official ``nfnets/optim.py``.

    Of a sparse gradient the touched rows are clipped, each by the norm of its row. Officially the
    last layer of a classifier is left out; here on demand, as a recommender may have none. Logged is
    the mean share of units that were clipped; zero gradients count as units.

    Args:
        threshold: lambda.
        eps: the least norm that a unit's weights count with, so that units of zeros can grow.
        exclude: parameters whose name matches this regular expression are left alone.
        exclude_head: leave the player's last ``nn.Linear`` alone.
        exclude_vectors: leave biases and other parameters of one dimension alone.
    """

    concerns: ClassVar[str] = "all"

    def __init__(
        self,
        *,
        threshold: float = 0.01,
        eps: float = 1e-3,
        exclude: str | None = None,
        exclude_head: bool = False,
        exclude_vectors: bool = False,
    ):
        self.threshold, self.eps = threshold, eps
        self.pattern = pattern_of(exclude, "agc_exclude")
        self.exclude_head, self.exclude_vectors = exclude_head, exclude_vectors
        self.means = EpochMeans()

    def attach(self, trainer: AdvTrainer, player: Player) -> None:
        head = head_of(trainer.model, player) if self.exclude_head else set()
        if self.exclude_head and not head:
            raise ConfigError(
                f"agc_exclude_head: True finds no nn.Linear among the parameters of player "
                f"{player.name!r} of {type(trainer.model).__name__}; leave it out, or name what to "
                "exclude by agc_exclude"
            )
        vectors = {id(p) for p in player.parameters if p.dim() < 2 and self.exclude_vectors}
        self.ids = chosen(trainer.model, player, "agc", self.pattern, head | vectors)

    @torch.no_grad()
    def edit_gradients(self, turn: Turn) -> None:
        n_clipped, n_units = [], 0
        for parameter in turn.parameters:
            if parameter.grad is None or id(parameter) not in self.ids:
                continue
            values, weight = gradient_values(parameter), parameter
            if parameter.grad.is_sparse:
                weight = parameter[parameter.grad.indices()[0]]
            if values.numel():
                n_clipped.append(clip_units_(weight, values, self.threshold, self.eps))
                n_units += len(values) if values.dim() > 1 else 1
        if n_clipped:
            self.means.add(clipped=torch.stack(n_clipped).sum() / n_units)

    def figures(self) -> dict[str, float]:
        return self.means.read()
