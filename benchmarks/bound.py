"""The least time that a training step could take on this machine, by memory and by arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PASSES = 7  # of Adam over its tensors: reads weight, gradient and two moments; writes all but the gradient


def timed(work: Callable[[], object]) -> float:
    """Seconds of this process that ``work`` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def speeds() -> tuple[float, float]:
    """Bytes a second of a copy of 256 MB (read and written), operations a second of a product."""
    big, square = torch.ones(2**26), torch.rand(1024, 1024)
    target = torch.empty_like(big)
    copy = min(timed(lambda: target.copy_(big)) for _ in range(5))
    product = min(timed(lambda: square @ square) for _ in range(5))
    return 2 * 4 * big.numel() / copy, 2 * 1024**3 / product


def operations(model: nn.Module, batch) -> int:
    """Multiplications and additions of one forward and backward pass, products of matrices only."""
    adjacency = getattr(model, "norm_adj_matrix", None)
    if adjacency is not None:  # torch counts a sparse product as if it were dense
        return 2 * 2 * adjacency._nnz() * model.latent_dim * model.n_layers
    with FlopCounterMode(display=False) as counter:
        loss = model.train().calculate_loss(batch)
        (sum(loss) if isinstance(loss, tuple) else loss).backward()
    model.zero_grad()
    return counter.get_total_flops()


def bound(model: nn.Module, batch, bytes_per_s: float, flops_per_s: float) -> dict[str, float]:
    """Milliseconds of ``memory``, Adam's passes over all parameters, and of ``arithmetic``.

    Neither counts what a cache saves or a gather costs, so no step can be faster than the larger.
    """
    n_bytes = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "memory": 1000 * PASSES * n_bytes / bytes_per_s,
        "arithmetic": 1000 * operations(model, batch) / flops_per_s,
    }
