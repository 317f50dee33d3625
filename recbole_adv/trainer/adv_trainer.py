"""RecBole's Trainer around the step engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from time import time
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import KnowledgeBasedDataLoader
from recbole.trainer import Trainer
from recbole.utils import KGDataLoaderState, set_color
from tqdm import tqdm

from recbole_adv.errors import ConfigError
from recbole_adv.game.optimizer import build_optimizer, learner_arguments, setting
from recbole_adv.game.penalty import Progress
from recbole_adv.game.player import Player, players_of
from recbole_adv.game.schedule import SINGLE, Schedule
from recbole_adv.technique import ClipNorm
from recbole_adv.trainer.random_stream import RandomStream
from recbole_adv.trainer.report import Report
from recbole_adv.trainer.row_index import attach_row_index
from recbole_adv.trainer.run_state import RunStateMixin
from recbole_adv.trainer.statistics import PlayerStatistics
from recbole_adv.trainer.step import StepEngine, Turn

_CHECK_EVERY = {"cpu": 1}  # elsewhere, reading the loss makes the host wait for the device


class AdvTrainer(RunStateMixin, Trainer):
    """Trains any RecBole model; with one player and nothing added, exactly as RecBole does.

    It slides under RecBole's special trainers (:func:`recbole_adv.trainer.compose.compose`), whose
    ``super()._train_epoch()`` then lands here.
    """

    def __init__(self, config, model):
        self.players: tuple[Player, ...] = self._players(config, model)
        self.schedule: Schedule = self._schedule(config, model)
        with self._files_in_run_dir(config):
            super().__init__(config, model)
        # RecBole's loop reads self.optimizer at each epoch (RecVAETrainer swaps it): so do we.
        self.optimizers = {
            player.name: self._build_optimizer(player=player)
            for player in self.players[1:]
            if player.parameters
        }
        amp_dtype = getattr(torch, config["amp_dtype"]) if config["amp_dtype"] else None
        device = self.device.type
        self.engine = StepEngine(
            model,
            autocast=(lambda: torch.autocast(device, dtype=amp_dtype)) if self.enable_amp else nullcontext,
            check_every=_CHECK_EVERY.get(device, 50),
            monitor_interval=config["monitor_interval"] or 0,
            check_gradients=bool(config["check_gradients"]),
            clip_before_unscale=bool(config["clip_before_unscale"]),
        )
        self.scalers = {
            player.name: torch.amp.GradScaler(device)
            for player in self.players
            if self.enable_amp and config["enable_scaler"]
        }
        self.streams = {
            player.name: RandomStream(config["seed"] + index, self.device)
            for index, player in enumerate(self.players)
            if index
        }
        self.turns_taken = dict.fromkeys((player.name for player in self.players), 0)
        self.steps_taken = dict.fromkeys(self.turns_taken, 0)
        self.batch_count = 0
        self.best_epoch: int | None = None
        self.progress = Progress(step=0, epoch=0.0, total_epochs=self.epochs)
        model.progress = self.progress
        self.report = Report(self)
        self._fresh: dict[str, Any] = {}
        self._new_statistics()

    # --- what INVTrainer changes ----------------------------------------------------------------

    def _players(self, config, model) -> tuple[Player, ...]:
        return (Player("min", tuple(model.parameters()), model.calculate_loss),)

    def _schedule(self, config, model) -> Schedule:
        return SINGLE

    def _joint(self) -> Callable[[Any], Mapping[str, Any]] | None:
        """Losses of all players by name from one forward pass; None where players move apart."""
        return None

    # --- building -------------------------------------------------------------------------------

    def _build_optimizer(self, **kwargs):
        """RecBole's method: ``params``, ``learner``, ``learning_rate``, ``weight_decay``, or ``player``."""
        player = kwargs.get("player", self.players[0])
        config = self.config.final_config_dict
        name = player.name
        return build_optimizer(
            kwargs.get("params", player.parameters),
            kwargs.get("learner", setting(config, name, "learner")),
            kwargs.get("learning_rate", setting(config, name, "learning_rate")),
            kwargs.get("weight_decay", setting(config, name, "weight_decay")),
            **({} if "learner" in kwargs else learner_arguments(config, name)),
        )

    def reset_optimizer(self, name: str | None = None) -> None:
        """Give a player (the first by default) an optimizer that remembers nothing.

        IRM does so when its penalty switches: the moments of Adam do not fit the new loss.
        """
        player = next(p for p in self.players if p.name == (name or self.players[0].name))
        if player is self.players[0]:
            self.optimizer = self._build_optimizer()
        else:
            self.optimizers[player.name] = self._build_optimizer(player=player)

    def _turns(self, loss_func) -> dict[str, Turn]:
        """A Turn for each player, over the optimizers of this moment."""
        turns = {}
        for player in self.players:
            first = player is self.players[0]
            clip = setting(self.config.final_config_dict, player.name, "clip_grad_norm")
            turns[player.name] = Turn(
                player,
                self.optimizer if first else self.optimizers.get(player.name),
                loss_func if first and loss_func is not None else player.loss,
                scaler=self.scalers.get(player.name),
                techniques=[ClipNorm(**clip)] if clip else [],
                stream=self.streams.get(player.name),
                others=tuple(p for o in self.players if o is not player for p in o.parameters),
                steps=self.steps_taken[player.name],
            )
        return turns

    # --- an epoch -------------------------------------------------------------------------------

    def fit(
        self,
        train_data,
        valid_data=None,
        verbose=True,
        saved=True,
        show_progress=False,
        callback_fn=None,
    ):
        """Train; arguments and result are those of RecBole's ``Trainer.fit``."""
        if saved and self.start_epoch >= self.epochs:
            self._save_checkpoint(-1, verbose=verbose)
        self._before_fit(train_data)
        for epoch in range(self.start_epoch, self.epochs):
            self._fit_epoch(train_data, epoch, verbose, show_progress)
            stop = False
            if self.eval_step <= 0 or not valid_data:
                if saved:
                    self._save_checkpoint(epoch, verbose=verbose)
            elif (epoch + 1) % self.eval_step == 0:
                stop = self._validate(valid_data, epoch, verbose, saved, show_progress, callback_fn)
            if saved:
                self._save_last(epoch, stop)
            self.report.write(epoch)
            if stop:
                break
        self._add_hparam_to_tensorboard(float(self.best_valid_score))
        self.tensorboard.flush()
        return self.best_valid_score, self.best_valid_result

    def _before_fit(self, train_data) -> None:
        if getattr(self.model, "needs_row_index", False):
            attach_row_index(train_data, self.config["INTER_IDX_FIELD"])
        self.eval_collector.data_collect(train_data)
        if self.config["train_neg_sample_args"].get("dynamic", False):
            train_data.get_model(self.model)
        self._call_model("on_fit_start", train_data)
        self._remember_loaders(train_data)

    def _fit_epoch(self, train_data, epoch: int, verbose: bool, show_progress: bool) -> None:
        self._new_statistics()
        self._fresh.clear()
        self._call_model("before_epoch", epoch, train_data)
        start = time()
        losses = self._train_epoch(train_data, epoch, show_progress=show_progress)
        self.train_loss_dict[epoch] = sum(losses) if isinstance(losses, tuple) else losses
        self._call_model("after_epoch", epoch, train_data)
        self.report.trained(epoch, time() - start, losses, verbose)

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        """One epoch: RecBole's method, for every player.

        Returns RecBole's sum over the batches of the first player's loss, a tuple for several parts.
        """
        self.model.train()
        turns = self._turns(loss_func)
        # RecBole's trainers hand over another loss for data (triples of a knowledge graph) that the
        # other players know nothing of.
        own_loss = loss_func is None or loss_func == self.players[0].loss
        statistics = PlayerStatistics(maximises=False)
        everyone = self.schedule.passes(epoch_idx, self.turns_taken)
        for names in everyone if own_loss else [(self.players[0].name,)]:
            self._run_pass(train_data, epoch_idx, names, turns, statistics, show_progress)
        for name, turn in turns.items():
            self.steps_taken[name] = turn.steps
        losses = statistics.losses
        return losses if len(losses) > 1 else sum(losses)

    def _run_pass(self, train_data, epoch, names, turns, first_statistics, show_progress) -> None:
        """One pass over the data in which the players ``names`` move."""
        alone = len(self.players) > 1 and self.schedule.turns[names[0]].unit == "epoch"
        if alone and not self._passes_of_turn.get(names[0]):
            self._call_model("on_phase_start", names[0], epoch)
        batches = self._progress_bar(train_data, epoch, names) if show_progress else train_data
        n_batches = max(len(train_data), 1)
        joint = self._joint()
        first = self.players[0].name
        for index, batch in enumerate(batches):
            if batch.interaction and next(iter(batch.interaction.values())).device != self.device:
                batch = batch.to(self.device)
            movers = self._movers(names, epoch) if len(self.players) > 1 else names
            for name, outcome in self._move(movers, turns, batch, joint, train_data):
                if outcome.parts or outcome.gain is not None:
                    self.statistics[name].add(outcome)
                    if name == first:
                        first_statistics.add(outcome)
            if first in movers:
                self.progress.advance(epoch + (index + 1) / n_batches)
                self._reset_at_switch(turns)
            self.batch_count += not alone
            if show_progress:
                self._show_losses(batches)
        if alone:
            self._end_pass(names[0], epoch, turns)

    def _end_pass(self, name: str, epoch: int, turns: dict[str, Turn]) -> None:
        """A turn of whole epochs is over with the last of its passes."""
        self._passes_of_turn[name] = self._passes_of_turn.get(name, 0) + 1
        if self._passes_of_turn[name] < self.schedule.turns[name].steps:
            return
        self._passes_of_turn[name] = 0
        self.turns_taken[name] += 1
        if self._call_model("on_phase_end", name, epoch):
            self._renew_first(turns)

    def _renew_first(self, turns: dict[str, Turn]) -> None:
        self.reset_optimizer()
        turns[self.players[0].name].optimizer = self.optimizer

    def _movers(self, names, epoch: int) -> list[str]:
        movers = self.schedule.movers(names, epoch, self.batch_count, self.turns_taken)
        for name in movers:
            if self.schedule.turns[name].unit == "step":
                self.turns_taken[name] += 1
        return movers

    def _move(self, movers, turns, batch, joint, train_data) -> Iterable[tuple[str, Any]]:
        """Every mover's steps on this batch: together on one graph where that is possible."""
        together: list[str] = []
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
            for step in range(name in together, steps):
                yield name, self.engine.run(turns[name], self._data_of(name, own, batch, train_data))

    def _may_share(self, turn: Turn) -> bool:
        return turn.player.move is None and self.schedule.turns[turn.player.name].data == "same"

    def _reset_at_switch(self, turns: dict[str, Turn]) -> None:
        switches = getattr(self.model, "penalty_switches", None)
        if switches is not None and switches():
            self._renew_first(turns)

    def _data_of(self, name: str, own, batch, train_data):
        if own.data == "same" or own.unit == "epoch":
            return batch
        if own.data == "none":
            return None
        if isinstance(train_data, KnowledgeBasedDataLoader) and train_data.state == KGDataLoaderState.RSKG:
            raise ConfigError(
                f"{name}_data: fresh does not work with a knowledge graph, whose loader cannot be "
                "read twice at a time; write same"
            )
        for _ in range(2):
            if name not in self._fresh:
                self._fresh[name] = iter(train_data)
            fresh = next(self._fresh[name], None)
            if fresh is not None:
                return fresh.to(self.device)
            del self._fresh[name]
        raise ConfigError("the training data has no batch")

    # --- validation -----------------------------------------------------------------------------

    def _validate(self, valid_data, epoch, verbose, saved, show_progress, callback_fn) -> bool:
        """Validate, keep the model if it is the best so far; returns whether to stop."""
        start = time()
        score, result = self._valid_epoch(valid_data, show_progress=show_progress)
        score = float(score)
        start_epoch = self.config["selection_start_epoch"]
        # A best model from before the penalty or the adversary set in only stands in for one.
        stand_in = self.best_epoch is not None and self.best_epoch < start_epoch <= epoch
        improved = stand_in or self._improves(score)
        if improved:
            self.best_valid_score, self.cur_step = score, 0
            self.best_valid_result, self.best_epoch = result, epoch
        else:
            self.cur_step += epoch >= start_epoch
        self.report.validated(epoch, time() - start, score, result, verbose)
        if improved and saved:
            self._save_checkpoint(epoch, verbose=verbose)
        if callback_fn:
            callback_fn(epoch, score)
        stop = self.cur_step > self.stopping_step
        if stop and verbose:
            self.logger.info(
                "Finished training, best eval result in epoch %s", self.best_epoch
            )
        return stop

    def _improves(self, score: float) -> bool:
        """RecBole takes an equal score for better, so that a collapsed model never stops."""
        if score == self.best_valid_score:
            return bool(self.config["tie_is_improvement"])
        if self.valid_metric_bigger:
            return score > self.best_valid_score
        return score < self.best_valid_score

    @torch.no_grad()
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """RecBole's ``evaluate``: metrics by name, as Python numbers."""
        if not eval_data:
            return None
        if load_best_model:
            self._load_weights(model_file or self.saved_model_file)
        result = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        return {name: float(value) for name, value in result.items()}

    # --- small things ---------------------------------------------------------------------------

    def _call_model(self, hook: str, *arguments) -> Any:
        method = getattr(self.model, hook, None)
        return method(*arguments) if method is not None else None

    def _new_statistics(self) -> None:
        self.statistics = {p.name: PlayerStatistics(p.maximises) for p in self.players}
        self._passes_of_turn: dict[str, int] = {}
        self._last_shown = 0.0

    def _progress_bar(self, train_data, epoch: int, names):
        who = f" {names[0]}" if len(self.players) > 1 and len(names) == 1 else ""
        return tqdm(
            train_data,
            total=len(train_data),
            ncols=100,
            desc=set_color(f"Train {epoch:>5}{who}", "pink"),
        )

    def _show_losses(self, bar) -> None:
        """The losses beside the bar, twice a second: each reading makes the host wait."""
        if time() - self._last_shown < 0.5:
            return
        self._last_shown = time()
        shown = [f"{n}: {sum(s.losses) * s.sign / s.steps:.4g}" for n, s in self.statistics.items() if s.steps]
        bar.set_postfix_str(set_color(", ".join(shown), "yellow"))

    def _check_nan(self, loss):
        if not np.isfinite(float(loss)):
            raise ValueError(f"Training loss is {float(loss)}")

