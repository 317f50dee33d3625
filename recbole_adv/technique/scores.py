"""What ``r_drop`` and ``label_smoothing`` see of a model: the scores that its loss modules are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recbole_adv.errors import ConfigError
from recbole_adv.loss_modules import KIND_NAMES, Call, loss_modules
from recbole_adv.objective import logit_of

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer


def listened_modules(trainer: AdvTrainer, player: Player, technique: str) -> list[nn.Module]:
    """The loss modules of the recommender; raises :class:`ConfigError` where there are none."""
    if player is not trainer.players[0]:
        raise ConfigError(
            f"{technique} is about the recommender's loss and cannot be given to player "
            f"{player.name!r}; write it into techniques"
        )
    found = loss_modules(trainer.model)
    if not found:
        raise ConfigError(
            f"{technique} reads the scores that a model gives to its loss modules, and "
            f"{trainer.config['model']} has none of {KIND_NAMES}; leave {technique} out or choose a "
            "model such as NeuMF, SASRec or DeepFM"
        )
    return found


def n_items_of(model: nn.Module) -> int | None:
    """How many items the model knows, padding included; context models do not say."""
    counts = (getattr(module, "n_items", None) for module in model.modules())
    return next((count for count in counts if isinstance(count, int)), None)


def precise(score: Tensor) -> Tensor:
    """float32 of a score that autocast lowered."""
    return score.to(torch.promote_types(score.dtype, torch.float32))


def binary_logit(call: Call) -> Tensor:
    """The logits that BCEWithLogitsLoss is given, or those of BCELoss's probabilities."""
    score = precise(call.inputs[0])
    return logit_of(score) if isinstance(call.module, nn.BCELoss) else score


def classes_last(call: Call) -> tuple[Tensor, Tensor]:
    """Of CrossEntropyLoss: scores [..., K], and which rows [...] count: not those to be ignored."""
    score, target = call.inputs
    score = precise(score).movedim(1, -1) if score.dim() > 1 else precise(score)
    if target.is_floating_point():
        return score, torch.ones(score.shape[:-1], dtype=torch.bool, device=score.device)
    return score, target != call.module.ignore_index


def is_over_items(call: Call, n_items: int | None) -> bool:
    """Whether a call of CrossEntropyLoss has a column for each item, the padding's first."""
    is_softmax = isinstance(call.module, nn.CrossEntropyLoss)
    return is_softmax and call.inputs[0].dim() > 1 and call.inputs[0].shape[1] == n_items
