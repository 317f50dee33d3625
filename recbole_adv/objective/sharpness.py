"""The direction in which a loss grows fastest per change of the weights; tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_EPS = 1e-12
"""The reference code's: it keeps 0 / 0 from being nan."""


def steepest(
    gradients: Sequence[Tensor],
    radii: Sequence[Tensor | float],
    scales: Sequence[Tensor] | None = None,
    apart: bool = False,
) -> tuple[list[Tensor], Tensor]:
    r"""The perturbations that raise the loss most to first order, and how many there are none of.

    .. math::
        e_i = \rho_i \, T_i^2 g_i / \|T g\|

    maximises :math:`\sum_i g_i e_i` under :math:`\|T^{-1} e\| \le \rho`, the norm over all tensors
    together, or over each where ``apart``. No scale T is SAM, T = abs(w) is ASAM, and
    :math:`\rho_i = \gamma \|w_i\|` apart is AWP. A norm of 0, nan or inf gives e = 0: gradients that
    a GradScaler made overflow move nothing. The length of the gradients does not matter.

    gradients, scales: tensors of the same shapes; radii: one number for each.   Returns e and the
    share of the norms that gave none, a scalar.
    """
    scaled = gradients if scales is None else [t * g for t, g in zip(scales, gradients)]
    norms = torch.stack([torch.linalg.vector_norm(s).float() for s in scaled])
    if not apart:
        norms = torch.linalg.vector_norm(norms).expand(len(gradients))
    usable = norms.isfinite() & (norms > 0)
    found = []
    for i, tensor in enumerate(scaled):
        move = tensor * (radii[i] / (norms[i] + _EPS)).to(tensor.dtype)
        if scales is not None:
            move = move.mul_(scales[i])
        found.append(move.masked_fill_(~usable[i], 0.0))
    return found, 1 - usable.float().mean()
