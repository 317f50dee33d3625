"""What keeps several processes at the same weights: gradients, buffers and moves become their means.

The one place of the trainer that knows of other processes' numbers. torch's DistributedDataParallel is not
used: its hooks belong to one backward of one forward pass, and here several players go backward in turn.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from recbole_adv import processes

_NONE, _SPARSE, _DENSE = range(3)  # what several processes have is the last of theirs
_SMALL = 65536  # elements; a larger buffer is data, not what a move in closed form moves


def start_together(model: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    processes.copy_from_first_([p.detach() for p in model.parameters()] + _saved_buffers(model))


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make ``.grad`` of each its mean over the processes, where one without a gradient counts as 0.

    A parameter that has none on any process keeps None: Adam moves one with a gradient of zeros. Dense
    gradients travel as one tensor, and are views of it afterwards.
    """
    if processes.count() == 1:
        return
    parameters = list(parameters)
    kinds = processes.largest_(torch.tensor([_kind(p.grad) for p in parameters])).tolist()
    dense: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter, kind in zip(parameters, kinds):
        if kind == _SPARSE:
            parameter.grad = _sparse_mean(parameter.grad, parameter)
        elif kind == _DENSE:
            dense.setdefault(parameter.dtype, []).append(parameter)
    for group in dense.values():
        _average_dense(group)


def _kind(gradient: Tensor | None) -> int:
    if gradient is None:
        return _NONE
    return _SPARSE if gradient.is_sparse else _DENSE


def _average_dense(parameters: list[nn.Parameter]) -> None:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    gradients = [g.to_dense() if g.is_sparse else g for g in gradients]
    flat = processes.sum_(processes.flattened(gradients)).div_(processes.count())
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad = mean.view_as(parameter)


def _sparse_mean(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    """Rows and values of all processes, of which the sums over each row are made anew."""
    if gradient is None:
        nothing = torch.zeros(1, 0, dtype=torch.int64, device=parameter.device)
        gradient = torch.sparse_coo_tensor(
            nothing, parameter.new_zeros(0, *parameter.shape[1:]), parameter.shape
        )
    gradient = gradient.coalesce()
    rows = processes.gathered(gradient.indices().t())
    values = processes.gathered(gradient.values()).div_(processes.count())
    return torch.sparse_coo_tensor(rows.t(), values, parameter.shape).coalesce()


def agree_after_move(parameters: Iterable[Tensor], model: nn.Module) -> None:
    """After a move in closed form, whose rule the model alone knows: the mean of where it led.

    Of the player's parameters, and of small buffers of floating point, in which such moves are kept.
    """
    if processes.count() == 1:
        return
    buffers = [b for b in _saved_buffers(model) if b.is_floating_point() and b.numel() <= _SMALL]
    processes.mean_([p.detach() for p in parameters] + buffers)


def agree_on_buffers(model: nn.Module) -> None:
    """After a pass over the data: BatchNorm's statistics become means, all other buffers the first's.

    A module with a method ``merge_processes_()`` sees to its buffers itself.
    """
    if processes.count() == 1:
        return
    for module in model.modules():
        merge = getattr(module, "merge_processes_", None)
        if merge is not None:
            merge()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    statistics = [b for m in norms for b in m.buffers() if b.is_floating_point()]
    processes.mean_(statistics)
    own = {id(buffer) for buffer in statistics}
    processes.copy_from_first_([b for b in _saved_buffers(model) if id(b) not in own])


def _saved_buffers(model: nn.Module) -> list[Tensor]:
    """The dense buffers that a checkpoint holds; the others are made of the data, alike everywhere."""
    parameters = {id(parameter) for parameter in model.parameters()}
    return [
        value
        for value in model.state_dict(keep_vars=True).values()
        if isinstance(value, Tensor) and id(value) not in parameters and not value.is_sparse
    ]
