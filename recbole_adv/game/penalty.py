"""How much a penalty weighs as training goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from recbole_adv.errors import ConfigError, suggest

KINDS = ("constant", "step", "linear", "dann")
UNITS = ("step", "epoch")


@dataclass
class Progress:
    """How far training is, from the min player's point of view.

    step: the batches that it has moved on so far, its optimizer's steps unless ``gradient_accumulation`` or
    ``min_steps`` take fewer or more; epoch: 2.25 is a quarter through the third epoch;
    total_epochs: those asked for; previous_epoch: ``epoch`` at its previous step, None where all
    epochs have had equally many steps. Before the first step all are 0.
    """

    step: int = 0
    epoch: float = 0.0
    total_epochs: int = 1
    previous_epoch: float | None = None

    def advance(self, epoch: float) -> None:
        """Note that a step was taken and that the next one is at ``epoch``."""
        self.previous_epoch = self.epoch
        self.step, self.epoch = self.step + 1, epoch

    def last(self) -> Progress:
        """Where the last step was taken, for the log; the start before the first one."""
        if self.previous_epoch is None:
            return self
        return replace(self, step=self.step - 1, epoch=self.previous_epoch)


@dataclass(frozen=True)
class PenaltySchedule:
    """The weight of a penalty as a function of progress; it keeps no state.

    With t the step or epoch and p = (t - start) / (stop - start), clamped to [0, 1]:

    constant: weight.
    step:     ``initial`` while t < start, ``weight`` from start on (IRM, V-REx: initial 1).
    linear:   initial + (weight - initial) p.
    dann:     initial + (weight - initial) (2 / (1 + exp(-10 p)) - 1), the ramp of Ganin et al.
              (JMLR 2016): ``initial`` at the start, 0.99991 of the way at the end. In InvPref's
              official code p is never below 1, so that its ramp is flat; not so here.

    stop: end of a ramp; None is the end of training, for which unit must be 'epoch'.
    reset_optimizer: whether the trainer makes the min player's optimizer anew where 'step'
    switches (DomainBed: Adam's averages belong to the other objective).
    """

    kind: str = "constant"
    weight: float = 1.0
    initial: float = 0.0
    start: float = 0.0
    stop: float | None = None
    unit: str = "epoch"
    reset_optimizer: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (("kind", self.kind, KINDS), ("unit", self.unit, UNITS)):
            if value not in allowed:
                raise ConfigError(
                    f"a penalty's {name} must be one of {', '.join(allowed)}, got {value!r}"
                    + (suggest(str(value), allowed) or f"; write {allowed[0]}")
                )
        for name in ("weight", "initial", "start"):
            number = getattr(self, name)
            if not (math.isfinite(number) and number >= 0):
                raise ConfigError(
                    f"a penalty's {name} must be a finite number >= 0, got {number}; write 0 or 1"
                )
        self._check_stop()
        if self.reset_optimizer and self.kind != "step":
            raise ConfigError(
                f"reset_optimizer needs a penalty that switches, got kind {self.kind!r}; "
                "write kind: step or reset_optimizer: False"
            )

    def _check_stop(self) -> None:
        ramp = self.kind in ("linear", "dann")
        if self.stop is None:
            if ramp and self.unit == "step":
                raise ConfigError(
                    f"a {self.kind!r} penalty in steps needs its end, got stop None; write stop, "
                    "or unit: epoch for a ramp to the end of training"
                )
        elif not ramp:
            raise ConfigError(
                f"stop is for penalties that ramp, got stop {self.stop} with kind {self.kind!r}; "
                "write kind: linear or leave stop out"
            )
        elif not self.start < self.stop < math.inf:
            raise ConfigError(
                f"a penalty's stop must come after its start {self.start}, got {self.stop}; "
                f"write stop: {self.start + 1:g}"
            )

    def _now(self, progress: Progress) -> float:
        return progress.step if self.unit == "step" else progress.epoch

    def __call__(self, progress: Progress) -> float:
        """The weight at this point of training."""
        if self.kind == "constant":
            return self.weight
        now = self._now(progress)
        if self.kind == "step":
            return self.weight if now >= self.start else self.initial
        stop = progress.total_epochs if self.stop is None else self.stop
        # A start at or after the end of training leaves nothing to ramp over.
        p = (now - self.start) / (stop - self.start) if stop > self.start else 0.0
        p = min(max(p, 0.0), 1.0)
        if self.kind == "dann":
            p = 2 / (1 + math.exp(-10 * p)) - 1
        return self.initial + (self.weight - self.initial) * p

    def switches_at(self, progress: Progress) -> bool:
        """Whether the optimizer is to be made anew before this very step.

        True for one step of a run: the first at or after ``start``, of kind 'step' with
        ``reset_optimizer``; never for start 0, which has nothing before it.
        """
        if self.kind != "step" or not self.reset_optimizer or progress.step == 0:
            return False
        now = self._now(progress)
        if self.unit == "step":
            before: float = progress.step - 1
        elif progress.previous_epoch is not None:
            before = progress.previous_epoch
        else:
            before = progress.epoch * (progress.step - 1) / progress.step
        return before < self.start <= now


def rescale(loss: Tensor, weight: float) -> Tensor:
    """loss / weight where the penalty's weight is above 1, else the loss.

    IRM's trick: gradients of the whole loss stay of one size when the weight jumps, so the learning
    rate need not change (the optimizer's weight decay then weighs that much more).

    loss: scalar, penalty included.
    """
    return loss / weight if weight > 1 else loss
