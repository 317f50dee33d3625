"""Reads the losses of a run as it goes on and says what becomes of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recbole_adv import processes
from recbole_adv.technique.divergence import (
    FULL,
    MICRO,
    OUTLIER,
    SUSPECT,
    DivergenceDetector,
)

if TYPE_CHECKING:
    from recbole_adv.trainer.turn import Outcome

_ENDED = {OUTLIER: "it was an outlier", MICRO: "it was a micro-divergence"}


class LossWatch:
    """A detector for one player's loss and for each of its parts; of the others only nan and inf are seen.

    One part may hide in the sum, and a small rise of all parts in each of them. The others' losses are
    supposed to rise in a game, and the watched one shows what that did to it. Losses stay on the
    device until they are read, all in one transfer.

    Args:
        player: whose losses are watched.
        arguments: the detectors'.

    Attributes:
        steps: how many losses of the player were read.
    """

    def __init__(self, player: str, arguments: dict[str, Any]):
        self.player, self.arguments = player, arguments
        self.steps = 0
        self._detectors: dict[str, DivergenceDetector] = {}
        self._unread: list[tuple[str, str, tuple[Tensor, ...]]] = []

    def add(self, player: str, outcome: Outcome, on_triples: bool) -> None:
        """Note the losses of one move; those on triples are of another kind."""
        if outcome.parts:
            kind = "the loss on triples" if on_triples else "the loss"
            self._unread.append((player, kind, outcome.parts))

    def __len__(self) -> int:
        """The moves that were not read yet."""
        return len(self._unread)

    def read(self) -> list[tuple[str, str]]:
        """The events of the unread moves, each with its sentence; a full divergence is the last."""
        unread, self._unread = self._unread, []
        values = iter(_numbers([part for _, _, parts in unread for part in parts]))
        events: list[tuple[str, str]] = []
        for player, kind, parts in unread:
            self.steps += player == self.player
            losses = {f"part {i} of {kind}": next(values) for i in range(1, len(parts) + 1)}
            for name, loss in self._watched(kind, losses):
                found = self._judge(player, kind, name, loss)
                events += [found] if found else []
                if found and found[0] == FULL:
                    return events
        return events

    @staticmethod
    def _watched(kind: str, losses: dict[str, float]) -> list[tuple[str, float]]:
        """The parts, so that the one which is nan is named, and their sum."""
        parts = list(losses.items()) if len(losses) > 1 else []
        return [*parts, (kind, sum(losses.values()))]

    def _judge(self, player: str, kind: str, name: str, loss: float) -> tuple[str, str] | None:
        step = f"step {self.steps}"
        if not math.isfinite(loss):
            return FULL, f"{name} of player {player!r} was {loss} at {step}"
        if player != self.player:
            return None
        whole = self._detector(kind).level
        detector = self._detector(name)
        event = detector.observe(loss, whole)
        if event is None:
            return None
        if event == SUSPECT:
            end = detector.limits(whole)[1]
            said = f"is {loss:.4g} at {step}, above its band, which ends at {end:.4g}"
        elif event == FULL:
            since = self.steps - self.arguments["patience"]
            said = f"left its band at step {since} and was {loss:.4g} at {step}"
        else:
            said = f"is back in its band at {step}: {_ENDED[event]}"
        return event, f"{name} of player {player!r} {said}"

    def _detector(self, name: str) -> DivergenceDetector:
        if name not in self._detectors:
            self._detectors[name] = DivergenceDetector(**self.arguments)
        return self._detectors[name]

    @property
    def suspicious(self) -> bool:
        """Whether some part is under suspicion."""
        return any(detector.suspicious for detector in self._detectors.values())

    def forget(self) -> None:
        """Start anew: the losses to come are those of another objective."""
        self._detectors.clear()

    def state_dict(self) -> dict[str, Any]:
        """All that was read."""
        detectors = {name: detector.state_dict() for name, detector in self._detectors.items()}
        return {"steps": self.steps, "detectors": detectors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back :meth:`state_dict`; what was not read is dropped."""
        self.steps, self._unread = state["steps"], []
        self._detectors = {
            name: DivergenceDetector(**self.arguments) for name in state["detectors"]
        }
        for name, detector in self._detectors.items():
            detector.load_state_dict(state["detectors"][name])


def _numbers(parts: list[Tensor]) -> list[float]:
    """Losses of one device as Python's numbers, by one transfer; their means over the processes."""
    scalars = [(part.sum() if part.dim() else part).float() for part in parts]
    return processes.mean(torch.stack(scalars).tolist()) if scalars else []
