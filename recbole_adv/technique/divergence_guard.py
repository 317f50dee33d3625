"""Goes back to the last good state when training diverges."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from recbole_adv.errors import ConfigError, TrainingError
from recbole_adv.game.penalty import PenaltySchedule
from recbole_adv.technique.base import Technique
from recbole_adv.technique.divergence import EVENTS, FULL, MICRO, score_collapsed
from recbole_adv.technique.good_snapshots import GoodSnapshots
from recbole_adv.technique.loss_watch import LossWatch

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer
    from recbole_adv.trainer.snapshot import Snapshot
    from recbole_adv.trainer.turn import Outcome

_CHANCE = {"auc": 0.5, "gauc": 0.5}  # the score of a model that knows nothing, where it is not 0
_LEVEL = {MICRO: logging.WARNING}
_COUNTED = (*EVENTS, "collapse", "rollback")


class DivergenceGuard(Technique):
    """Watches the losses of the first player and the validation score, and rolls training back.

    A detector (:class:`~recbole_adv.technique.divergence.DivergenceDetector`) reads each part of the
    loss. On a full divergence, on nan or inf in any player's loss or in a weight, and on a collapsed
    score, the whole trainer goes back to the last good snapshot, with lower rates, and on with the
    next batches. A snapshot is a candidate until ``patience`` steps without a micro-divergence have
    passed, since before that it may lie in the onset; after a collapse, which no loss has shown,
    training goes back to the last validation that was sound. Where the objective itself changes (an optimizer made anew, a penalty that switches on, the first
    move or a phase of another player), the detectors start anew.

    Args:
        window, min_losses, band, min_deviation, recovery, outlier_steps, patience: the detector's.
        interval: steps from one snapshot to the next; None: one in each epoch.
        block: steps between two readings of the losses on a GPU.
        score_share: a score is collapsed below this share of the best, both counted from that of
            chance; where smaller is better, above best / share.
        rate_factor: what all learning rates are multiplied with by a rollback.
        max_rollbacks: one more divergence is a TrainingError.
    """

    tolerates_nonfinite = True

    def __init__(
        self,
        *,
        window: int = 100,
        min_losses: int = 30,
        band: float = 8.0,
        min_deviation: float = 0.02,
        recovery: int = 10,
        outlier_steps: int = 3,
        patience: int = 50,
        interval: int | None = None,
        block: int = 20,
        score_share: float | None = 0.2,
        rate_factor: float = 0.5,
        max_rollbacks: int = 3,
    ):
        if min_losses > window:
            raise ConfigError(
                f"divergence_guard_min_losses must not exceed divergence_guard_window, got "
                f"{min_losses} and {window}; write {window} or less"
            )
        detector = {
            "window": window,
            "min_losses": min_losses,
            "band": band,
            "min_deviation": min_deviation,
            "recovery": recovery,
            "outlier_steps": outlier_steps,
            "patience": patience,
        }
        self.watch = LossWatch("min", detector)
        self.snapshots = GoodSnapshots(patience, interval, keeps_sound=score_share is not None)
        self.block, self.score_share = block, score_share
        self.rate_factor, self.max_rollbacks = rate_factor, max_rollbacks
        self.diagnoses: list[str] = []
        self.counts = dict.fromkeys(_COUNTED, 0)
        self.totals = dict(self.counts)
        self._objective: tuple | None = None

    def attach(self, trainer: AdvTrainer, player: Player) -> None:
        self.trainer, self.player = trainer, player.name
        self.watch.player = player.name
        first = trainer.players[0].name
        if player.name != first:
            raise ConfigError(
                f"divergence_guard watches {first!r} and takes back all players, got it in "
                f"{player.name}_techniques; write it into techniques"
            )
        self._log = logging.getLogger()

    # --- when -----------------------------------------------------------------------------------

    def before_epoch(self, epoch: int) -> None:
        self.snapshots.epoch_begins()

    def between_batches(self, moves: Sequence[tuple[str, Outcome]], batch: Any) -> None:
        for player, outcome in moves:
            self.watch.add(player, outcome, self.trainer.loop.turns[player].on_triples)
        objective, before = self._objective_now(), self._objective
        changed = before is not None and objective != before
        at_once = self.trainer.device.type == "cpu" or changed or not moves
        due = len(self.watch) >= self.block or self.snapshots.wanted(self.watch.steps)
        if not (at_once or due):
            return
        self._objective = objective
        trouble = self._listen()
        if changed and not trouble:
            self.watch.forget()
            if objective[0] != before[0]:  # old moments do not fit the loss of a new optimizer
                self.snapshots.start_anew()
        trouble = trouble or self._renew_snapshots()
        if trouble:
            self._roll_back(trouble, self.snapshots.good)

    def after_validation(self, epoch: int, score: float) -> None:
        if self.score_share is None:
            return
        trainer, start = self.trainer, self.trainer.config["selection_start_epoch"]
        # A best score from before the penalty or the adversary set in cannot be compared.
        comparable = trainer.best_epoch is not None and not trainer.best_epoch < start <= epoch
        best = float(trainer.best_valid_score) if comparable else math.nan
        metric = trainer.config["valid_metric"]
        chance = _CHANCE.get(metric.lower(), 0.0)
        if score_collapsed(score, best, self.score_share, trainer.valid_metric_bigger, chance):
            self._count("collapse")
            trouble = f"{metric} was {score:.4g} in epoch {epoch}, the best before {best:.4g}"
            self._roll_back(trouble, self.snapshots.sound)
        else:
            self.snapshots.validation_was_sound()

    def _listen(self) -> str | None:
        """Count and log what the losses tell; returns the sentence about a full divergence."""
        for event, sentence in self.watch.read():
            self._count(event)
            if event == FULL:
                return sentence
            self._log.log(_LEVEL.get(event, logging.INFO), "divergence_guard: %s", sentence)
            if event == MICRO:
                self.snapshots.distrust_candidate()
        return None

    def _count(self, event: str) -> None:
        self.counts[event] += 1
        self.totals[event] += 1

    def _objective_now(self) -> tuple:
        """What the loss depends on besides weights and data; where it changes, the loss may jump."""
        trainer, loop = self.trainer, self.trainer.loop
        optimizers = tuple(map(id, trainer._all_optimizers().values()))
        penalty = getattr(trainer.model, "penalty", None)
        switches = isinstance(penalty, PenaltySchedule) and penalty.kind == "step"
        weight = penalty(loop.progress) if switches else None
        others = tuple(
            taken if loop.schedule.turns[name].unit == "epoch" else min(taken, 1)
            for name, taken in loop.turns_taken.items()
            if name != self.player
        )
        return optimizers, weight, others

    def _renew_snapshots(self) -> str | None:
        """Take a snapshot if it is time; returns the sentence about weights that are no numbers."""
        if self.watch.suspicious and self.snapshots.good is not None:
            return None
        step = self.watch.steps
        self.snapshots.promote(step)
        waiting = any(turn.waiting for turn in self.trainer.loop.turns.values())
        if waiting or not self.snapshots.wanted(step):
            return None
        weights = [p.detach() for player in self.trainer.players for p in player.parameters]
        if not torch.stack([weight.isfinite().all() for weight in weights]).all():
            self._count(FULL)
            return f"a weight was nan or inf at step {step}"
        self.snapshots.take(step, self.trainer.snapshot())
        return None

    def _roll_back(self, trouble: str, snapshot: Snapshot | None) -> None:
        trainer = self.trainer
        self.diagnoses.append(trouble)
        if snapshot is None or len(self.diagnoses) > self.max_rollbacks:
            raise TrainingError(
                f"training diverged after {len(self.diagnoses) - 1} rollbacks, of which "
                f"divergence_guard_max_rollbacks allows {self.max_rollbacks}: "
                f"{'; '.join(self.diagnoses)}; the learning rates were {self._rates()} at last; "
                "start with lower ones, or clip gradients"
            )
        kept = self.watch.steps, self.diagnoses, self.counts, self.totals
        factor = trainer.rate_factor * self.rate_factor
        trainer.restore(snapshot)
        trainer.set_rate_factor(factor)
        self.watch.steps, self.diagnoses, self.counts, self.totals = kept
        self._count("rollback")
        self.snapshots.went_back(self.watch.steps, snapshot)
        self._objective = None
        self._log.warning(
            "divergence_guard: %s; back at step %d of player %r with the learning rates %s, rollback "
            "%d of %d",
            trouble,
            trainer.loop.steps_taken[self.player],
            self.player,
            self._rates(),
            len(self.diagnoses),
            self.max_rollbacks,
        )

    def _rates(self) -> str:
        rates = self.trainer.learning_rates().items()
        return ", ".join(f"{rate:.3g} ({name})" for name, groups in rates for rate in groups)

    # --- figures and state ----------------------------------------------------------------------

    def figures(self) -> dict[str, float]:
        figures, self.counts = self.counts, dict.fromkeys(_COUNTED, 0)
        return {**figures, "rate_factor": self.trainer.rate_factor}

    def after_fit(self) -> None:
        counted = ", ".join(f"{name} {count}" for name, count in self.totals.items())
        self._log.info(
            "divergence_guard read the losses of %d steps: %s", self.watch.steps, counted
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "watch": self.watch.state_dict(),
            "diagnoses": list(self.diagnoses),
            "counts": dict(self.counts),
            "totals": dict(self.totals),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.watch.load_state_dict(state["watch"])
        self.diagnoses = list(state["diagnoses"])
        self.counts, self.totals = dict(state["counts"]), dict(state["totals"])
