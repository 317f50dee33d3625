"""Label smoothing for the losses of recommenders: softmax, coins and pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from recbole.model.loss import BPRLoss
from torch import Tensor, nn

from recbole_adv.errors import ConfigError
from recbole_adv.loss_modules import Call, factors, recorded
from recbole_adv.objective.smoothing import (
    bernoulli_smoothing,
    smoothed_bpr,
    softmax_smoothing,
)
from recbole_adv.technique.base import LossFunction, Technique
from recbole_adv.technique.scores import (
    binary_logit,
    classes_last,
    is_over_items,
    listened_modules,
    n_items_of,
    precise,
)

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer
    from recbole_adv.trainer.turn import Turn


class LabelSmoothing(Technique):
    """The recommender's loss at softened targets, while it trains; its loss modules are not changed.

    CrossEntropyLoss gets torch's ``label_smoothing=epsilon``; BCEWithLogitsLoss and BCELoss the
    targets y (1 - epsilon) + epsilon / 2 where y is 0 or 1; BPRLoss
    (1 - epsilon / 2) softplus(-D) + (epsilon / 2) softplus(D), in RecBole's place of a loss that is
    flat below D = -23. What that adds to the loss of a batch is a part of its own, the last one, and
    counts with the factor that the model gives to the module's value. A knowledge graph's batches
    are left alone.

    An objective over a backbone (EIIL, GroupDRO) reads the losses of single rows as they are: the
    backbone's mean loss is smoothed, environments are told apart and weighed by the plain ones.

    Args:
        epsilon: 0 changes nothing.
        exclude_padding: where the softmax is over all items, item 0 gets none of epsilon.

    Raises:
        ConfigError: for a model without such a module, or with one that weighs or smooths rows
            itself.
    """

    def __init__(self, *, epsilon: float = 0.1, exclude_padding: bool = False):
        self.epsilon, self.exclude_padding = epsilon, exclude_padding
        self._modules: list[nn.Module] = []
        self._name = "the model"
        self._n_items: int | None = None

    def attach(self, trainer: AdvTrainer, player: Player) -> None:
        self._modules = listened_modules(trainer, player, "label_smoothing")
        self._name, self._n_items = trainer.config["model"], n_items_of(trainer.model)
        for module in self._modules:
            weighs = any(getattr(module, n, None) is not None for n in ("weight", "pos_weight"))
            if weighs or getattr(module, "label_smoothing", 0):
                raise ConfigError(
                    f"label_smoothing cannot change the {type(module).__name__} of {self._name}, "
                    "which has weights or a label_smoothing of its own; leave one of the two out"
                )

    def wraps_gradient(self) -> bool:
        return self.epsilon > 0

    def wrap_loss(self, loss: LossFunction, turn: Turn) -> LossFunction:
        if not self.epsilon or turn.on_triples:
            return loss

        def smoothed(batch):
            # The factors are derivatives, also where nobody asks for those of the loss.
            with torch.enable_grad(), recorded(self._modules) as calls:
                plain = loss(batch)
                added = self._added(plain, calls)
            return (*plain, added) if isinstance(plain, tuple) else (plain, added)

        return smoothed

    def _added(self, plain, calls: list[Call]) -> Tensor:
        if self.exclude_padding and not any(is_over_items(call, self._n_items) for call in calls):
            raise ConfigError(
                "label_smoothing_exclude_padding: True needs a softmax over all items, which "
                f"{self._name} does not have; write False"
            )
        terms = [
            (factor * self._change(call)).sum()
            for call, factor in zip(calls, factors(plain, calls))
            if factor is not None
        ]
        if not terms:
            raise ConfigError(
                f"label_smoothing has no effect on {self._name}, whose loss does not use what its "
                "loss modules give; leave label_smoothing out"
            )
        return sum(terms[1:], terms[0])

    def _change(self, call: Call) -> Tensor:
        """What smoothing adds to the value of a call; of the value's shape."""
        if isinstance(call.module, BPRLoss):
            positive, negative = (precise(score) for score in call.inputs)
            return smoothed_bpr(positive - negative, self.epsilon).mean() - call.value
        if isinstance(call.module, nn.CrossEntropyLoss):
            return self._softmax_change(call)
        change = bernoulli_smoothing(binary_logit(call), call.inputs[1], self.epsilon)
        return _reduced(change, call.module.reduction, change.numel())

    def _softmax_change(self, call: Call) -> Tensor:
        score, counted = classes_last(call)
        target = call.inputs[1]
        if target.is_floating_point():
            raise ConfigError(
                f"label_smoothing needs targets that are numbers of classes, and {self._name} gives "
                "its CrossEntropyLoss probabilities; leave label_smoothing out"
            )
        skip = self.exclude_padding and is_over_items(call, self._n_items)
        column = target.masked_fill(~counted, 0)
        change = softmax_smoothing(score, column, self.epsilon, skip).masked_fill(~counted, 0.0)
        return _reduced(change, call.module.reduction, counted.sum())


def _reduced(rows: Tensor, reduction: str, count: int | Tensor) -> Tensor:
    """As the loss module reduces its rows, of which ``count`` are not left out."""
    if reduction == "none":
        return rows
    return rows.sum() / count if reduction == "mean" else rows.sum()
