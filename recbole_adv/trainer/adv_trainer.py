"""RecBole's Trainer around the step engine."""

from __future__ import annotations

from contextlib import nullcontext
from time import time

import torch
from recbole.trainer import Trainer

from recbole_adv import processes
from recbole_adv.evaluation.metrics import JoinedEvaluator
from recbole_adv.game.compiled_loss import compiled
from recbole_adv.game.optimizer import optimizer_of
from recbole_adv.game.penalty import Progress
from recbole_adv.game.player import Player, only_player
from recbole_adv.game.schedule import Schedule, schedule_of
from recbole_adv.host_memory import keeps_memory
from recbole_adv.loader import training_loader
from recbole_adv.objective.parts import flat
from recbole_adv.trainer.averaging import agree_on_buffers, start_together
from recbole_adv.trainer.game_loop import GameLoop, Joint, call_hook
from recbole_adv.trainer.report import Report
from recbole_adv.trainer.run_state import RunStateMixin
from recbole_adv.trainer.selection import SelectionMixin
from recbole_adv.trainer.snapshot import SnapshotMixin
from recbole_adv.trainer.sparse_tables import SparseTables
from recbole_adv.trainer.step import StepEngine
from recbole_adv.trainer.technique_set import TechniqueSet, check_takes_steps
from recbole_adv.trainer.training_rows import attach_row_index, take_rows_by_tensor
from recbole_adv.trainer.turn import Turn

_CHECK_EVERY = 50  # steps between two looks at the loss where looking makes the host wait


class AdvTrainer(SelectionMixin, RunStateMixin, SnapshotMixin, Trainer):
    """Trains any RecBole model; with one player and nothing added, exactly as RecBole does.

    It slides under RecBole's special trainers (:func:`recbole_adv.trainer.compose.compose`), whose
    ``super()._train_epoch()`` then lands here.

    Attributes:
        players: who plays; one here, any number in INVTrainer.
        optimizer: the first player's; ``optimizers``: the others', by name.
        loop: plays the schedule and counts.
        techniques: of each player, by name.
        train_data: the loader, from the start of training on.
        best_epoch: the epoch of the best model so far.
    """

    def __init__(self, config, model):
        self.players: tuple[Player, ...] = self._players(config, model)
        self.schedule: Schedule = self._schedule(config, model)
        with self._files_in_run_dir(config):
            super().__init__(config, model)
        if processes.count() > 1:
            self.evaluator = JoinedEvaluator(self.evaluator)
        self.optimizers = {
            player.name: self._build_optimizer(player=player)
            for player in self.players[1:]
            if player.parameters
        }
        self.scalers = {
            player.name: torch.amp.GradScaler(self.device.type)
            for player in self.players
            if self.enable_amp and config["enable_scaler"]
        }
        progress = Progress(total_epochs=self.epochs)
        model.progress = progress
        self.loop = GameLoop(
            model,
            self.players,
            self.schedule,
            self._engine(config, model),
            progress,
            processes.own_seed(config["seed"]),
            self.device,
            bool(config["drop_last"]),
            self._renew_first,
        )
        self.techniques = TechniqueSet(self)
        self.loop.engine.gradients.tolerates_nonfinite = any(
            technique.tolerates_nonfinite for technique in self.techniques.all()
        )
        if config["sparse_embeddings"]:
            check_takes_steps(self, "sparse gradients", "sparse_embeddings: True")
            self.loop.engine.gradients.sparse_tables = SparseTables(model, self.players)
        self.report = Report(self)
        self.best_epoch: int | None = None
        self._compiled = compiled(self.players[0].loss) if config["compile"] else None
        self._weights_loaded = self._attached = False
        self._epoch: int | None = None

    # --- what INVTrainer changes ----------------------------------------------------------------

    def _players(self, config, model) -> tuple[Player, ...]:
        return only_player(model, config["max_modules"] or ())

    def _schedule(self, config, model) -> Schedule:
        # min_steps counts for one player too: several steps on one batch, as Free AT takes them.
        return schedule_of(config.final_config_dict, [self.players[0].name])

    def _joint(self) -> Joint | None:
        """Losses of all players by name from one forward pass; None where players move apart."""
        return None

    # --- building -------------------------------------------------------------------------------

    def _engine(self, config, model) -> StepEngine:
        device = self.device.type
        dtype = getattr(torch, config["amp_dtype"]) if config["amp_dtype"] else None
        return StepEngine(
            model,
            autocast=(lambda: torch.autocast(device, dtype)) if self.enable_amp else nullcontext,
            check_every=1 if device == "cpu" else _CHECK_EVERY,
            monitor_interval=config["monitor_interval"] or 0,
            check_gradients=bool(config["check_gradients"]),
            clip_before_unscale=bool(config["clip_before_unscale"]),
        )

    def _build_optimizer(self, player=None, **given):
        """RecBole's method, by ``params``, ``learner``, ``learning_rate``, ``weight_decay``; or by player."""
        player = player or self.players[0]
        first = player is self.players[0]
        return optimizer_of(self.config.final_config_dict, player, first, **given)

    def _renew_first(self) -> torch.optim.Optimizer:
        """Give the first player an optimizer that remembers nothing.

        IRM wants one when its penalty switches: the moments of Adam do not fit the new loss.
        """
        factor = self.rate_factor
        self.optimizer = self._build_optimizer()
        self.set_rate_factor(factor)
        return self.optimizer

    def _turns(self, loss_func=None) -> dict[str, Turn]:
        """A Turn for each player, over the optimizers of this moment: RecVAETrainer swaps them."""
        turns, own = {}, self.players[0].loss
        for player in self.players:
            first = player is self.players[0]
            loss = player.loss
            if first and loss_func is not None and loss_func != own:
                loss = loss_func
            elif first and self._compiled is not None:
                loss = self._compiled
            turns[player.name] = Turn(
                player,
                self.optimizer if first else self.optimizers.get(player.name),
                loss,
                scaler=self.scalers.get(player.name),
                techniques=list(self.techniques[player.name].values()),
                stream=self.loop.streams.get(player.name),
                others=tuple(p for o in self.players if o is not player for p in o.parameters),
                steps=self.loop.steps_taken[player.name],
                on_triples=getattr(loss_func, "__name__", "") == "calculate_kg_loss",
            )
        return turns

    # --- training -------------------------------------------------------------------------------

    @keeps_memory
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
        if saved and self.start_epoch >= self.epochs and self.best_epoch is None:
            self._save_checkpoint(-1, verbose=verbose)  # as RecBole, unless there is a best model
        train_data = self._before_fit(train_data)
        self.eval_step = min(self.eval_step, self.epochs)  # TraditionalTrainer shortens the run
        over = self.cur_step > self.stopping_step  # a resumed run that had stopped early
        for epoch in range(self.start_epoch, self.start_epoch if over else self.epochs):
            self._fit_epoch(train_data, epoch, verbose, show_progress)
            stop = False
            if self.eval_step <= 0 or not valid_data:
                if saved:
                    self._save_checkpoint(epoch, verbose=verbose)
            elif (epoch + 1) % self.eval_step == 0:
                stop = self._validate(valid_data, epoch, verbose, saved, show_progress, callback_fn)
            if saved:
                self._save_last(epoch, stop)
            self.report.write()
            if stop:
                break
        if saved and valid_data and self.best_epoch is None and self.start_epoch < self.epochs:
            self._save_checkpoint(epoch, verbose=verbose)  # no score was a number
        for technique in self.techniques.all():
            technique.after_fit()
        self._add_hparam_to_tensorboard(float(self.best_valid_score))
        self.tensorboard.flush()
        return self.best_valid_score, self.best_valid_result

    def _before_fit(self, train_data):
        """Get everything ready for the first epoch; returns the loader to train with."""
        take_rows_by_tensor(train_data)
        if getattr(self.model, "needs_row_index", False):
            attach_row_index(train_data, self.config["INTER_IDX_FIELD"])
        train_data = self.train_data = training_loader(train_data, self.config, self.device)
        self._attach_techniques()
        # RecBole does not find the data of a loader that has one of a knowledge graph beside it.
        self.eval_collector.data_collect(getattr(train_data, "general_dataloader", train_data))
        if self.config["train_neg_sample_args"].get("dynamic", False):
            train_data.get_model(self.model)
        call_hook(self.model, "on_fit_start", train_data)
        self._remember_loaders(train_data)
        return train_data

    def _fit_epoch(self, train_data, epoch: int, verbose: bool, show_progress: bool) -> None:
        self.loop.begin_epoch()
        call_hook(self.model, "before_epoch", epoch, train_data)
        start = time()
        losses = flat(self._train_epoch(train_data, epoch, show_progress=show_progress))
        self.train_loss_dict[epoch] = sum(losses) if isinstance(losses, tuple) else losses
        call_hook(self.model, "after_epoch", epoch, train_data)
        self.report.trained(epoch, time() - start, losses, verbose)

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        """One epoch: RecBole's method, for every player.

        Returns RecBole's sum over the batches of the first player's loss, a tuple for several parts.
        """
        start_together(self.model)  # hooks of the model may have drawn random weights
        self.model.train()
        self._weights_loaded = False
        if epoch_idx != self._epoch:
            self._epoch, self.train_data = epoch_idx, train_data
            self._attach_techniques()  # RecBole's pre-training does not come by ``_before_fit``
            for technique in self.techniques.all():
                technique.before_epoch(epoch_idx)
        # RecBole's trainers hand over another loss for data (triples of a knowledge graph) that the
        # other players know nothing of.
        first_alone = loss_func is not None and loss_func != self.players[0].loss
        losses = self.loop.run(
            train_data, epoch_idx, self._turns(loss_func), self._joint(), first_alone, show_progress
        ).losses
        agree_on_buffers(self.model)
        return losses if len(losses) > 1 else sum(losses)
