"""Adversarial and invariant recommenders for RecBole.

Importing this package makes RecBole's own functions find our models, trainers and properties
(:mod:`recbole_adv.registration`) and mends what RecBole 1.2 needs mended on today's Python stack
(:mod:`recbole_adv.compat`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recbole_adv import compat

compat.apply()

from recbole_adv import registration  # noqa: E402

registration.register()

if TYPE_CHECKING:
    from recbole_adv.config import Config
    from recbole_adv.game.penalty import PenaltySchedule
    from recbole_adv.game.player import Player
    from recbole_adv.launch import run_processes
    from recbole_adv.quick_start import load_data_and_model, objective_function, run_recbole_adv
    from recbole_adv.sweep import run_sweep
    from recbole_adv.technique import Technique
    from recbole_adv.trainer import AdvTrainer, INVTrainer

__version__ = "0.1.0"

_HOME = {
    "AdvTrainer": "trainer",
    "Config": "config",
    "INVTrainer": "trainer",
    "PenaltySchedule": "game.penalty",
    "Player": "game.player",
    "Technique": "technique",
    "load_data_and_model": "quick_start",
    "objective_function": "quick_start",
    "run_processes": "launch",
    "run_recbole_adv": "quick_start",
    "run_sweep": "sweep",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"recbole_adv.{_HOME[name]}"), name)
    raise AttributeError(f"module 'recbole_adv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
