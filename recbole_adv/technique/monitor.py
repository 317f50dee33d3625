"""Figures of gradients, updates and curvature, which training does not notice."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from recbole_adv.errors import ConfigError
from recbole_adv.technique.base import Technique
from recbole_adv.technique.epoch_means import EpochMeans
from recbole_adv.technique.parameter_groups import by_pattern, by_submodule, check_patterns
from recbole_adv.technique.sharpness import LossSurface

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer
    from recbole_adv.trainer.turn import Outcome, Turn


class Monitor(Technique):
    """Means of an epoch over every ``every``-th step of a player, for each group of its parameters.

    ``gradient_norm/<group>``, ``update_norm/<group>`` (weights after minus before the step),
    ``update_ratio/<group>`` (update by weights), ``loss<i>`` for the parts of the loss, and the share of
    samples with a gradient that is ``nonfinite``. At the end of an epoch, where asked for: ``sharpness``,
    the largest eigenvalue of the Hessian of the player's own loss, without what other techniques add
    to it (a lower bound, within ``sharpness_residual`` of an eigenvalue), and ``rise_<radius>``, what
    the loss rises by a step of this length along its gradient.

    Args:
        every: steps between two samples.
        groups: regular expressions for names of parameters, a group each; None: by submodule.
        sharpness_interval: epochs between two measurements; None: none.
        sharpness_batches: the batches they are taken on, the first of the epoch.
        sharpness_iterations, sharpness_tolerance: of the power iteration.
        sharpness_radii: of the steps uphill.
    """

    concerns: ClassVar[str] = "all"

    def __init__(
        self,
        *,
        every: int = 50,
        groups: Sequence[str] | None = None,
        sharpness_interval: int | None = None,
        sharpness_batches: int = 1,
        sharpness_iterations: int = 50,
        sharpness_tolerance: float = 0.01,
        sharpness_radii: Sequence[float] = (0.01, 0.05, 0.1),
    ):
        check_patterns("monitor_groups", groups or ())
        if not all(isinstance(r, (int, float)) and 0 < r < float("inf") for r in sharpness_radii):
            raise ConfigError(
                f"monitor_sharpness_radii must hold numbers > 0, got {list(sharpness_radii)}; write "
                "[0.01, 0.05, 0.1], or [] for none"
            )
        self.every, self.patterns = every, groups
        self.interval, self.n_batches = sharpness_interval, sharpness_batches
        self.iterations, self.tolerance = sharpness_iterations, sharpness_tolerance
        self.radii = sharpness_radii
        self.means = EpochMeans()
        self.sharpness: dict[str, float] = {}
        self._before: dict[str, Tensor] = {}
        self._norms: dict[str, Tensor] = {}
        self._batches: list[Any] = []
        self._collects = False

    def attach(self, trainer: AdvTrainer, player: Player) -> None:
        self.trainer, self.player = trainer, player
        own = {id(p) for p in player.parameters if p.requires_grad}
        self.weights = {n: p for n, p in trainer.model.named_parameters() if id(p) in own}
        if self.patterns is None:
            self.groups = by_submodule(trainer.model, self.weights)
        else:
            self.groups = by_pattern(self.weights, self.patterns)

    # --- norms ----------------------------------------------------------------------------------

    def edit_gradients(self, turn: Turn) -> None:
        self._before = {}
        if turn.steps % self.every:
            return
        moving = {id(p) for p in turn.parameters if p.grad is not None}
        sampled = {n: w for n, w in self.weights.items() if id(w) in moving}
        self._before = {name: weight.detach().clone() for name, weight in sampled.items()}
        gradients = {name: _values(weight.grad) for name, weight in sampled.items()}
        self._norms = self._by_group("gradient_norm", gradients)
        finite = [norm.isfinite() for norm in self._norms.values()]
        if finite:
            self.means.add(nonfinite=(~torch.stack(finite).all()).float())

    def after_step(self, turn: Turn, outcome: Outcome) -> None:
        if not self._before:
            return
        updates = {name: self.weights[name].detach() - old for name, old in self._before.items()}
        update = self._by_group("update_norm", updates)
        weight = self._by_group("weight_norm", self._before)
        ratios = {
            f"update_ratio/{n.partition('/')[2]}": u / w
            for (n, u), w in zip(update.items(), weight.values())
        }
        numbers = [""] if len(outcome.parts) == 1 else range(1, len(outcome.parts) + 1)
        parts = {f"loss{i}": p.sum().float() for i, p in zip(numbers, outcome.parts)}
        self.means.add(**self._norms, **update, **ratios, **parts)
        self._before = {}

    def _by_group(self, what: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The L2 norms of the groups of which some tensor is there."""
        norms = {n: torch.linalg.vector_norm(t, dtype=torch.float32) for n, t in tensors.items()}
        return {
            f"{what}/{group}": torch.linalg.vector_norm(torch.stack([norms[n] for n in there]))
            for group, names in self.groups.items()
            if (there := [name for name in names if name in norms])
        }

    # --- sharpness ------------------------------------------------------------------------------

    def before_epoch(self, epoch: int) -> None:
        due = self.interval is not None and (epoch + 1) % self.interval == 0
        same_data = self.trainer.schedule.turns[self.player.name].data == "same"
        self._collects = due and same_data and self.player.loss is not None

    def between_batches(self, moves: Sequence[tuple[str, Outcome]], batch: Any) -> None:
        if not self._collects:
            return
        turn = self.trainer.loop.turns[self.player.name]
        if batch is None:
            if self._batches:
                self._collects = False
                self._measure(turn)
        elif len(self._batches) < self.n_batches and not turn.on_triples:
            if any(player == self.player.name for player, _ in moves):
                self._batches.append(batch)

    def _measure(self, turn: Turn) -> None:
        surface = LossSurface(self.trainer.model, self.weights, turn.loss, self._batches)
        self._batches = []
        self.sharpness = surface.rises(self.radii)
        try:
            self.sharpness |= surface.sharpness(self.iterations, self.tolerance)
        except RuntimeError as error:
            self.interval = None
            getLogger().warning(
                "monitor: no sharpness of player %r, whose loss cannot be differentiated twice here: %s",
                self.player.name,
                " ".join(str(error).split()),
            )

    def figures(self) -> dict[str, float]:
        figures, self.sharpness = {**self.means.read(), **self.sharpness}, {}
        return figures


def _values(gradient: Tensor) -> Tensor:
    """The numbers of a gradient; those of a sparse one are the sums over each touched row."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient
