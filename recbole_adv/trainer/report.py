"""What a trainer says: the log, TensorBoard, W&B and metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import torch
from recbole.utils import dict2str, set_color

from recbole_adv import processes


class Report:
    """Collects the figures of an epoch and writes them to wherever they are wanted.

    Figures are named ``<player>/<figure>``: ``min/loss``, ``max/objective``, ``max/gain``,
    ``min/gradient_norm``, ``max/turns``; a model adds its own by ``log_values()``.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._line: dict[str, Any] = {}

    def trained(self, epoch: int, seconds: float, losses: Any, verbose: bool) -> None:
        """After the training part of an epoch."""
        trainer = self.trainer
        figures = self.figures()
        self._line = {"epoch": epoch, "train_seconds": round(seconds, 4), **figures}
        if verbose:
            if len(trainer.players) > 1:
                trainer.logger.info(self._game_line(epoch, seconds, figures))
            else:
                trainer.logger.info(
                    trainer._generate_train_loss_output(epoch, 0.0, seconds, losses)
                )
        trainer._add_train_loss_to_tensorboard(epoch, losses)
        for name, value in figures.items():
            if isinstance(value, (int, float)):
                trainer.tensorboard.add_scalar(name, value, epoch)
        trainer.wandblogger.log_metrics(
            {"epoch": epoch, "train_loss": losses, "train_step": epoch, **figures}, head="train"
        )

    def validated(self, epoch: int, seconds: float, score: float, result: dict, verbose: bool):
        """After a validation."""
        trainer = self.trainer
        self._line |= {"valid_seconds": round(seconds, 4), "valid_score": score, "valid": result}
        if verbose:
            trainer.logger.info(
                set_color("epoch %d evaluating", "green")
                + " ["
                + set_color("time", "blue")
                + ": %.2fs, "
                + set_color("valid_score", "blue")
                + ": %f]",
                epoch,
                seconds,
                score,
            )
            trainer.logger.info(set_color("valid result", "blue") + ": \n" + dict2str(result))
        trainer.tensorboard.add_scalar("Valid_score", score, epoch)
        trainer.wandblogger.log_metrics({**result, "valid_step": epoch}, head="valid")

    def figures(self) -> dict[str, Any]:
        """The figures of the epoch; this reads the device."""
        trainer = self.trainer
        figures: dict[str, Any] = {}
        for name, statistics in trainer.loop.statistics.items():
            figures |= {f"{name}/{k}": v for k, v in statistics.figures().items()}
            if len(trainer.players) > 1:
                figures[f"{name}/turns"] = trainer.loop.turns_taken[name]
        figures |= trainer.techniques.figures()
        values = getattr(trainer.model, "log_values", dict)()
        return figures | {name: _plain(value) for name, value in values.items()}

    def _game_line(self, epoch: int, seconds: float, figures: dict[str, Any]) -> str:
        places = self.trainer.config["loss_decimal_place"] or 4
        shown = [
            f"{set_color(name.replace('/', ' '), 'blue')}: {value:.{places}g}"
            for name, value in figures.items()
            if isinstance(value, (int, float)) and name.split("/")[-1] in _SHOWN
        ]
        head = set_color(f"epoch {epoch} training", "green")
        return f"{head} [{set_color('time', 'blue')}: {seconds:.2f}s, {', '.join(shown)}]"

    def write(self) -> None:
        """Append the epoch to metrics.jsonl in the run's directory."""
        run_dir = self.trainer.config["run_dir"]
        if not run_dir or not self._line or not processes.is_first():
            return
        with open(os.path.join(run_dir, "metrics.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(self._line)) + "\n")


_SHOWN = ("loss", "objective", "gain", "turns")


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return value


def finite(value: Any) -> Any:
    """The same with nan and inf, which JSON lacks, as None; numpy's numbers as Python's."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
