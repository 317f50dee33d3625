"""What a trainer writes and reads, so that an interrupted run goes on exactly."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import recbole.trainer.trainer as recbole_trainer
import torch
from recbole.utils import set_color
from torch.utils.tensorboard import SummaryWriter

from recbole_adv import checkpoint, processes
from recbole_adv.errors import CheckpointError
from recbole_adv.model_state import random_state, set_random_state
from recbole_adv.trainer.process_state import (
    NoTensorBoard,
    best_state,
    states_of_processes,
    take_back_own,
)
from recbole_adv.trainer.snapshot import copied

OUR_KEY = "recbole_adv"
"""The key of a checkpoint that holds what RecBole's does not."""


class RunStateMixin:
    """Checkpoints of a trainer: the best model, and the last epoch's end for ``--resume``."""

    _loaders: dict[str, Any]
    _resumed: dict[str, Any] | None = None

    @contextmanager
    def _files_in_run_dir(self, config) -> Iterator[None]:
        """RecBole's constructor inside puts its TensorBoard files into the run's directory.

        The name of the best model's file, ``saved_model_file``, is set afterwards; no two runs
        share one, where RecBole's names have the resolution of a second.
        """
        run_dir = config["run_dir"]
        stock = recbole_trainer.get_tensorboard
        if not processes.is_first():
            recbole_trainer.get_tensorboard = lambda logger: NoTensorBoard()
        elif run_dir:
            recbole_trainer.get_tensorboard = lambda logger: SummaryWriter(
                os.path.join(run_dir, "tensorboard")
            )
        try:
            os.makedirs(config["checkpoint_dir"], exist_ok=True)  # RecBole's fails where two do it
            yield
        except OSError as error:
            raise CheckpointError(
                f"checkpoint_dir {config['checkpoint_dir']!r} cannot be written: {error.strerror}"
            ) from error
        finally:
            recbole_trainer.get_tensorboard = stock
        folder = Path(self.checkpoint_dir)
        if run_dir and folder == Path(run_dir):
            name = "model"
        else:
            unique = Path(run_dir).name if run_dir else f"{config['model']}-{uuid.uuid4().hex[:12]}"
            name = unique
        self.saved_model_file = str(folder / f"{name}.pth")
        self.last_file = str(folder / ("last.pth" if name == "model" else f"{name}-last.pth"))

    # --- techniques -----------------------------------------------------------------------------

    def _attach_techniques(self) -> None:
        """Once, before the first step and before their state is taken back."""
        if not self._attached:
            self._attached = True
            self.techniques.attach(self)

    def _evaluation_weights(self):
        """The context of the weights to validate, test and save."""
        return self.techniques.evaluation_weights(self.model)

    # --- writing --------------------------------------------------------------------------------

    def _state(self, epoch: int) -> dict[str, Any]:
        """RecBole's keys, and under ``recbole_adv`` everything else that changes in training."""
        tables = self.loop.engine.gradients.sparse_tables
        return {
            "config": checkpoint.config_as_data(self.config),
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "state_dict": self._saved_weights(),
            "other_parameter": checkpoint.other_parameter(self.model),
            "optimizer": self.optimizer.state_dict(),
            OUR_KEY: {
                "players": {p.name: len(p.parameters) for p in self.players},
                "optimizers": {
                    name: {"learner": type(optimizer).__name__, "state": optimizer.state_dict()}
                    for name, optimizer in self._all_optimizers().items()
                },
                "scalers": {n: s.state_dict() for n, s in self.scalers.items()},
                "loop": self.loop.state_dict(),
                "sparse_tables": tables.state_dict() if tables is not None else None,
                "techniques": self.techniques.state_dict(),
                "training_weights": (
                    self.model.state_dict() if self.techniques.moves_weights else None
                ),
                "best_valid_result": self.best_valid_result,
                "best_epoch": self.best_epoch,
                "train_loss": self.train_loss_dict,
                "random": random_state(),
                "loaders": {name: g.get_state() for name, g in self._generators().items()},
                "model_class": type(self.model).__name__,
                **states_of_processes(self),
            },
        }

    def _saved_weights(self) -> dict[str, Any]:
        """Those that were validated."""
        if not self.techniques.moves_weights:
            return self.model.state_dict()
        with self._evaluation_weights():
            return {name: value.clone() for name, value in self.model.state_dict().items()}

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        """Write the state aside and rename it; RecBole's method."""
        file = kwargs.pop("saved_model_file", self.saved_model_file)
        self._write(epoch, file)
        self._saved_epoch = epoch
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {file}")

    def save_pretrained_model(self, epoch, saved_model_file):
        """RecBole's method of its pre-training trainers."""
        self._save_checkpoint(epoch, verbose=False, saved_model_file=saved_model_file)
        self.saved_model_file = saved_model_file

    def _save_last(self, epoch: int, stopped: bool) -> None:
        """Keep the end of this epoch, from which ``--resume`` goes on."""
        interval = self.config["checkpoint_interval"]
        last = stopped or epoch + 1 == self.epochs
        if not interval or ((epoch + 1) % interval and not last):
            return
        if getattr(self, "_saved_epoch", None) != epoch:
            self._write(epoch, self.last_file)
        elif processes.is_first():
            checkpoint.copy(self.saved_model_file, self.last_file)

    def _write(self, epoch: int, file: str) -> None:
        state = self._state(epoch)
        if processes.is_first():
            checkpoint.save(state, file)

    # --- reading --------------------------------------------------------------------------------

    def _load_weights(self, file: str) -> None:
        """Put the weights of a checkpoint into the model."""
        state = best_state(file, self.device)
        checkpoint.load_weights(self.model, state, file)
        self.logger.info("Loading the model of epoch %s from %s", state.get("epoch"), file)

    def resume_checkpoint(self, resume_file):
        """Go on where the checkpoint was written; with ``last.pth``, exactly."""
        file = str(resume_file)
        state = checkpoint.load(file, map_location=self.device)
        named = state["config"].get("model")
        if named != self.config["model"]:
            raise CheckpointError(
                f"{file} holds a {named}, not a {self.config['model']}; start with --model={named}"
            )
        self.start_epoch = state["epoch"] + 1
        self.cur_step = state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        checkpoint.load_weights(self.model, state, file)
        ours = state.get(OUR_KEY)
        if ours is None:
            self.optimizer.load_state_dict(state["optimizer"])
            self.logger.warning(
                "%s was written by RecBole's own trainer, which does not keep the random state: the "
                "run goes on, but not exactly as it would have",
                file,
            )
        else:
            self._take_back(ours, file)
        if not file.endswith("last.pth"):
            self.saved_model_file = file
        self.logger.info("Checkpoint loaded. Resume training from epoch %d", self.start_epoch)

    def _take_back(self, ours: dict[str, Any], file: str) -> None:
        layout = {p.name: len(p.parameters) for p in self.players}
        take_back_own(ours, file)
        if ours["players"] != layout:
            raise CheckpointError(
                f"{file} was written for the players {ours['players']} (with their numbers of "
                f"parameters), but the model has {layout}; use the configuration it was written with"
            )
        for name, optimizer in self._all_optimizers().items():
            saved = ours["optimizers"].get(name, {"learner": "none"})
            if saved["learner"] != type(optimizer).__name__:
                raise CheckpointError(
                    f"{name} in {file} is {saved['learner']}, but the configuration makes "
                    f"{type(optimizer).__name__}; use the learner and sparse_embeddings it was written with"
                )
            # From the host: torch leaves Adam's counts of steps where they are, and reads them.
            optimizer.load_state_dict(copied(saved["state"], torch.device("cpu")))
        for name, scaler in self.scalers.items():
            if name in ours["scalers"]:
                scaler.load_state_dict(ours["scalers"][name])
        self.loop.load_state_dict(ours["loop"])
        if ours.get("sparse_tables"):
            self.loop.engine.gradients.sparse_tables.load_state_dict(ours["sparse_tables"])
        if ours.get("training_weights") is not None:
            self.model.load_state_dict(ours["training_weights"])
        self._attach_techniques()
        self.techniques.load_state_dict(ours.get("techniques", {}), file)
        self.best_valid_result = ours["best_valid_result"]
        self.best_epoch = ours["best_epoch"]
        self.train_loss_dict = dict(ours["train_loss"])
        self._resumed = ours

    def _all_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Every optimizer by name, once.

        RecVAETrainer has two and calls one of them ``optimizer`` while it trains with it.
        """
        own = {n: v for n, v in vars(self).items() if isinstance(v, torch.optim.Optimizer)}
        special = {n: v for n, v in own.items() if n != "optimizer"}
        players = {f"optimizer_{name}": v for name, v in self.optimizers.items()}
        return {**(special or own), **players}

    # --- the data loaders -----------------------------------------------------------------------

    def _remember_loaders(self, train_data) -> None:
        """Note the loaders, whose order is part of the state, and set it when a run is resumed."""
        inner = {n: v for n, v in vars(train_data).items() if hasattr(v, "generator")}
        self._loaders = (
            inner if inner and not hasattr(train_data, "generator") else {"": train_data}
        )
        if self._resumed is not None:
            for name, generator in self._generators().items():
                generator.set_state(self._resumed["loaders"][name].cpu())
            set_random_state(self._resumed["random"])
            self._resumed = None

    def _generators(self) -> dict[str, torch.Generator]:
        loaders = getattr(self, "_loaders", {})
        return {
            n: x.generator for n, x in loaders.items() if getattr(x, "generator", None) is not None
        }
