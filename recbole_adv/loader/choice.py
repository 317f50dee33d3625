"""Which loader a trainer reads: RecBole's, or ours in its place (``train_loader``)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from logging import getLogger

import torch
from recbole.data.dataloader import (
    KGDataLoader,
    KnowledgeBasedDataLoader,
    TrainDataLoader,
    UserDataLoader,
)
from recbole.data.dataset import Dataset
from recbole.data.transform import Equal
from recbole.sampler import KGSampler, RepeatableSampler, Sampler
from torch import Tensor

from recbole_adv.data.negatives import InBatchNegatives, UserUniformPositives
from recbole_adv.loader.completion import TrainCompletion, TripleCompletion
from recbole_adv.loader.device_rows import DeviceRows, size_in_bytes
from recbole_adv.loader.negatives import Draw
from recbole_adv.loader.sampler import TensorKGSampler, TensorSampler, draw_of
from recbole_adv.loader.tensor_loader import TensorLoader

_SAMPLERS = (Sampler, TensorSampler, RepeatableSampler, KGSampler, TensorKGSampler)
_DISTRIBUTIONS = ("uniform", "popularity")


def training_loader(train_data, config, device: torch.device):
    """The loader to train with: ``train_data``, or a tensor loader that stands for it.

    Where the tensor loader does not know the loader, the log says so and training goes on with
    the one given.
    """
    if config["train_loader"] != "tensor":
        return train_data
    reason = why_not(train_data)
    if reason is None:
        return _stand_in(train_data, config, device)
    getLogger().info("train_loader: RecBole's loader is read, not tensors, because %s", reason)
    return train_data


def why_not(train_data) -> str | None:
    """What the tensor loader does not know about a loader; None if it can stand for it."""
    if type(train_data) is KnowledgeBasedDataLoader:
        inner = (train_data.general_dataloader, train_data.kg_dataloader)
        return next(filter(None, map(why_not, inner)), None)
    kind = type(train_data)
    if kind not in (TrainDataLoader, KGDataLoader, UserDataLoader):
        return f"its class is {kind.__name__}"
    if not train_data.config["single_spec"]:
        return "the run has several processes"
    if type(train_data.transform) is not Equal:
        return f"transform is {train_data.config['transform']}"
    if _positives_of(train_data) is None and not _is_method(train_data.collate_fn, kind):
        return "its collate_fn is not RecBole's"
    dataset = type(train_data._dataset)
    if dataset.join is not Dataset.join or dataset.__getitem__ is not Dataset.__getitem__:
        return f"{dataset.__name__} makes its rows itself"
    sampler = train_data._sampler
    if _has_negatives(train_data) and not hasattr(sampler, "draw"):
        known = type(sampler) in _SAMPLERS and sampler.distribution in _DISTRIBUTIONS
        return None if known else f"its sampler is {type(sampler).__name__}"
    return None


def _is_method(function: Callable, cls: type) -> bool:
    return getattr(function, "__func__", None) is cls.collate_fn


def _positives_of(stock) -> UserUniformPositives | None:
    """Those that ``train_positives: user_uniform`` put into the loader."""
    positives = getattr(stock.collate_fn, "positives", None)
    inner = getattr(stock.collate_fn, "collate_fn", None)
    return positives if inner is not None and _is_method(inner, type(stock)) else None


def _has_negatives(stock) -> bool:
    if type(stock) is not TrainDataLoader:
        return type(stock) is KGDataLoader
    arguments = stock.neg_sample_args
    return "none" not in (arguments["distribution"], arguments["sample_num"])


def _stand_in(stock, config, device: torch.device):
    if type(stock) is KnowledgeBasedDataLoader:
        ours = copy.copy(stock)  # its modes and its iteration are RecBole's
        ours.general_dataloader = _stand_in(stock.general_dataloader, config, device)
        ours.kg_dataloader = _stand_in(stock.kg_dataloader, config, device)
        return ours
    target = None
    if device.type != "cpu" and _size(stock) > config["train_loader_memory"] * 2**20:
        device, target = torch.device("cpu"), device
        getLogger().info(
            "train_loader: the training data stay on the host, being larger than "
            "train_loader_memory, %s MB",
            config["train_loader_memory"],
        )
    if type(stock) is UserDataLoader:
        return TensorLoader(stock, DeviceRows(lambda: stock.user_list, device), target=target)
    draw = _draw(stock._sampler, device) if _has_negatives(stock) else None
    if type(stock) is KGDataLoader:
        rows = DeviceRows(lambda: stock._dataset.kg_feat, device)
        return TensorLoader(stock, rows, TripleCompletion(stock, draw), target=target)
    rows = DeviceRows(lambda: stock._dataset.inter_feat, device)
    alone = not isinstance(getattr(draw, "__self__", None), InBatchNegatives)
    completion = TrainCompletion(stock, draw, device, alone)
    return TensorLoader(stock, rows, completion, _index_of(stock, device), target)


def _draw(sampler, device: torch.device) -> Draw:
    if not hasattr(sampler, "draw"):
        return draw_of(sampler, device)
    # That of train_negatives, a method of a module with its tables on the host.
    module = copy.deepcopy(sampler.draw.__self__).to(device)
    return getattr(module, sampler.draw.__name__)


def _index_of(stock, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """Place in the epoch -> row, where rows are drawn for the users in turn."""
    if _positives_of(stock) is None:
        return None
    positives = copy.deepcopy(_positives_of(stock)).to(device)
    return lambda place: positives.positives_of(place)[1]


def _size(stock) -> int:
    """Bytes on the device: rows, features, and about 24 for what a row adds to the negatives."""
    if type(stock) is UserDataLoader:
        return size_in_bytes(stock.user_list)
    dataset = stock._dataset
    rows = dataset.kg_feat if type(stock) is KGDataLoader else dataset.inter_feat
    features = [f for f in (dataset.user_feat, dataset.item_feat) if f is not None]
    return 24 * len(rows) + sum(map(size_in_bytes, [rows, *features]))
