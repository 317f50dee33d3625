"""The learning rate as a function of how far a player is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from recbole_adv.errors import ConfigError
from recbole_adv.technique.base import Step, Technique
from recbole_adv.technique.planned_steps import planned_epochs, planned_steps

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer
    from recbole_adv.trainer.turn import Turn

_RAMPS = ("cosine", "linear")  # they end, and end at min_ratio


def rate_factor(
    kind: str,
    position: int,
    *,
    warmup: int = 0,
    total: int = 1,
    min_ratio: float = 0.0,
    step_size: int = 1,
    gamma: float = 0.5,
    reductions: int = 0,
) -> float:
    r"""What the base rate is multiplied with at ``position`` (steps or epochs done, from 0).

    In the warm-up (position + 1) / warmup, so that no step has the rate 0. With
    n = position - warmup, T = total - warmup, p = min(1, n / T), m = min_ratio:

    ===============  =====================================================
    constant         1
    cosine           m + (1 - m) (1 + cos(pi p)) / 2
    linear           m + (1 - m) (1 - p)
    step             max(m, gamma^floor(n / step_size))
    inverse_sqrt     max(m, (warmup / (warmup + n))^0.5)
    plateau          max(m, gamma^reductions), also during the warm-up
    ===============  =====================================================

    After ``total`` the rate stays where it is: p is clamped, nothing heats up again.
    """
    warming = min(1.0, (position + 1) / warmup) if warmup else 1.0
    n = max(0, position - warmup)
    if kind in _RAMPS:
        p = min(1.0, n / max(1, total - warmup))
        falling = (1 + math.cos(math.pi * p)) / 2 if kind == "cosine" else 1 - p
        return warming * (min_ratio + (1 - min_ratio) * falling)
    if kind == "constant":
        return warming
    falling = {
        "step": lambda: gamma ** (n // step_size),
        "inverse_sqrt": lambda: math.sqrt(warmup / (warmup + n)),
        "plateau": lambda: gamma**reductions,
    }[kind]()
    return warming * max(min_ratio, falling)


class LrSchedule(Technique):
    """Sets the rate of every group of the player's optimizer before each of its steps.

    The rate is a function of the player's own steps that were not left out (or of the epoch) and of
    nothing else, so it is the same after resuming, with a GradScaler that leaves out steps, for an
    optimizer that is made anew in mid-run, and for RecVAETrainer's two. It multiplies each group's
    ``initial_lr``, which is the group's rate before the first step; who lowers the rate otherwise
    multiplies ``initial_lr`` too. Logged are the factor and the first group's rate.

    Args:
        kind: one of ``constant cosine linear step inverse_sqrt plateau``, see :func:`rate_factor`.
        unit: ``step`` or ``epoch``: what ``warmup``, ``total`` and ``step_size`` count, and how
            often the rate changes.
        warmup, total, min_ratio, step_size: as there; total None is the whole run.
        gamma: what the rate is multiplied with by ``step`` and ``plateau``.
        patience: validations without a better score after which ``plateau`` lowers the rate.
    """

    concerns: ClassVar[str] = "all"

    def __init__(
        self,
        *,
        kind: str = "cosine",
        unit: str = "step",
        warmup: int = 0,
        total: int | None = None,
        min_ratio: float = 0.0,
        step_size: int = 10,
        gamma: float = 0.5,
        patience: int = 3,
    ):
        if kind == "inverse_sqrt" and not warmup:
            raise ConfigError(
                "lr_schedule_kind: inverse_sqrt falls as the root of lr_schedule_warmup / steps, got "
                "a warm-up of 0; write lr_schedule_warmup: 1000, or another kind"
            )
        self.kind, self.unit, self.patience = kind, unit, patience
        self.warmup, self.total = warmup, total
        self.shape = {"min_ratio": min_ratio, "step_size": step_size, "gamma": gamma}
        self.epoch = self.reductions = self.without_better = 0
        self.best: float | None = None
        self.last: dict[str, float] = {}

    def attach(self, trainer: AdvTrainer, player: Player) -> None:
        self.trainer, self.player = trainer, player
        if self.kind == "plateau" and trainer.eval_step <= 0:
            raise ConfigError(
                "lr_schedule_kind: plateau follows the validation score, got eval_step "
                f"{trainer.eval_step}; write eval_step: 1, or another kind"
            )

    def before_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if self.total is None and self.kind in _RAMPS:
            by_step = self.unit == "step"
            trainer = self.trainer
            self.total = planned_steps(trainer, self.player) if by_step else planned_epochs(trainer)
        if self.kind in _RAMPS and self.total <= self.warmup:
            raise ConfigError(
                f"lr_schedule_warmup must end before the schedule does, after {self.total} "
                f"{self.unit}s of player {self.player.name!r}, got {self.warmup}"
            )

    def factor(self, steps: int) -> float:
        """What the base rates are multiplied with after ``steps`` steps of the player."""
        position = steps if self.unit == "step" else self.epoch
        return rate_factor(
            self.kind,
            position,
            warmup=self.warmup,
            total=self.total or 1,
            reductions=self.reductions,
            **self.shape,
        )

    def wrap_step(self, step: Step, turn: Turn) -> Step:
        def scheduled() -> None:
            factor = self.factor(turn.steps)
            groups = turn.optimizer.param_groups
            for group in groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
            self.last = {"factor": factor, "learning_rate": groups[0]["lr"]}
            step()

        return scheduled

    def after_validation(self, epoch: int, score: float) -> None:
        bigger = self.trainer.valid_metric_bigger
        better = self.best is None or (score > self.best if bigger else score < self.best)
        if better:
            self.best, self.without_better = score, 0
            return
        self.without_better += 1
        if self.without_better > self.patience:
            self.reductions, self.without_better = self.reductions + 1, 0

    def figures(self) -> dict[str, float]:
        return self.last

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "without_better": self.without_better,
            "reductions": self.reductions,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.without_better = state["best"], state["without_better"]
        self.reductions = state["reductions"]
