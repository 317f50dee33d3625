"""Random numbers that one player draws without moving another player's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RandomStream:
    """A context in which torch draws from this stream; outside it continues as if nothing was.

    The first player of a game uses torch's global generators and every other one a stream, so that
    an adversary that does nothing leaves the recommender's dropout masks, hence its result, exactly
    as they are without an adversary.
    """

    def __init__(self, seed: int, device: torch.device):
        self.device = torch.device(device)
        with torch.random.fork_rng(devices=self._devices()):
            torch.manual_seed(seed)
            self._own = self._current()
        self._outside: tuple[Tensor, Tensor | None] | None = None

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
        return self

    def __exit__(self, *error: Any) -> None:
        self._own = self._current()
        self._set(self._outside)
        self._outside = None

    def state_dict(self) -> dict[str, Any]:
        """The state of this stream as tensors."""
        return {"cpu": self._own[0], "cuda": self._own[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        cuda = state["cuda"].cpu() if state["cuda"] is not None else self._own[1]
        self._own = (state["cpu"].cpu(), cuda)
