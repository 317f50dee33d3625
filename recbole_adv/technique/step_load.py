"""How far a step fills Clippy's bound, on a CPU without a pass over what cannot exceed it."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_adv.game.clippy_adagrad import largest, load

_FEW, _BLOCK = 2**14, 2**18  # numbers; the block is 1 MB


def load_of_step(
    start: Tensor, now: Tensor, relative: float, absolute: float, by_row: bool
) -> tuple[Tensor, Tensor]:
    """:func:`load` of the update ``now - start`` in the bound ``relative * |start| + absolute``.

    On a CPU a large matrix goes through the cache in blocks of rows, and rows (or a block) in which
    nothing moved further than ``absolute`` are not divided: their load is given as at most that share.

    Returns the load and a length which no number of the update exceeds: scalars, or, by row,
    [n, 1, ...].
    """
    if start.device.type != "cpu" or start.numel() <= _FEW or start.dim() < 2 or not absolute:
        update = (now - start).abs_()
        bound = start.abs().mul_(relative).add_(absolute)
        return load(update, bound, by_row), largest(update, by_row)
    found = []
    rows = max(1, _BLOCK // (start.numel() // len(start)))
    block = torch.empty_like(start[:rows])  # stays in the cache
    for before, after in zip(start.split(rows), now.split(rows)):
        update = torch.sub(after, before, out=block[: len(before)])
        found.append(load_of_block(before, update, relative, absolute, by_row))
    loads, lengths = zip(*found)
    if by_row:
        ones = (1,) * (start.dim() - 1)
        shapes = [(len(before), *ones) for before in start.split(rows)]
        loads, lengths = (
            torch.cat([value.expand(shape) for value, shape in zip(values, shapes)])
            for values in (loads, lengths)
        )
        return loads, lengths
    return torch.stack(loads).amax(), torch.stack(lengths).amax()


def load_of_block(
    before: Tensor, update: Tensor, relative: float, absolute: float, by_row: bool
) -> tuple[Tensor, Tensor]:
    """The same at once, of scalars if nothing moved further than ``absolute``; ``update`` is lost."""
    low, high = update.aminmax()
    longest = torch.maximum(-low, high)
    if longest <= absolute:
        return longest / absolute, longest
    if not by_row:
        bound = before.abs().mul_(relative).add_(absolute)
        return update.abs_().div_(bound).amax(), longest
    lengths = largest(update.abs_(), by_row)
    filled = lengths / absolute
    rows = (~(lengths <= absolute)).flatten().nonzero().squeeze(1)  # nan is among them
    bound = before.index_select(0, rows).abs_().mul_(relative).add_(absolute)
    return (
        filled.index_copy_(0, rows, largest(update.index_select(0, rows) / bound, by_row)),
        lengths,
    )
