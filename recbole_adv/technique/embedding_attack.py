"""Adversarial training on embeddings: FGM, APR, PGD, FreeLB, Free AT, Fast and VAT as one engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from recbole_adv.errors import ConfigError
from recbole_adv.model_state import random_state, replayed
from recbole_adv.objective.parts import Loss, total
from recbole_adv.technique.attack.audit import coverage
from recbole_adv.technique.attack.checks import check_keys, check_reset, check_user_scale
from recbole_adv.technique.attack.consistency import Predictions
from recbole_adv.technique.attack.figures import Figures
from recbole_adv.technique.attack.kept import KeptMoves
from recbole_adv.technique.attack.lookups import LookupPlace
from recbole_adv.technique.attack.passes import Passes, Unusable, repetition
from recbole_adv.technique.attack.plan import choose_place
from recbole_adv.technique.attack.presets import recipe_of
from recbole_adv.technique.attack.radius import Radius
from recbole_adv.technique.attack.strategies import (
    Ascent,
    Attacked,
    consistency_counts,
    every_counts,
    last_counts,
)
from recbole_adv.technique.attack.tables import Table, find_tables
from recbole_adv.technique.attack.user_scale import UserScale
from recbole_adv.technique.attack.weights import WeightPlace
from recbole_adv.technique.base import Backward, Technique

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer
    from recbole_adv.trainer.turn import Turn

Place = WeightPlace | LookupPlace


@dataclass(kw_only=True, eq=False)
class EmbeddingAttack(Technique):
    """Trains on the loss at embeddings that are perturbed to raise it, beside the loss itself.

    The arguments are explained in properties/technique/embedding_attack.yaml and, with formulas, in
    docs/techniques/embedding-attack.md. None takes the preset's value.
    """

    state_is_of_process: ClassVar[bool] = True  # moves that are kept, on the rows of its batches

    preset: str = "apr"
    targets: list[str] | None = None
    exclude: list[str] | None = None
    scope: str | None = None
    rows: str = "touched"
    norm: str | None = None
    epsilon: float | None = None
    relative: bool | None = None
    steps: int | None = None
    step_size: float | None = None
    projection: str | None = None
    init: str | None = None
    min_gradient: float = 0.0
    keep_clean: bool | None = None
    weight: float = 1.0
    start_epoch: int | None = None
    stop_epoch: int | None = None
    interval: int = 1
    on: str = "interactions"
    user_scale: str = "none"
    vat_reduce: str = "sum"
    vat_probe: float = 0.1
    same_random: bool = True
    frozen_state: bool = True
    reset_optimizer: bool = False

    def __post_init__(self):
        self.recipe = recipe_of(self.preset, vars(self))
        check_keys(self, self.recipe)
        self.ascent = Ascent(self.recipe, self.min_gradient)
        self._epoch = self._n_batches = self._n_attacked = 0
        self._places: dict[Any, Place | None] = {}
        self._kept = KeptMoves()
        self._figures = Figures()

    # --- the run --------------------------------------------------------------------------------

    def attach(self, trainer: AdvTrainer, player: Player) -> None:
        self.trainer, self.player, self.model = trainer, player, trainer.model
        config = trainer.config
        if self.start_epoch is None:
            self.start_epoch = int(self.recipe.start_share * trainer.epochs)
        self.tables = find_tables(self.model, player.parameters, self.targets, self.exclude)
        names = (config["USER_ID_FIELD"], config["ITEM_ID_FIELD"])
        fields = (*names, config["NEG_PREFIX"] + names[1])
        autocast = trainer.loop.engine.autocast
        self.predictions = Predictions(self.model, fields, autocast)
        user_scale = None
        if self.user_scale != "none":
            check_user_scale(self.user_scale, self.model, self.tables)
            user_scale = UserScale(
                self.user_scale, self.vat_reduce, self.tables, self.model, fields, autocast
            )
        self.radius = Radius(self.recipe, self.tables, user_scale)
        if self.reset_optimizer:
            check_reset(trainer, player)

    def before_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self.radius.measure()
        if self.reset_optimizer and epoch == self.start_epoch:
            self.trainer._renew_first()

    def wrap_backward(self, backward: Backward, turn: Turn) -> Backward:
        if not self._acts(turn):
            return backward

        def attacked(batch: Any, weight: float = 1.0) -> Loss:
            place = self._place(turn, batch) if weight else None
            if place is None:
                return backward(batch, weight)
            return self._attack(backward, turn, batch, weight, place)

        return attacked

    def _acts(self, turn: Turn) -> bool:
        kinds = {"interactions": (False,), "triples": (True,), "all": (False, True)}
        over = self.stop_epoch is not None and self._epoch >= self.stop_epoch
        if turn.on_triples not in kinds[self.on] or self._epoch < self.start_epoch or over:
            return False
        self._n_batches += 1
        return self.weight > 0 and (self._n_batches - 1) % self.interval == 0

    # --- one batch ------------------------------------------------------------------------------

    def _attack(self, backward, turn: Turn, batch: Any, weight: float, place: Place) -> Loss:
        passes = Passes(
            backward,
            turn,
            batch,
            weight,
            place,
            remember=lambda: repetition(self.model, self.same_random, self.frozen_state),
            radii=lambda: self.radius.of(place, batch, passes.repeat),
        )
        if self.recipe.consistency:
            attacked = consistency_counts(
                passes, self.ascent, self.weight, self.predictions, self.vat_probe
            )
        elif self.recipe.persistent:
            passes.scout()
            attacked = every_counts(passes, self.ascent, self.weight, self._kept.take(place))
            self._kept.put(place, attacked.moves)
        elif self.recipe.every_pass:
            attacked = every_counts(passes, self.ascent, self.weight, None)
        else:
            attacked = last_counts(passes, self.ascent, self.weight)
        self._count(passes, attacked)
        return attacked.loss

    def _count(self, passes: Passes, attacked: Attacked) -> None:
        if attacked.perturbed is None:
            self._figures.skip()
            return
        self._n_attacked += 1
        self._figures.add(attacked.perturbed.detach(), attacked.clean)
        if attacked.norms is not None:
            norms = [
                norm * (radius.flatten() if isinstance(radius, Tensor) else radius)
                for norm, radius in zip(attacked.norms, passes.radius)
            ]
            of_tables = [self.radius.mean_row_norms[t.name] for t in passes.place.tables]
            self._figures.add_rows(norms, passes.place.sizes(), of_tables)

    def _place(self, turn: Turn, batch: Any) -> Place | None:
        """Where to perturb, decided on the first batch of each kind of turn: triples of a knowledge
        graph have a loss of their own, RecVAE's trainer moves one half of the model at a time."""
        owned = {id(p) for p in turn.parameters}
        kind = (turn.on_triples, *(id(t.parameter) in owned for t in self.tables))
        if kind not in self._places:
            tables = [t for t in self.tables if id(t.parameter) in owned]
            try:
                self._places[kind] = self._audited(turn, batch, tables) if tables else None
            except Unusable:
                return None  # the engine has a sentence for a loss that is not finite
        return self._places[kind]

    def _audited(self, turn: Turn, batch: Any, tables: list[Table]) -> Place | None:
        def gradient(tensors):
            loss = total(turn.forward(batch))
            if not bool(loss.isfinite()):
                raise Unusable
            return torch.autograd.grad(loss, tensors, allow_unused=True)

        with replayed(self.model, random_state()):
            found = coverage(tables, gradient)
        name = type(self.model).__name__
        place = choose_place(found, self.recipe.scope, self.rows, name)
        if place is None and not turn.on_triples:
            raise ConfigError(
                f"embedding_attack finds no gradient in {', '.join(t.name for t in tables)}, on which "
                f"the loss of {name} does not depend; write other embedding_attack_targets"
            )
        return place

    # --- the record -----------------------------------------------------------------------------

    def figures(self) -> dict[str, float]:
        figures, self._figures = self._figures.read(), Figures()
        return figures

    def after_fit(self) -> None:
        if not self._n_attacked and self.weight > 0:
            self.trainer.logger.warning(
                "embedding_attack never acted: training ended in epoch %d, and it was to act from "
                "embedding_attack_start_epoch %d on, on %s",
                self._epoch,
                self.start_epoch,
                self.on,
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "n_batches": self._n_batches,
            "n_attacked": self._n_attacked,
            "kept": self._kept.moves,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._n_batches, self._n_attacked = state["n_batches"], state["n_attacked"]
        self._kept.load(state["kept"], {table.name: table.parameter for table in self.tables})
