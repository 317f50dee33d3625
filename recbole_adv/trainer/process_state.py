"""What differs between several processes of one run, in checkpoints and in what they write."""

from __future__ import annotations

from typing import Any

import torch

from recbole_adv import checkpoint, processes
from recbole_adv.errors import CheckpointError
from recbole_adv.model_state import random_state
from recbole_adv.trainer.snapshot import copied

_HOST = torch.device("cpu")


def states_of_processes(trainer) -> dict[str, Any]:
    """``processes``: what is not alike on all of them, a dict for each; nothing for one process."""
    if processes.count() == 1:
        return {}
    own = {
        "random": random_state(),
        "streams": trainer.loop.state_dict()["streams"],
        "techniques": trainer.techniques.own_state_dict(),
    }
    return {"processes": processes.from_all(copied(own, _HOST))}


def take_back_own(ours: dict[str, Any], file: str) -> None:
    """Put this process's state in the place of the first one's, in what a checkpoint holds.

    Raises :class:`CheckpointError` for another number of processes, to which its random numbers and
    its share of the data belong.
    """
    kept = ours.get("processes") or [{}]
    if len(kept) != processes.count():
        raise CheckpointError(
            f"{file} was written by a run of {len(kept)} processes, got {processes.count()}; go on "
            f"with --nproc={len(kept)}"
        )
    own = kept[processes.rank()]
    if own:
        ours["random"] = own["random"]
        ours["loop"]["streams"] = own["streams"]
        for player, named in own["techniques"].items():
            ours["techniques"][player] |= named


def best_state(file: str, device: torch.device) -> dict[str, Any]:
    """What :func:`recbole_adv.checkpoint.load_weights` reads of a file that the first process wrote.

    It alone reads the file, as another machine may not see it.
    """
    if processes.count() == 1:
        return checkpoint.load(file, map_location=device)
    kept = ("epoch", "state_dict", "other_parameter")
    state = checkpoint.load(file) if processes.is_first() else {}
    return processes.from_first({key: state.get(key) for key in kept})


class NoTensorBoard:
    """Takes whatever is written to it; the first process writes."""

    def __getattr__(self, name: str):
        return lambda *arguments, **named: None
