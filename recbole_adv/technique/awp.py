"""Adversarial weight perturbation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_adv.technique.weight_ascent import Touched, WeightAscent


class Awp(WeightAscent):
    """AWP (Wu, Xia, Wang, NeurIPS 2020): each matrix is moved in proportion to itself,
    e = gamma ||w|| g / ||g||.

    The machinery is SAM's: ascend, take the gradient there, step from where one was. What differs
    is the length of e: a norm for each parameter and a radius relative to ||w||, where SAM has one
    absolute radius for all.

    In csdongxian/AWP@a7acf5d (``utils_awp.py``) a copy of the model takes one SGD step uphill, and
    its difference is scaled to gamma ||w||: the same e. As there, parameters of one dimension (biases,
    scales) are not moved and there is no clean gradient. Deviations: the paper perturbs the inputs
    too (add ``embedding_attack`` for that) and moves only what is called "weight"; its optimizer
    steps at w + e and subtracts e afterwards, so that its weight decay is that of w + e.

    Args:
        gamma: the share of a parameter's norm; 0 changes nothing. The authors take 0.005 to 0.01.
        weight, keep_clean: the gradient is weight times that at w + e, plus that at w if
            ``keep_clean``.
        scope, start_epoch, stop_epoch, interval: as in SAM.
    """

    def __init__(
        self,
        *,
        gamma: float = 0.01,
        weight: float = 1.0,
        keep_clean: bool = False,
        scope: str = "all",
        start_epoch: int = 0,
        stop_epoch: int | None = None,
        interval: int = 1,
    ):
        super().__init__(
            strength=gamma,
            scope=scope,
            apart=True,
            start_epoch=start_epoch,
            stop_epoch=stop_epoch,
            interval=interval,
            weight=weight,
            keep_clean=keep_clean,
        )

    def radius(self, place: Touched) -> Tensor:
        return self.strength * torch.linalg.vector_norm(place.parameter)

    def left_out(self, parameter: nn.Parameter) -> bool:
        return parameter.dim() < 2
