"""Reads the loss of each row out of any RecBole model, whose ``calculate_loss`` only gives a mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from recbole.model.loss import BPRLoss
from torch import Tensor, nn

from recbole_adv.errors import ConfigError
from recbole_adv.loss_modules import KIND_NAMES, Call, factors, loss_modules, recorded
from recbole_adv.objective import RowLoss, bce, bce_from_prob, bpr, fold_rows, softmax_cross_entropy

_READERS = {
    BPRLoss: bpr,
    nn.BCEWithLogitsLoss: bce,
    nn.BCELoss: bce_from_prob,
    nn.CrossEntropyLoss: softmax_cross_entropy,
}


@dataclass(frozen=True)
class Rows:
    """The training rows of a batch: one for each positive, its negatives averaged in.

    loss, gradient: [B] (:mod:`recbole_adv.objective.ranking`); index: [B], the training rows.
    """

    loss: Tensor
    gradient: Tensor
    index: Tensor

    def detach(self) -> Rows:
        """The same without a graph."""
        return Rows(self.loss.detach(), self.gradient.detach(), self.index)


class RowReader:
    """Listens to the model's loss modules (BPRLoss, BCEWithLogitsLoss, BCELoss, CrossEntropyLoss).

    Of several calls in one ``calculate_loss`` the first with as many rows as the batch is the
    recommendation loss (CKE's second BPRLoss is that of its triples). At the first batch the mean
    of the rows is compared with what the module returned, and that must be a term of the model's
    loss with the factor 1, so a module that computes or is used for something else is refused,
    never misread.

    Args:
        model: the backbone.
        times: rows that RecBole lays out for each positive.
    """

    def __init__(self, model: nn.Module, times: int):
        self.times = times
        self._name = type(model).__name__
        self._verified = False
        self._modules = loss_modules(model)
        if not self._modules:
            raise ConfigError(
                f"backbone {self._name} has none of the loss modules {KIND_NAMES}, so the losses of "
                "single rows cannot be read; choose a backbone such as BPR, LightGCN, NeuMF, SASRec, "
                "DeepFM or CKE"
            )

    def read(self, calculate_loss, interaction, n_rows: int) -> tuple[Any, RowLoss]:
        """The model's own loss, and (loss [B], gradient [B]) of the rows, folded over negatives."""
        with recorded(self._modules) as calls:
            loss = calculate_loss(interaction)
        for call in calls:
            if len(call.inputs) == 2 and call.inputs[0].shape[:1] == (n_rows,):
                rows = self._rows(call.module, call.inputs)
                if not self._verified:
                    self._verify(call, rows, loss)
                return loss, RowLoss(*(fold_rows(value, self.times) for value in rows))
        raise ConfigError(
            f"backbone {self._name} called no loss module with the {n_rows} rows of the batch, so the "
            "losses of single rows cannot be read; choose another backbone"
        )

    def _rows(self, module: nn.Module, inputs: tuple[Tensor, Tensor]) -> RowLoss:
        reader = _READERS[type(module)]
        if reader is softmax_cross_entropy:
            return reader(*inputs)
        first, second = (
            value.flatten(1).squeeze(1) if value.dim() > 1 else value for value in inputs
        )
        if first.dim() != 1:
            raise ConfigError(
                f"backbone {self._name} scores {tuple(first.shape)} at once, of which single rows "
                "cannot be read; choose another backbone"
            )
        return reader(first, second)

    def _verify(self, call: Call, rows: RowLoss, loss: Any) -> None:
        module, output = call.module, call.value
        kind = type(module).__name__
        if output.dim():
            raise ConfigError(
                f"backbone {self._name} has its {kind} return {list(output.shape)} and weighs that "
                "itself, so the losses of single rows cannot be read; choose another backbone"
            )
        # Label smoothing does not show in the value while all scores are alike.
        weighted = any(getattr(module, n, None) is not None for n in ("weight", "pos_weight"))
        weighted = weighted or getattr(module, "label_smoothing", 0) != 0
        mean, given = rows.loss.detach().float().mean(), output.detach().float()
        if weighted or not torch.allclose(mean, given, rtol=1e-2, atol=1e-3):
            raise ConfigError(
                f"backbone {self._name} weighs or changes its {kind}: its value is "
                f"{given:.4f}, the mean of its rows {mean:.4f}; choose another backbone"
            )
        if not output.requires_grad:
            return  # the adversary's turn; the factor is seen in the backbone's
        (factor,) = factors(loss, [call])
        if factor is None or not torch.allclose(factor, torch.ones_like(factor), rtol=1e-2):
            used = "leaves out" if factor is None else f"multiplies by {factor:.4g}"
            raise ConfigError(
                f"backbone {self._name} {used} the value of its {kind}, which must be a term of its "
                "loss as it is; choose another backbone"
            )
        self._verified = True
