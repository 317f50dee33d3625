"""Reads the losses of a run as it goes on and says what becomes of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
    """A detector for each part of one player's loss; of the others only nan and inf are seen.

    The others' losses are supposed to rise in a game, and the watched one's shows what that did to
    it. Losses stay on the device until they are read, all in one transfer.

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
        self._unread: list[tuple[str, list[str], tuple[Tensor, ...]]] = []

    def add(self, player: str, outcome: Outcome, on_triples: bool) -> None:
        """Note the losses of one move; those on triples are of another kind."""
        kind = "loss on triples" if on_triples else "loss"
        count = len(outcome.parts)
        names = [f"part {i} of the {kind}" if count > 1 else kind for i in range(1, count + 1)]
        self._unread.append((player, names, outcome.parts))

    def __len__(self) -> int:
        """The moves that were not read yet."""
        return len(self._unread)

    def read(self) -> list[tuple[str, str]]:
        """The events of the unread moves, each with its sentence; a full divergence is the last."""
        unread, self._unread = self._unread, []
        values = iter(_numbers([part for _, _, parts in unread for part in parts]))
        events: list[tuple[str, str]] = []
        for player, names, _ in unread:
            self.steps += player == self.player
            for name, loss in list(zip(names, values)):
                found = self._judge(player, name, loss)
                events += [found] if found else []
                if found and found[0] == FULL:
                    return events
        return events

    def _judge(self, player: str, name: str, loss: float) -> tuple[str, str] | None:
        step = f"step {self.steps}"
        if not math.isfinite(loss):
            return FULL, f"the {name} of player {player!r} was {loss} at {step}"
        if player != self.player:
            return None
        detector = self._detectors.setdefault(name, DivergenceDetector(**self.arguments))
        event = detector.observe(loss)
        if event is None:
            return None
        if event == SUSPECT:
            said = (
                f"is {loss:.4g} at {step}, above its band, which ends at {detector.limits()[1]:.4g}"
            )
        elif event == FULL:
            since = self.steps - self.arguments["patience"]
            said = f"left its band at step {since} and was {loss:.4g} at {step}"
        else:
            said = f"is back in its band at {step}: {_ENDED[event]}"
        return event, f"the {name} of player {player!r} {said}"

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
    """Losses of one device as Python's numbers, by one transfer."""
    scalars = [(part.sum() if part.dim() else part).float() for part in parts]
    return torch.stack(scalars).tolist() if scalars else []
