"""Who moves when, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recbole_adv.errors import ConfigError
from recbole_adv.options import overall_options


@dataclass(frozen=True)
class Turns:
    """When one player moves.

    Args:
        interval: a turn in every ``interval``-th batch of the whole run (the last one of each
            ``interval``), or, where ``unit`` is ``epoch``, in ``start_epoch`` and every
            ``interval``-th epoch after it.
        steps: optimizer steps on the batch of a turn, or whole epochs.
        unit: ``step``: it moves on the batches of the ordinary epoch; ``epoch``: a turn is
            ``steps`` passes over the data in which only this player moves.
        start_epoch, stop_epoch: it moves in the epochs [start, stop).
        budget: turns in the whole run at most; None sets no limit.
        data: ``same`` batch as the others, a ``fresh`` one, or ``none``.
    """

    interval: int = 1
    steps: int = 1
    unit: str = "step"
    start_epoch: int = 0
    stop_epoch: int | None = None
    budget: int | None = None
    data: str = "same"

    def active(self, epoch: int, taken: int) -> bool:
        """Whether epoch and budget let it move at all; ``taken`` is its turns so far."""
        running = self.start_epoch <= epoch and (self.stop_epoch is None or epoch < self.stop_epoch)
        return running and (self.budget is None or taken < self.budget)


@dataclass(frozen=True)
class Schedule:
    """The turns of every player, in the order in which they move on one batch."""

    turns: Mapping[str, Turns]

    def passes(self, epoch: int, taken: Mapping[str, int]) -> list[tuple[str, ...]]:
        """The passes over the data in this epoch; each names the players that may move in it."""
        together = tuple(name for name, turns in self.turns.items() if turns.unit == "step")
        before: list[tuple[str, ...]] = []
        after: list[tuple[str, ...]] = []
        met_step_player = False
        for name, turns in self.turns.items():
            met_step_player |= turns.unit == "step"
            if turns.unit == "epoch" and turns.active(epoch, taken[name]):
                if (epoch - turns.start_epoch) % turns.interval == 0:
                    (after if met_step_player else before).extend([(name,)] * turns.steps)
        return [*before, *([together] if together else []), *after]

    def movers(
        self, names: Sequence[str], epoch: int, batch: int, taken: Mapping[str, int]
    ) -> list[str]:
        """Those of ``names`` that move on the batch with this number (from 0, over the run)."""
        return [
            name
            for name in names
            if self.turns[name].unit == "epoch"
            or (
                (batch + 1) % self.turns[name].interval == 0
                and self.turns[name].active(epoch, taken[name])
            )
        ]


KEYS = ("interval", "steps", "unit", "start_epoch", "stop_epoch", "budget", "data")
"""What every player may set as ``<player>_<key>``."""


def schedule_of(config: Mapping[str, Any], names: Sequence[str]) -> Schedule:
    """The schedule that the keys ``<player>_interval`` and so on describe.

    ``max_first`` puts the max player in front; players of other names move in the model's order.
    """
    order = list(names)
    if config.get("max_first") and "max" in order:
        order.sort(key=lambda name: name != "max")
    turns = {}
    for name in order:
        given = {key: config.get(f"{name}_{key}") for key in KEYS}
        given = {key: value for key, value in given.items() if value is not None}
        for key, value in given.items():  # a player of the model's own has the max player's schema
            replace(overall_options()[f"max_{key}"], key=f"{name}_{key}").check(value)
        turns[name] = Turns(**given)
    by_step = [t for t in turns.values() if t.unit == "step"]
    if by_step and all(t.interval > 1 for t in by_step):
        raise ConfigError(
            "one player must have interval 1, else batches are loaded that train nobody; got "
            + ", ".join(f"{name}_interval {t.interval}" for name, t in turns.items())
        )
    return Schedule(turns)
