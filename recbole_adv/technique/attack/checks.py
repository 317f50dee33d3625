"""What of an attack can be refused before it begins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recbole.utils import InputType
from torch import nn

from recbole_adv.errors import ConfigError
from recbole_adv.technique.attack.presets import Recipe
from recbole_adv.technique.attack.tables import Table

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.technique.embedding_attack import EmbeddingAttack
    from recbole_adv.trainer.adv_trainer import AdvTrainer


def check_keys(attack: EmbeddingAttack, recipe: Recipe) -> None:
    """Raise :class:`ConfigError` for keys that contradict each other."""
    prefix = "embedding_attack_"
    for key in ("targets", "exclude"):
        for regex in getattr(attack, key) or ():
            try:
                re.compile(regex)
            except (re.error, TypeError) as error:
                raise ConfigError(
                    f"{prefix}{key}: {regex!r} is no regular expression ({error}); write the names of "
                    "parameters, as ['item_embedding']"
                ) from error
    if attack.targets is not None and not attack.targets:
        raise ConfigError(f"{prefix}targets must name a parameter, got []; None takes every table")
    start, stop = attack.start_epoch or 0, attack.stop_epoch
    if stop is not None and stop <= start:
        raise ConfigError(
            f"{prefix}stop_epoch must be above {prefix}start_epoch {start}, got {stop}"
        )
    if recipe.scope == "sample" and (recipe.persistent or attack.rows != "touched"):
        what = "preset: freeat" if recipe.persistent else f"rows: {attack.rows}"
        raise ConfigError(
            f"{prefix}{what} is about rows of tables, which {prefix}scope: sample does not perturb; "
            f"write {prefix}scope: row"
        )
    if attack.user_scale != "none" and recipe.scope not in ("row", "sample"):
        raise ConfigError(
            f"{prefix}user_scale: {attack.user_scale} gives each user a radius, and {prefix}scope: "
            f"{recipe.scope} has one for all; write {prefix}scope: row"
        )
    if recipe.consistency and not recipe.keep_clean:
        raise ConfigError(
            f"{prefix}preset: vat is a term beside the loss; leave {prefix}keep_clean: False out"
        )


def check_user_scale(kind: str, model: nn.Module, tables: Sequence[Table]) -> None:
    """Raise :class:`ConfigError` where users cannot be given a radius of their own."""
    name = type(model).__name__
    if getattr(model, "input_type", None) != InputType.PAIRWISE:
        raise ConfigError(
            f"embedding_attack_user_scale: {kind} is made for pairs of items, which "
            f"{name} does not train on; write none"
        )
    if kind == "pama" and not any(t.kind == "user" for t in tables):
        raise ConfigError(
            f"embedding_attack_user_scale: pama needs a table of users among those attacked, got "
            f"{', '.join(t.name for t in tables)}; write none or vat"
        )


def check_reset(trainer: AdvTrainer, player: Player) -> None:
    """Raise :class:`ConfigError` where there is no one optimizer to begin anew."""
    if player is not trainer.players[0] or "optimizer" not in trainer._all_optimizers():
        raise ConfigError(
            "embedding_attack_reset_optimizer works for the first player's one optimizer, and "
            f"{player.name!r} of {type(trainer.model).__name__} has another or several; leave it out"
        )
