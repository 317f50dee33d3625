"""Slides our trainer under RecBole's special ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import recbole.trainer as recbole_trainer
from recbole.trainer import Trainer
from recbole.utils import ModelType

from recbole_adv.errors import ConfigError
from recbole_adv.game.player import is_game
from recbole_adv.trainer.adv_trainer import AdvTrainer
from recbole_adv.trainer.inv_trainer import INVTrainer
from recbole_adv.trainer.technique_set import bypasses


@cache
def compose(stock: type, ours: type[AdvTrainer]) -> type[AdvTrainer]:
    """``stock`` over ``ours``: its ``super()._train_epoch()`` then lands in ours.

    Raises :class:`ConfigError` where ``stock`` runs a loop of its own, so that ours would be
    without effect.
    """
    if not issubclass(stock, Trainer):
        raise ConfigError(
            f"{stock.__name__} does not train by gradient descent, so recbole_adv cannot train its "
            "model; use RecBole's own run_recbole"
        )
    if issubclass(ours, stock):
        return ours
    if ours is not AdvTrainer and bypasses(stock):
        raise ConfigError(
            f"{stock.__name__} runs a training loop of its own, in which a second player would never "
            "move; choose another backbone"
        )
    return type(f"{ours.__name__}_{stock.__name__}", (stock, ours), {"__module__": __name__})


def stock_trainer(model_class: type) -> type:
    """RecBole's trainer for a model or for the nearest of its ancestors that has one of its own."""
    for cls in model_class.__mro__:
        trainer = vars(recbole_trainer).get(f"{cls.__name__}Trainer")
        if trainer is not None and cls.__name__ not in ("", "KG"):
            return trainer
    special = {ModelType.KNOWLEDGE: "KGTrainer", ModelType.TRADITIONAL: "TraditionalTrainer"}
    return getattr(recbole_trainer, special.get(model_class.type, "Trainer"))


def trainer_class(model_class: type) -> type[AdvTrainer]:
    """The trainer of a model: INVTrainer for one with several players, else AdvTrainer, each under
    the trainer that RecBole has for the model or its backbone."""
    backbone = getattr(model_class, "backbone_class", None)
    ours = INVTrainer if is_game(model_class) else AdvTrainer
    return compose(stock_trainer(backbone or model_class), ours)


def trainer_for_stock(model_class: type) -> Callable:
    """What RecBole's ``get_trainer`` returns for a model of ours: ``(config, model) -> trainer``.

    Only the model knows its backbone, hence its trainer.
    """

    def make_trainer(config, model) -> AdvTrainer:
        return trainer_class(type(model))(config, model)

    return make_trainer
