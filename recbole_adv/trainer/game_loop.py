"""Plays the schedule over the batches of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import time
from typing import Any

import torch
from recbole.utils import set_color
from torch import nn
from tqdm import tqdm

from recbole_adv.game.penalty import Progress
from recbole_adv.game.player import Player
from recbole_adv.game.schedule import Schedule
from recbole_adv.loader.shares import weights
from recbole_adv.trainer.own_batches import OwnBatches, on_device
from recbole_adv.trainer.random_stream import RandomStream
from recbole_adv.trainer.statistics import PlayerStatistics
from recbole_adv.trainer.step import StepEngine
from recbole_adv.trainer.turn import Outcome, Turn

Joint = Callable[[Any], Mapping[str, Any]]
_SHOW_EVERY = 0.5  # seconds between two updates of the bar: each reads the device


def call_hook(model: nn.Module, name: str, *arguments: Any) -> Any:
    """Call a hook of the model, if it has it."""
    hook = getattr(model, name, None)
    return hook(*arguments) if hook is not None else None


class GameLoop:
    """Who moves on which batch, and everything that is counted on the way.

    Args:
        drop_last: leave out batches that are smaller than the first.
        renew_first: gives the first player a new optimizer and returns it.

    Attributes:
        progress: how far the first player is.
        turns_taken, steps_taken: by player, over the whole run.
        batch_count: batches of the whole run, those of a player's own epochs left out.
        statistics: by player, of this epoch.
        streams: random numbers of all players but the first.
        turns: by player, while batches are played; empty between two runs.
    """

    def __init__(
        self,
        model: nn.Module,
        players: Sequence[Player],
        schedule: Schedule,
        engine: StepEngine,
        progress: Progress,
        seed: int,
        device: torch.device,
        drop_last: bool,
        renew_first: Callable[[], torch.optim.Optimizer],
    ):
        self.model, self.players, self.schedule, self.engine = model, players, schedule, engine
        self.progress, self.device, self.renew_first = progress, device, renew_first
        self.drop_last = drop_last
        self.first = players[0].name
        self.streams = {
            player.name: RandomStream(seed + index, device)
            for index, player in enumerate(players)
            if index
        }
        self.turns_taken = dict.fromkeys((player.name for player in players), 0)
        self.steps_taken = dict(self.turns_taken)
        self.batch_count = 0
        self.turns: dict[str, Turn] = {}
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget what belongs to the last epoch."""
        self.statistics = {p.name: PlayerStatistics(p.maximises) for p in self.players}
        self._passes_of_turn = dict.fromkeys(self.turns_taken, 0)
        self._own_batches = OwnBatches(self.device)
        self._shown = 0.0

    def run(
        self,
        train_data,
        epoch: int,
        turns: dict[str, Turn],
        joint: Joint | None,
        first_alone: bool,
        show_progress: bool,
    ) -> PlayerStatistics:
        """The passes of one epoch; returns what the first player's were.

        first_alone: the data mean nothing to the other players.
        """
        first = PlayerStatistics(maximises=False)
        passes = [(self.first,)] if first_alone else self.schedule.passes(epoch, self.turns_taken)
        self.turns = turns
        self._between_batches()
        for names in passes:
            self._run_pass(train_data, epoch, names, turns, joint, first, show_progress)
        if any(self.first in names for names in passes) and self.progress.step:
            self._end_epoch_of_first(epoch, turns)
        for turn in turns.values():
            self.engine.finish(turn)
        self._between_batches()
        for statistics in (*self.statistics.values(), first):
            statistics.agree()
        self.turns = {}  # the next ones may have other optimizers
        return first

    def _run_pass(self, train_data, epoch, names, turns, joint, first, show_progress) -> None:
        alone = self.schedule.turns[names[0]].unit == "epoch"
        if alone and not self._passes_of_turn[names[0]]:
            call_hook(self.model, "on_phase_start", names[0], epoch)
        batches = self._bar(train_data, epoch, names) if show_progress else train_data
        n_batches, full = max(len(train_data), 1), 0
        for index, (batch, weight) in enumerate(zip(batches, weights(train_data))):
            full = max(full, len(batch))
            if self.drop_last and len(batch) < full:
                continue
            batch = on_device(batch, self.device)
            movers = self._movers(names, epoch)
            moves = list(self._move(movers, turns, (batch, weight), joint, train_data))
            for name, outcome in moves:
                self.statistics[name].add(outcome)
                if name == self.first:
                    first.add(outcome)
            if self.first in movers:
                self.progress.advance(epoch + (index + 1) / n_batches)
                if call_hook(self.model, "penalty_switches"):
                    self._renew(turns)
            self.batch_count += not alone
            self._between_batches(moves, batch)
            if show_progress:
                self._show_losses(batches, last=index + 1 == n_batches)
        if alone:
            self._end_pass(names[0], epoch, turns)

    def _between_batches(self, moves: Sequence[tuple[str, Outcome]] = (), batch=None) -> None:
        """Let the techniques look at a whole state, or put one back."""
        for name, turn in self.turns.items():
            self.steps_taken[name] = turn.steps
        for technique in (t for turn in self.turns.values() for t in turn.techniques):
            technique.between_batches(moves, batch)

    def _end_pass(self, name: str, epoch: int, turns: dict[str, Turn]) -> None:
        """A turn of whole epochs is over with the last of its passes."""
        self._passes_of_turn[name] += 1
        if self._passes_of_turn[name] < self.schedule.turns[name].steps:
            return
        self._passes_of_turn[name] = 0
        self.turns_taken[name] += 1
        if call_hook(self.model, "on_phase_end", name, epoch):
            self._renew(turns)

    def _end_epoch_of_first(self, epoch: int, turns: dict[str, Turn]) -> None:
        """The next epoch has begun also where the first player did not move on the last batch."""
        if self.progress.epoch < epoch + 1:
            self.progress.epoch = float(epoch + 1)
            if call_hook(self.model, "penalty_switches"):
                self._renew(turns)

    def _renew(self, turns: dict[str, Turn]) -> None:
        turns[self.first].optimizer = self.renew_first()

    def _movers(self, names: Sequence[str], epoch: int) -> Sequence[str]:
        if len(self.players) == 1:
            return names
        movers = self.schedule.movers(names, epoch, self.batch_count, self.turns_taken)
        for name in movers:
            self.turns_taken[name] += self.schedule.turns[name].unit == "step"
        return movers

    def _move(self, movers, turns, weighted, joint, train_data) -> Iterator[tuple[str, Outcome]]:
        """Every mover's steps on this batch: together on one graph where that is possible."""
        together: list[str] = []
        batch, weight = weighted
        for name in movers:
            turns[name].weight = weight
        if joint is not None and len(movers) > 1:
            together = [name for name in movers if self._may_share(turns[name])]
            if len(together) > 1:
                outcomes = self.engine.run_shared([turns[name] for name in together], joint, batch)
                yield from zip(together, outcomes)
            else:
                together = []
        for name in movers:
            own = self.schedule.turns[name]
            steps = 1 if own.unit == "epoch" else own.steps
            for _ in range(name in together, steps):
                data = batch if own.data == "same" else None
                if own.data == "fresh":
                    data, turns[name].weight = self._own_batches.next(name, train_data)
                yield name, self.engine.run(turns[name], data)

    def _may_share(self, turn: Turn) -> bool:
        return turn.player.move is None and self.schedule.turns[turn.player.name].data == "same"

    # --- the progress bar -----------------------------------------------------------------------

    def _bar(self, train_data, epoch: int, names: Sequence[str]):
        who = f" {names[0]}" if len(self.players) > 1 and len(names) == 1 else ""
        text = set_color(f"Train {epoch:>5}{who}", "pink")
        return tqdm(train_data, total=len(train_data), ncols=100, desc=text)

    def _show_losses(self, bar, last: bool) -> None:
        if time() - self._shown < _SHOW_EVERY and not last:
            return
        self._shown = time()
        shown = [f"{name}: {s.mean():.4g}" for name, s in self.statistics.items() if s.steps]
        bar.set_postfix_str(set_color(", ".join(shown), "yellow"))

    # --- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs; whole between two batches."""
        return {
            "turns_taken": dict(self.turns_taken),
            "steps_taken": dict(self.steps_taken),
            "batch_count": self.batch_count,
            "streams": {name: stream.state_dict() for name, stream in self.streams.items()},
            "progress": {
                name: getattr(self.progress, name) for name in ("step", "epoch", "previous_epoch")
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back :meth:`state_dict`."""
        self.turns_taken = dict(state["turns_taken"])
        self.steps_taken = dict(state["steps_taken"])
        self.batch_count = state["batch_count"]
        for name, turn in self.turns.items():  # gradients that wait are of steps that were undone
            turn.steps, turn.waiting = self.steps_taken[name], 0
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"][name])
        for name, value in state["progress"].items():
            setattr(self.progress, name, value)
