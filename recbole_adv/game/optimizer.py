"""A player's optimizer, built from RecBole's keys."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn, optim

from recbole_adv.errors import ConfigError, suggest
from recbole_adv.game.clippy_adagrad import ClippyAdagrad
from recbole_adv.game.lazy_rows import lazy
from recbole_adv.game.player import Player
from recbole_adv.game.row_adagrad import RowAdagrad

LEARNERS: dict[str, type[optim.Optimizer]] = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "sgd": optim.SGD,
    "adagrad": optim.Adagrad,
    "rmsprop": optim.RMSprop,
    "sparse_adam": optim.SparseAdam,
    "clippy_adagrad": ClippyAdagrad,
    "row_adagrad": RowAdagrad,
}
"""RecBole's learners by name, and two of ours."""

PLAYER_KEYS = ("learner", "learning_rate", "weight_decay", "clip_grad_norm")
"""What every player may set as ``<player>_<key>``; the min player's keys have no prefix."""

_GIVEN_ELSEWHERE = ("self", "params", "lr", "weight_decay")


def setting(config: Mapping[str, Any], player: str, key: str) -> Any:
    """``<player>_<key>``, or the plain key where that is None; the min player has only plain ones."""
    value = None if player == "min" else config.get(f"{player}_{key}")
    return config.get(key) if value is None else value


def learner_arguments(config: Mapping[str, Any], player: str) -> dict[str, Any]:
    """The optimizer's own arguments: ``learner_<argument>`` and ``<player>_learner_<argument>``.

    A plain key is passed on to another player's optimizer only if that optimizer has the argument.
    """
    accepted = inspect.signature(LEARNERS[setting(config, player, "learner").lower()]).parameters
    found = {}
    for prefix in ("learner_",) if player == "min" else ("learner_", f"{player}_learner_"):
        for key, value in config.items():
            name = key.removeprefix(prefix)
            if name == key or value is None:
                continue
            if name in accepted and name not in _GIVEN_ELSEWHERE:
                found[name] = tuple(value) if isinstance(value, list) else value
    return found


def is_of_optimizer(key: str) -> bool:
    """Whether a key sets a number of some player's optimizer."""
    return re.fullmatch(r"(\w+_)?(learning_rate|weight_decay|learner_\w+)", key) is not None


def check_learner(config: Mapping[str, Any], player: str) -> None:
    """Raise :class:`ConfigError` unless the player's optimizer can be built from its keys."""
    prefix = "" if player == "min" else f"{player}_"
    name = setting(config, player, "learner")
    if not isinstance(name, str) or name.lower() not in LEARNERS:
        raise ConfigError(
            f"{prefix}learner must be one of {', '.join(LEARNERS)}, got {name!r}"
            f"{suggest(str(name), LEARNERS)}"
        )
    accepted = inspect.signature(LEARNERS[name.lower()]).parameters
    for key, value in config.items():
        argument = key.removeprefix(f"{prefix}learner_")
        if argument != key and value is not None and argument not in accepted:
            raise ConfigError(
                f"{key}: {value} does not fit {prefix}learner {name!r}, which has no argument "
                f"{argument!r}{_instead(argument, accepted)}"
            )
    given = learner_arguments(config, player)
    if config.get("enable_scaler") and given.get("fused") and given.get("momentum"):
        raise ConfigError(
            f"{prefix}learner_fused: True with {prefix}learner_momentum: {given['momentum']} begins at "
            "numbers that were never written where enable_scaler: True skips the first step (torch); "
            f"write {prefix}learner_fused: False"
        )
    # A trial with one weight: torch checks the values of the arguments.
    optimizer_for(config, player, [nn.Parameter(torch.zeros(1))])
    clip = setting(config, player, "clip_grad_norm")
    allowed = set(inspect.signature(nn.utils.clip_grad_norm_).parameters) - {"parameters"}
    fits = isinstance(clip, dict) and set(clip) <= allowed
    if clip and not (fits and isinstance(clip.get("max_norm"), (int, float))):
        raise ConfigError(
            f"{prefix}clip_grad_norm must be a dict like {{max_norm: 5}} with keys among "
            f"{', '.join(sorted(allowed))}, got {clip!r}"
        )


def _instead(argument: str, accepted: Iterable[str]) -> str:
    names = [name for name in accepted if name not in _GIVEN_ELSEWHERE]
    return suggest(argument, names) or f"; it has {', '.join(names)}"


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    learner: str,
    learning_rate: float,
    weight_decay: float,
    sparse_embeddings: bool = False,
    **arguments: Any,
) -> optim.Optimizer:
    """The optimizer called ``learner``; the same one as RecBole's where no argument is added.

    sparse_embeddings: of a sparse gradient it moves the rows alone (:mod:`..game.lazy_rows`).

    Raises :class:`ConfigError` for an unknown name, where RecBole goes on with Adam, and for weight
    decay with sparse_adam, which RecBole drops.
    """
    learner = learner.lower()
    if learner not in LEARNERS:
        raise ConfigError(
            f"learner must be one of {', '.join(LEARNERS)}, got {learner!r}"
            f"{suggest(learner, LEARNERS)}"
        )
    if learner == "sparse_adam" and sparse_embeddings:
        raise ConfigError(
            "sparse_adam has no step for dense gradients, which a player may have beside the sparse "
            "ones of sparse_embeddings: True; write learner: adam, which is lazy on sparse ones then"
        )
    if learner != "sparse_adam":
        arguments["weight_decay"] = weight_decay
    elif weight_decay:
        raise ConfigError(
            f"sparse_adam has no weight decay; set weight_decay to 0, not {weight_decay}"
        )
    cls = LEARNERS[learner]
    try:
        return (lazy(cls) if sparse_embeddings else cls)(parameters, lr=learning_rate, **arguments)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the optimizer {learner} cannot be built: {error}; "
            f"{cls.__module__.rpartition('.')[0]}.{cls.__name__} says what its arguments may be"
        ) from error


def grouped(player: Player, rate: float) -> list[Any]:
    """The player's parameters, in groups where some have a rate of their own."""
    plain = [p for p in player.parameters if player.rates.get(id(p), 1.0) == 1.0]
    groups = [{"params": plain}] if plain and len(plain) < len(player.parameters) else plain
    own = [p for p in player.parameters if player.rates.get(id(p), 1.0) != 1.0]
    return [*groups, *({"params": [p], "lr": rate * player.rates[id(p)]} for p in own)]


def fused_argument(
    learner: str, parameters: Iterable[nn.Parameter], momentum: float = 0.0
) -> dict[str, bool]:
    """``{"fused": True}`` where torch has one kernel for the whole step of these parameters.

    Not for SGD with momentum: where a scaler skips the first step, torch keeps a buffer that was never
    written.
    """
    has_it = "fused" in inspect.signature(LEARNERS[learner.lower()]).parameters
    # Fused Adagrad came to GPUs with a later torch than the oldest we run on.
    devices = ("cpu",) if learner.lower() == "adagrad" else ("cpu", "cuda")
    fits = all(p.is_floating_point() and p.device.type in devices for p in parameters)
    return {"fused": True} if has_it and fits and not momentum else {}


def optimizer_for(
    config: Mapping[str, Any], player: str, parameters: Iterable[nn.Parameter]
) -> optim.Optimizer:
    """The optimizer of ``player`` over ``parameters``, as its keys in ``config`` say."""
    return build_optimizer(
        parameters,
        setting(config, player, "learner"),
        setting(config, player, "learning_rate"),
        setting(config, player, "weight_decay"),
        bool(config.get("sparse_embeddings")),
        **learner_arguments(config, player),
    )


def optimizer_of(
    config: Mapping[str, Any], player: Player, first: bool, **given: Any
) -> optim.Optimizer:
    """The optimizer of ``player``, as its keys in ``config`` say; ``given`` goes before them.

    first: torch's default implementation, to which RecBole's results are tied, loops over the
    tensors; for the other players, whose tensors are many and small, and for sparse embeddings, one
    kernel does the whole step.
    """
    name = player.name
    learner = given.get("learner", setting(config, name, "learner"))
    rate = given.get("learning_rate", setting(config, name, "learning_rate"))
    sparse = bool(config.get("sparse_embeddings"))
    own = learner_arguments(config, name) if "learner" not in given else {}
    one_kernel = (not first or sparse) and "foreach" not in own
    momentum = own.get("momentum", 0.0)
    fused = fused_argument(learner, player.parameters, momentum) if one_kernel else {}
    arguments = fused | own
    return build_optimizer(
        given.get("params") or grouped(player, rate),
        learner,
        rate,
        given.get("weight_decay", setting(config, name, "weight_decay")),
        sparse,
        **arguments,
    )
