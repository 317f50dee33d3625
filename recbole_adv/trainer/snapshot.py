"""The state of training between two batches, kept in memory, to which a run can go back."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from recbole_adv.model_state import (
    clear_caches,
    forward_state,
    random_state,
    set_forward_state,
    set_random_state,
)

Snapshot = dict[str, Any]

_FACTOR = "rate_factor"  # in an optimizer's groups, so that a checkpoint holds it beside the rate


class SnapshotMixin:
    """Snapshots of a trainer.

    A snapshot holds what training changes but where in the data it is: weights, buffers and counters of
    the model, all optimizers and scalers, turns, steps, progress and random streams of the players,
    the techniques' state, and the global random generators. What is large of it lies on the CPU.
    """

    def snapshot(self) -> Snapshot:
        """Copy the state; no gradient may be waiting for the next batch's."""
        assert not any(turn.waiting for turn in self.loop.turns.values())
        state = {
            "model": self.model.state_dict(),
            "optimizers": {n: o.state_dict() for n, o in self._all_optimizers().items()},
            "scalers": {n: s.state_dict() for n, s in self.scalers.items()},
            "loop": self.loop.state_dict(),
            "techniques": self.techniques.state_dict(),
            "random": random_state(),
        }
        return {**copied(state, torch.device("cpu")), "counters": forward_state(self.model)}

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot, in place; it may be used again.

        The data go on where they are: the batches since are neither undone nor repeated.
        """
        set_forward_state(snapshot["counters"])
        self.model.load_state_dict(snapshot["model"])
        clear_caches(self.model)
        for name, optimizer in self._all_optimizers().items():
            # load_state_dict would go on with the very tensors of the snapshot.
            optimizer.load_state_dict(deepcopy(snapshot["optimizers"][name]))
        for name, scaler in self.scalers.items():
            scaler.load_state_dict(snapshot["scalers"][name])
        self.loop.load_state_dict(copied(snapshot["loop"], torch.device("cpu")))
        self.techniques.load_state_dict(
            copied(snapshot["techniques"], self.device), "the snapshot in memory"
        )
        set_random_state(snapshot["random"])

    @property
    def rate_factor(self) -> float:
        """What every learning rate was multiplied with by :meth:`set_rate_factor`; 1 at first."""
        return self.optimizer.param_groups[0].get(_FACTOR, 1.0)

    def set_rate_factor(self, factor: float) -> None:
        """Make each learning rate, and the one a schedule starts from, ``factor`` times its own."""
        for optimizer in self._all_optimizers().values():
            for group in optimizer.param_groups:
                change = factor / group.get(_FACTOR, 1.0)
                if change != 1.0:
                    group |= {k: group[k] * change for k in ("lr", "initial_lr") if k in group}
                    group[_FACTOR] = factor

    def learning_rates(self) -> dict[str, list[float]]:
        """Of each group of each optimizer, by the optimizer's name."""
        return {
            name: [float(group["lr"]) for group in optimizer.param_groups]
            for name, optimizer in self._all_optimizers().items()
        }


def copied(value: Any, device: torch.device) -> Any:
    """A tree of data, its tensors copied to ``device``."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: copied(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item, device) for item in value)
    return deepcopy(value)
