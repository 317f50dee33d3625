"""Which parameters of a player a technique acts on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

from recbole_adv.errors import ConfigError

if TYPE_CHECKING:
    from recbole_adv.game.player import Player


def pattern_of(exclude: str | None, key: str) -> re.Pattern | None:
    """The compiled regular expression; raises :class:`ConfigError` for one that is none."""
    if exclude is None:
        return None
    try:
        return re.compile(exclude)
    except re.error as error:
        raise ConfigError(
            f"{key} must be a regular expression, got {exclude!r} ({error}); write {key}: "
            "'bias|predict_layer'"
        ) from error


def tables_of(model: nn.Module) -> set[int]:
    """The weights of all ``nn.Embedding`` and ``nn.EmbeddingBag`` modules, by ``id``."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return {id(module.weight) for module in model.modules() if isinstance(module, kinds)}


def head_of(model: nn.Module, player: Player) -> set[int]:
    """Weight and bias of the player's last ``nn.Linear`` in the order of definition, by ``id``."""
    own = {id(parameter) for parameter in player.parameters}
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) in own]
    return {id(parameter) for parameter in linear[-1].parameters()} if linear else set()


def chosen(
    model: nn.Module,
    player: Player,
    technique: str,
    pattern: re.Pattern | None = None,
    without: set[int] = frozenset(),
    hint: str = "leave it out",
) -> set[int]:
    """The player's trainable parameters, by ``id``, but those ``without`` and of matching names.

    A pattern is searched in the names that ``model.named_parameters()`` gives.

    Raises:
        ConfigError: the pattern matches nothing in the model, or nothing is left; ``hint`` says
            what to write then.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matching = {i for i, name in names.items() if pattern is not None and pattern.search(name)}
    of_model = type(model).__name__
    if pattern is not None and not matching:
        raise ConfigError(
            f"{technique}_exclude {pattern.pattern!r} matches no parameter of {of_model}; they are "
            f"{', '.join(names.values())}"
        )
    own = [id(p) for p in player.parameters if p.requires_grad]
    left = {i for i in own if i not in without and i not in matching}
    if own and not left:
        raise ConfigError(
            f"{technique} has nothing to act on in {of_model}, player {player.name!r}: all of "
            f"{', '.join(names[i] for i in own)} are excluded; {hint}"
        )
    return left
