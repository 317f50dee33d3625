"""Min-max training: several players, each with its own loss and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from recbole_adv.config_check import check_names_of
from recbole_adv.errors import ConfigError
from recbole_adv.game.optimizer import check_learner
from recbole_adv.game.player import Player, players_of
from recbole_adv.game.schedule import Schedule, schedule_of
from recbole_adv.technique.factory import check_techniques
from recbole_adv.trainer.adv_trainer import AdvTrainer
from recbole_adv.trainer.game_loop import Joint


class INVTrainer(AdvTrainer):
    r"""Trains a game: ``min`` minimises ``calculate_loss``, ``max`` increases an objective.

    A model is a game if it has ``calculate_max_objective(interaction)`` and submodules named in
    ``max_modules`` (``env_generator`` by default), or ``max_step(interaction)``, a move in closed
    form, or ``players()``, which returns any number of :class:`~recbole_adv.game.player.Player`.

    On each batch, as the schedule says (``max_interval``, ``max_steps`` ...):

    * ``separate_forward``: one player after the other, each by a forward pass of its own in which
      the others are frozen; the second sees the first one's new weights;
    * ``shared_graph``, for models with ``calculate_joint(interaction)``: one forward pass; all
      gradients are taken at the same point, each only into its owner's parameters, and only then
      do the optimizers step. For min and max it returns ``(min loss, max objective)``, for other
      games a dict from player names to losses that are minimised.

    Attributes:
        optimizer_min, optimizer_max: the optimizers of these players.

    Optional hooks of a model: ``on_fit_start(train_data)``, ``before_epoch(epoch, train_data)``,
    ``after_epoch(epoch, train_data)``, ``on_phase_start(player, epoch)`` and ``on_phase_end`` around
    the passes of a player with ``<player>_unit: epoch``, ``project_(player)`` after each of its
    steps, ``schedule(config)`` for a schedule that the keys cannot say, ``log_values()``.
    """

    def _players(self, config, model) -> tuple[Player, ...]:
        players = players_of(model, config)
        for player in players:  # the configuration knew min and max only
            if player.name not in ("min", "max"):
                check_names_of(player.name, config)
                check_learner(config.final_config_dict, player.name)
                check_techniques(config.final_config_dict, [player.name])
        return players

    def _schedule(self, config, model) -> Schedule:
        own = getattr(model, "schedule", None)
        if own is not None:
            return own(config)
        return schedule_of(config.final_config_dict, [player.name for player in self.players])

    def fit(self, *arguments: Any, **named: Any):
        """RecBole's ``fit``; the log says who had no turn in it."""
        result = super().fit(*arguments, **named)
        for name, taken in self.loop.turns_taken.items():
            turns = self.schedule.turns[name]
            if not taken and turns.budget != 0 and self.loop.batch_count:
                self.logger.warning(
                    "player %s has had no turn in %d epochs (start_epoch %d, interval %d): this is no game yet",
                    *(name, self.epochs, turns.start_epoch, turns.interval),
                )
        return result

    def _joint(self) -> Joint | None:
        joint = getattr(self.model, "calculate_joint", None)
        wanted = self.config["game_update"]
        if wanted == "shared_graph" and joint is None:
            raise ConfigError(
                f"game_update: shared_graph needs {type(self.model).__name__}.calculate_joint(), "
                "which it does not have; write separate_forward"
            )
        if wanted == "separate_forward" or joint is None or self._joint_is_outdated:
            return None

        def losses(interaction) -> Mapping[str, Any]:
            values = joint(interaction)
            if isinstance(values, Mapping):
                return values
            loss, objective = values
            return {"min": loss, "max": -objective}

        return losses

    @cached_property
    def _joint_is_outdated(self) -> bool:
        """Whether a subclass has changed a loss that the ``calculate_joint`` it inherits does not call."""
        mro = type(self.model).__mro__

        def home(name: str) -> int:
            return next((i for i, cls in enumerate(mro) if name in vars(cls)), len(mro))

        joint = home("calculate_joint")
        if joint == len(mro):
            return False
        called = getattr(vars(mro[joint])["calculate_joint"], "__code__", None)
        called = called.co_names if called is not None else ()
        losses = ("calculate_loss", "calculate_max_objective")
        newer = [name for name in losses if home(name) < joint and name not in called]
        if not newer:
            return False
        sentence = (
            f"{mro[home(newer[0])].__name__} overrides {newer[0]}, but not calculate_joint of "
            f"{mro[joint].__name__}"
        )
        if self.config["game_update"] == "shared_graph":
            raise ConfigError(
                f"{sentence}, from which game_update: shared_graph takes both losses; override that too, "
                "or write separate_forward"
            )
        self.logger.warning(
            "%s, so each player has a forward pass of its own; override that too for a shared graph",
            sentence,
        )
        return True

    @property
    def optimizer_min(self) -> torch.optim.Optimizer:
        """The optimizer of the first player."""
        return self.optimizer

    @property
    def optimizer_max(self) -> torch.optim.Optimizer | None:
        """The optimizer of the player ``max``."""
        return self.optimizers.get("max")
