"""``compile: True``: the loss of the one player through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from recbole_adv.errors import ConfigError, TrainingError
from recbole_adv.game.player import is_game
from recbole_adv.objective.parts import Loss

LISTENERS = ("embedding_attack", "r_drop", "label_smoothing")
"""Techniques that listen to the modules of the model, which compiled code passes by in silence."""


def check_compile(config: Mapping[str, Any], model_class: type) -> None:
    """Raise :class:`ConfigError` where a compiled loss would be another one, or none."""
    if not config["compile"]:
        return
    name = model_class.__name__
    if is_game(model_class) or getattr(model_class, "needs_row_index", False):
        raise ConfigError(
            f"compile: True goes with a model of one player that scores by itself; {name} is a game or "
            "reads the rows of another model's loss by listening to its modules, which compiled code "
            "passes by; leave compile out"
        )
    if config.get("sparse_embeddings"):
        raise ConfigError(
            "compile: True does not go with sparse_embeddings: True, since compiled code gives dense "
            "gradients; leave one of them out"
        )
    techniques = [t for t in config["techniques"] or () if t in LISTENERS]
    if techniques:
        raise ConfigError(
            f"compile: True does not go with the techniques {techniques}, which listen to the modules "
            "of the model, which compiled code passes by; leave one of them out"
        )


def compiled(loss: Callable[[Any], Loss]) -> Callable[[Any], Loss]:
    """The loss, compiled when it is first called; the model, its names and weights are as before.

    Raises :class:`TrainingError` in one sentence where torch cannot compile it.
    """
    fast = torch.compile(loss)

    def compiled_loss(batch: Any) -> Loss:
        try:
            return fast(batch)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"compile: True failed ({type(error).__name__}: {reason}); on a CPU it needs a C++ "
                "compiler such as g++; install one, or leave compile out"
            ) from error

    return compiled_loss
