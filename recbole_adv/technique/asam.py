"""Adaptive sharpness-aware minimisation."""

from __future__ import annotations

from torch import Tensor

from recbole_adv.technique.weight_ascent import Touched, WeightAscent


class Asam(WeightAscent):
    """ASAM (Kwon et al., ICML 2021): SAM in units of the weights, e = rho T^2 g / ||T g||,
    T = abs(w) + eta.

    Rescaling a layer and its successor changes neither the network nor this. ``eta: 0`` is the
    adaptive form of davda54/sam@3c3afdb. SamsungLabs/ASAM@f156a68 has T = 1 for parameters whose
    name lacks "weight" (biases); here T is the same for all.

    Args:
        rho: 0 changes nothing; about ten times that of SAM.
        eta: keeps weights of 0 movable.
        scope, per_parameter, start_epoch, stop_epoch, interval: as in SAM.
    """

    def __init__(
        self,
        *,
        rho: float = 0.5,
        eta: float = 0.01,
        scope: str = "all",
        per_parameter: bool = False,
        start_epoch: int = 0,
        stop_epoch: int | None = None,
        interval: int = 1,
    ):
        super().__init__(
            strength=rho,
            scope=scope,
            apart=per_parameter,
            start_epoch=start_epoch,
            stop_epoch=stop_epoch,
            interval=interval,
        )
        self.eta = eta

    def radius(self, place: Touched) -> float:
        return self.strength

    def scale(self, place: Touched) -> Tensor:
        return place.weight.abs().add_(self.eta)
