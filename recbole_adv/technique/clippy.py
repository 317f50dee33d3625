"""Clippy around any optimizer: the update is clipped, not the gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn, optim

from recbole_adv.game.clippy_adagrad import clipping_factor, largest
from recbole_adv.technique.base import Step, Technique
from recbole_adv.technique.before_step import BeforeStep
from recbole_adv.technique.epoch_means import EpochMeans
from recbole_adv.technique.parameter_choice import chosen, pattern_of, tables_of
from recbole_adv.technique.quiet_rows import QuietRows
from recbole_adv.technique.step_load import load_of_block, load_of_step

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer
    from recbole_adv.trainer.turn import Outcome, Turn

THRESHOLDS = {"paper": (0.5, 1e-2), "official": (0.1, 1e-7)}
"""lambda_rel and lambda_abs: Algorithm 1 of the paper, defaults of the official code."""

_ROUNDING = 1e-6  # a relative threshold above it covers the rounding of w' - w


def largest_update(optimizer: optim.Optimizer) -> float:
    r"""No step moves a weight further than this, weight decay apart; inf where nothing is known.

    Adagrad: the rate. RMSprop: rate / sqrt(1 - alpha). Adam, by Cauchy-Schwarz on its two averages:
    :math:`\eta (1 - \beta_1) / \sqrt{(1 - \beta_2)(1 - \beta_1^2 / \beta_2)}`, which is 7.27 rates
    for 0.9 and 0.999 and holds where :math:`\beta_1^2 < \beta_2`.
    """
    return max(_largest_of(optimizer, group) for group in optimizer.param_groups)


def _largest_of(optimizer: optim.Optimizer, group: dict[str, Any]) -> float:
    rate = float(max(group["lr"], group.get("initial_lr", 0.0)))
    if isinstance(optimizer, (optim.Adam, optim.AdamW, optim.SparseAdam)):
        first, second = group["betas"]
        if first**2 < second < 1:
            return rate * max(1.0, (1 - first) / math.sqrt((1 - second) * (1 - first**2 / second)))
    if isinstance(optimizer, optim.Adagrad):
        return rate
    if isinstance(optimizer, optim.RMSprop) and not group["momentum"] and not group["centered"]:
        return rate / math.sqrt(1 - group["alpha"])
    return math.inf


def why_idle(optimizer: optim.Optimizer, absolute: float) -> str:
    """A sentence on why no update can exceed its bound, empty where one may."""
    furthest = largest_update(optimizer)
    if furthest > absolute:
        return ""
    rate = max(max(g["lr"], g.get("initial_lr", 0.0)) for g in optimizer.param_groups)
    return (
        f"{type(optimizer).__name__} at a learning rate of {rate:g} moves no weight by more than "
        f"{furthest:.2g}, and clippy_absolute_threshold {absolute:g} alone allows that; write "
        f"clippy_absolute_threshold: {2 * rate:g} or less"
    )


class Clippy(Technique):
    r"""Each tensor's update is shortened until it fits its bound (Tang et al., KDD 2023).

    With :math:`\delta = w' - w` as the optimizer made it, and
    :math:`b = \lambda_{rel} |w| + \lambda_{abs}`, the weights become
    :math:`w + \min(1, \min_i b_i / |\delta_i|) \, \delta`: one factor for the tensor, which keeps
    the direction. A tensor that fits is not written. Around Adagrad this is the paper's Algorithm 1;
    the official code's order and its third threshold are those of ``learner: clippy_adagrad``.

    The update holds the optimizer's weight decay too. Nan and inf are not hidden. Embedding tables
    are left out, as in the paper; by row is an extension of ours. Logged are the least and the mean
    factor over tensors (rows) and steps, and the share of steps in which something was clipped.

    Args:
        variant: ``paper`` or ``official``: which thresholds hold where none are given.
        relative_threshold, absolute_threshold: lambda_rel and lambda_abs.
        embeddings: ``exclude``; ``rows``: a factor for each row; ``tensor``: one for the table.
        exclude: parameters whose name matches this regular expression are left alone.
        clip_state: the factor acts on the optimizer's state too, so that a spike does not stay in
            it: momentum and Adam's mean are multiplied by it, sums of squares grow by its square
            only. That is the official ``clip_accumulator_update`` for any optimizer.
    """

    concerns: ClassVar[str] = "all"

    def __init__(
        self,
        *,
        variant: str = "paper",
        relative_threshold: float | None = None,
        absolute_threshold: float | None = None,
        embeddings: str = "exclude",
        exclude: str | None = None,
        clip_state: bool = False,
    ):
        relative, absolute = THRESHOLDS[variant]
        self.relative = relative if relative_threshold is None else relative_threshold
        self.absolute = absolute if absolute_threshold is None else absolute_threshold
        self.embeddings, self.clip_state = embeddings, clip_state
        self.pattern = pattern_of(exclude, "clippy_exclude")
        self.means = EpochMeans()
        self.largest = torch.zeros(())  # load of the epoch
        self.largest_ever = torch.zeros(())
        self.idle_because: str | None = None
        self._step: list[tuple[Tensor, Tensor]] = []  # mean factor and largest load of each tensor
        self._quiet = QuietRows()

    def attach(self, trainer: AdvTrainer, player: Player) -> None:
        self.logger, self.player = trainer.logger, player.name
        self.tables = tables_of(trainer.model)
        without = self.tables if self.embeddings == "exclude" else set()
        hint = "write clippy_embeddings: rows, or leave it out"
        self.ids = chosen(trainer.model, player, "clippy", self.pattern, without, hint)

    def wrap_step(self, step: Step, turn: Turn) -> Step:
        def clipped() -> None:
            self._tell_if_idle(turn.optimizer)
            before = [
                self._before(p, turn.optimizer)
                for p in turn.parameters
                if p.grad is not None and id(p) in self.ids
            ]
            step()
            self._step = [self._clip(moved, turn.optimizer) for moved in before]

        return clipped

    def _before(self, parameter: nn.Parameter, optimizer: optim.Optimizer) -> BeforeStep:
        """A copy of the rows that may have to be shortened: by row on a CPU, where looking for them
        is cheap, those that have a gradient or are not known to fit."""
        rows = None
        if self._passes_over_rows(parameter):
            rows = self._quiet.other_rows(parameter, optimizer, self.absolute)
        return BeforeStep(parameter, optimizer, self.clip_state, rows)

    def _passes_over_rows(self, parameter: nn.Parameter) -> bool:
        exact = parameter.dtype in (torch.float32, torch.float64) and self.relative > _ROUNDING
        dense_on_cpu = parameter.device.type == "cpu" and not parameter.grad.is_sparse
        return self._by_row(parameter) and dense_on_cpu and exact

    def _by_row(self, parameter: nn.Parameter) -> bool:
        return self.embeddings == "rows" and id(parameter) in self.tables

    def _clip(self, moved: BeforeStep, optimizer: optim.Optimizer) -> tuple[Tensor, Tensor]:
        if self._passes_over_rows(moved.parameter):
            return self._clip_rows(moved, optimizer)
        by_row = self._by_row(moved.parameter)
        filled, _ = load_of_step(moved.start, moved.now(), self.relative, self.absolute, by_row)
        factor = clipping_factor(filled)
        # Elsewhere than on a CPU the host would have to wait for the answer.
        if factor.device.type != "cpu" or (factor < 1).any():
            moved.shorten(factor)
        mean = factor.mean() if factor.numel() else factor.new_ones(())
        return mean, largest(filled, by_row=False)

    def _clip_rows(self, moved: BeforeStep, optimizer: optim.Optimizer) -> tuple[Tensor, Tensor]:
        """The same by row for a dense gradient on a CPU, with the rows that had not to be copied."""
        parameter, absolute = moved.parameter, self.absolute
        if moved.rows is None or not absolute:
            find, update = load_of_step, moved.now()
        else:  # the rows that were read are nobody else's
            find, update = load_of_block, moved.now().sub_(moved.start)
        filled, furthest = find(moved.start, update, self.relative, absolute, True)
        fits = not filled.dim()
        known = furthest.item() if fits else furthest.flatten()
        self._quiet.moved(parameter, optimizer, moved.rows, known)
        worst = largest(filled, by_row=False)
        if fits or worst <= 1:
            return worst.new_ones(()), worst
        factor = clipping_factor(filled)
        long = (factor < 1).flatten().nonzero().squeeze(1)
        mean = 1 - (1 - factor).sum() / len(parameter)
        moved.narrow(long)
        moved.shorten(factor[long])
        return mean, worst

    def after_step(self, turn: Turn, outcome: Outcome) -> None:
        if not self._step:
            return
        means, loads = (torch.stack(values) for values in zip(*self._step))
        largest = loads.amax()
        self.means.add(factor_mean=means.mean(), clipped=(largest > 1).float())
        self.largest = torch.maximum(largest, self.largest.to(largest))
        self.largest_ever = torch.maximum(largest, self.largest_ever.to(largest))

    def _tell_if_idle(self, optimizer: optim.Optimizer) -> None:
        """Once, before hours are spent: thresholds that this optimizer cannot exceed."""
        if self.idle_because is None:
            self.idle_because = why_idle(optimizer, self.absolute)
            if self.idle_because:
                self.logger.warning(
                    "clippy cannot act on player %s: %s", self.player, self.idle_because
                )

    def after_fit(self) -> None:
        if not self.largest_ever <= 1:
            return
        self.logger.warning(
            "clippy never acted on player %s: no update filled more than %.2g of its bound%s",
            self.player,
            self.largest_ever,
            f"; {self.idle_because}" if self.idle_because else "",
        )

    def figures(self) -> dict[str, float]:
        figures = self.means.read()
        if figures:
            figures["factor_min"] = clipping_factor(self.largest).item()
        self.largest = torch.zeros(())
        return figures

    def state_dict(self) -> dict[str, Any]:
        return {"largest_ever": self.largest_ever}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.largest_ever = state["largest_ever"]
