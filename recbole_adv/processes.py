"""Several processes that train one model: which one this is, and what they tell each other.

A process learns its place from the variables that ``torchrun`` sets (``RANK``, ``WORLD_SIZE``,
``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``). Everything here is without effect in a run of one
process. All others must call the collective functions too, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from recbole_adv.errors import ConfigError, ProcessError

_SEEDS_APART = 10_000_019  # of two processes; those of players and techniques lie closer together


class Place(NamedTuple):
    """Which of ``n_processes`` this is; local: among those of this machine."""

    rank: int
    n_processes: int
    local_rank: int


def place() -> Place | None:
    """The place that torchrun, or our own start of processes, gave this one; None for one process."""
    try:
        rank, n_processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if n_processes < 2 or "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
            return None
        return Place(rank, n_processes, int(os.environ.get("LOCAL_RANK", rank)))
    except (KeyError, ValueError):
        return None


def check_alone(what: str) -> None:
    """Raise :class:`ConfigError` where torchrun has started several processes of something else."""
    where = place()
    if where is not None:
        raise ConfigError(
            f"{what} starts runs of one process, got {where.n_processes} processes of torchrun; start "
            "it without torchrun"
        )


def device_of(place: Place | None, use_gpu: bool) -> torch.device:
    """The device of a process: each has a GPU of its own.   Raises :class:`ConfigError`."""
    if not use_gpu or not torch.cuda.is_available():
        return torch.device("cpu")
    if place is None:
        return torch.device("cuda")
    check_gpus(place.local_rank + 1)
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)


def check_gpus(wanted: int) -> None:
    """Raise :class:`ConfigError` where fewer GPUs can be seen."""
    there = torch.cuda.device_count()
    if wanted > there:
        names = ",".join(map(str, range(wanted)))
        raise ConfigError(
            f"each process needs a GPU of its own, got {wanted} processes on this machine and "
            f"{there} GPUs; write --gpu_id={names}, fewer processes, or --use_gpu=False"
        )


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Inside, this process is one of several, if it was started as such: gloo on CPUs, NCCL on GPUs."""
    if place() is None or dist.is_initialized():
        yield
        return
    # What is no work of the GPU goes by gloo there too, which notices at once that a process is gone.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _in_words():
        dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one."""
    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this one writes files and logs."""
    return rank() == 0


def own_seed(seed: int) -> int:
    """A seed for what each process draws for itself; the first one's is ``seed``."""
    return (seed + rank() * _SEEDS_APART) % 2**32


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        where = place() or Place(rank(), count(), 0)
        raise ProcessError(
            f"process {where.rank} of {where.n_processes} (counted from 0) cannot reach the others: one has "
            "ended or does not answer, and its own message says why; --resume=<run directory> goes "
            f"on from the last epoch that ended ({detail})"
        ) from error


# --- data of any kind ------------------------------------------------------------------------------


def barrier() -> None:
    """Go on when all have come here."""
    from_all(None)


def from_first(value: Any) -> Any:
    """The first process's value."""
    if count() == 1:
        return value
    box = [value]
    with _in_words():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: Any) -> list[Any]:
    """Every process's value, in their order."""
    if count() == 1:
        return [value]
    values = [None] * count()
    with _in_words():
        dist.all_gather_object(values, value)
    return values


def joined_rows(tensor: Tensor | None) -> Tensor | None:
    """The rows of all processes on the host, one below the other; None of all where all have none."""
    if count() == 1:
        return tensor
    parts = from_all(None if tensor is None else tensor.cpu())
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


# --- tensors ---------------------------------------------------------------------------------------


def mean(numbers: Sequence[float]) -> list[float]:
    """The mean over processes of each number."""
    if count() == 1 or not numbers:
        return list(numbers)
    table = torch.tensor(numbers, dtype=torch.float64)
    mean_([table])
    return table.tolist()


def sum_(tensor: Tensor) -> Tensor:
    """Add up a tensor over the processes, in place."""
    if count() > 1:
        with _in_words():
            dist.all_reduce(tensor)
    return tensor


def largest_(tensor: Tensor) -> Tensor:
    """The largest over the processes of each number, in place."""
    if count() > 1:
        with _in_words():
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


@torch.no_grad()
def mean_(tensors: Iterable[Tensor]) -> None:
    """Make each tensor its mean over the processes, in place."""
    for group in _alike(tensors) if count() > 1 else ():
        flat = sum_(flattened(group)).div_(count())
        _fill(group, flat)


@torch.no_grad()
def copy_from_first_(tensors: Iterable[Tensor]) -> None:
    """Give each tensor the first process's values."""
    for group in _alike(tensors) if count() > 1 else ():
        flat = flattened(group)
        with _in_words():
            dist.broadcast(flat, src=0)
        _fill(group, flat)


def gathered(tensor: Tensor) -> Tensor:
    """The rows of all processes, [n_1 + n_2 + ..., ...], on the device of the tensor [n, ...]."""
    n_rows = torch.zeros(count(), dtype=torch.int64)
    n_rows[rank()] = len(tensor)
    sum_(n_rows)
    padded = tensor.new_zeros(int(n_rows.max()), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in range(count())]
    with _in_words():
        dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, n_rows.tolist())])


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of some tensors of one type, in a new one."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _alike(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    def kind(tensor: Tensor) -> str:
        return f"{tensor.dtype} {tensor.device}"

    return [list(group) for _, group in groupby(sorted(tensors, key=kind), key=kind)]


def _fill(tensors: Sequence[Tensor], flat: Tensor) -> None:
    for tensor, values in zip(tensors, flat.split([t.numel() for t in tensors])):
        tensor.copy_(values.view_as(tensor))
