"""Random numbers that one player draws without moving another player's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_adv.model_state import host_random_state, host_seeded, set_host_random_state

_LOOKS = 3  # turns after which a player is known to draw from torch alone


class RandomStream:
    """A context in which random numbers come from this stream; outside they go on as if nothing was.

    The first player of a game uses the global generators and every other one a stream, so that an
    adversary that does nothing leaves the recommender's dropout masks, hence its result, exactly as
    they are without an adversary.

    Putting numpy's and Python's generators aside costs more than a small step, so it is done for those who
    draw from them (RecBole's DGCF, FEARec, KGIN, MCCLK) in one of their first turns.
    """

    def __init__(self, seed: int, device: torch.device):
        self.device = torch.device(device)
        with torch.random.fork_rng(devices=self._devices()):
            torch.manual_seed(seed)
            self._own = self._current()
        with host_seeded(seed):
            self._start = host_random_state()
        self._host: dict[str, Any] | None = None  # of a player who was seen to draw from them
        self._looked = 0
        self._outside: tuple[Tensor, Tensor | None] | None = None
        self._host_outside: dict[str, Any] | None = None

    def _devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _current(self) -> tuple[Tensor, Tensor | None]:
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return torch.get_rng_state(), cuda

    def _set(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], self.device)

    def __enter__(self) -> RandomStream:
        self._outside = self._current()
        self._set(self._own)
        if self._host is not None or self._looked < _LOOKS:
            self._host_outside = host_random_state()
            set_host_random_state(self._host or self._start)
        return self

    def __exit__(self, *error: Any) -> None:
        self._own = self._current()
        self._set(self._outside)
        self._outside = None
        if self._host_outside is not None:
            now, self._looked = host_random_state(), self._looked + 1
            if self._host is not None or not _same(now, self._start):
                self._host = now
            set_host_random_state(self._host_outside)
            self._host_outside = None

    def state_dict(self) -> dict[str, Any]:
        """The state of this stream as data."""
        return {"cpu": self._own[0], "cuda": self._own[1], "host": self._host}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        cuda = state["cuda"].cpu() if state["cuda"] is not None else self._own[1]
        self._own, self._host = (state["cpu"].cpu(), cuda), state.get("host")


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    numbers = all(np.array_equal(a, b) for a, b in zip(one["numpy"], other["numpy"]))
    return numbers and one["python"] == other["python"]
