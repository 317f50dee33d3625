"""Sharpness-aware minimisation."""

from __future__ import annotations

from recbole_adv.technique.weight_ascent import Touched, WeightAscent


class Sam(WeightAscent):
    """SAM (Foret et al., ICLR 2021): the gradient at w + e alone, e = rho g / ||g||.

    As davda54/sam@3c3afdb, with its defaults: one L2 norm over all parameters that have a gradient.
    Differences: both passes see the same dropout masks, BatchNorm counts once, the weights are
    copied back instead of exchanged.

    Args:
        rho: the length of e; 0 changes nothing.
        scope: ``all``, ``embeddings`` or ``dense``: what is moved. Large tables outweigh a tower in
            a common norm.
        per_parameter: a norm for each parameter, so that each is moved by rho.
        start_epoch, stop_epoch: first epoch with two passes, and first one again without.
        interval: steps from one with two passes to the next.
    """

    def __init__(
        self,
        *,
        rho: float = 0.05,
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

    def radius(self, place: Touched) -> float:
        return self.strength
