"""R-Drop: two passes under independent dropout masks must agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from recbole.model.loss import BPRLoss
from torch import Tensor, nn

from recbole_adv.errors import ConfigError
from recbole_adv.loss_modules import Call, factors, recorded
from recbole_adv.model_state import beside, random_state, replayed
from recbole_adv.objective.consistency import (
    bernoulli_divergence,
    categorical_divergence,
    r_drop_loss,
)
from recbole_adv.objective.parts import Loss
from recbole_adv.technique.base import LossFunction, Technique
from recbole_adv.technique.epoch_means import EpochMeans
from recbole_adv.technique.scores import (
    binary_logit,
    classes_last,
    is_over_items,
    listened_modules,
    n_items_of,
    precise,
)

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer
    from recbole_adv.trainer.turn import Turn


class RDrop(Technique):
    """Regularised dropout (Liang et al., NeurIPS 2021; official code dropreg/R-Drop@9dcc830).

    The recommender minimises, of two passes over the same batch with two dropout masks,
    (L1 + L2) / 2 + weight times the mean over rows of J / 2, J = KL(p1 || p2) + KL(p2 || p1). Both
    sides of J have a gradient. The distribution is that of the loss module: softmax of
    CrossEntropyLoss, a coin for each score of BCEWithLogitsLoss and BCELoss, and for BPRLoss a coin
    for each pair, sigmoid(positive - negative). Of several modules or calls each counts with the
    factor that the model gives to its value. J is the last part of the loss in the log, times
    weight / 2; the figure ``divergence`` is the mean of J / 2.

    Deviations: all is averaged over rows and over the two passes, so ``weight`` is half of the
    paper's alpha (docs/techniques/r-drop.md converts those of the official scripts). The second pass
    advances no statistics of BatchNorm. Knowledge graph's batches are left alone. Randomness that is
    not dropout but enters the scores (noise, masked items, negatives) enters J too.

    Args:
        weight: 0 changes nothing: there is one pass.
        form: for BPRLoss; ``difference``: of each pair one coin; ``separate``: a coin for the
            positive and one for the negative score, averaged, which also penalises a common drift.
        exclude_padding: a softmax over all items leaves out item 0.
        start_epoch: first epoch with two passes.

    Raises:
        ConfigError: no loss module, no dropout, or dropout that does not reach the scores; the
            latter is seen at the first batch.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        form: str = "difference",
        exclude_padding: bool = True,
        start_epoch: int = 0,
    ):
        self.weight, self.form, self.exclude_padding = weight, form, exclude_padding
        self.start_epoch, self.epoch = start_epoch, 0
        self.means = EpochMeans()
        self._tried = False

    def attach(self, trainer: AdvTrainer, player: Player) -> None:
        self._modules = listened_modules(trainer, player, "r_drop")
        self._model, self._name = trainer.model, trainer.config["model"]
        self._n_items = n_items_of(trainer.model)
        if self.form == "separate" and not any(isinstance(m, BPRLoss) for m in self._modules):
            raise ConfigError(
                f"r_drop_form: separate is about the pairs of BPRLoss, which {self._name} does not "
                "have; leave r_drop_form out"
            )
        if not any(rate > 0 for rate in dropout_rates(trainer.model)):
            given = trainer.config.final_config_dict
            keys = [key for key in given if "drop" in key and _is_rate(given[key])]
            keys = [key for key in keys if not key.startswith("r_drop")]
            instead = f"set {' or '.join(keys)} above 0" if keys else "leave r_drop out"
            raise ConfigError(
                f"r_drop compares two dropout masks, and {self._name} has no dropout with a rate "
                f"above 0; {instead}, or choose a model such as SASRec, NeuMF or DeepFM"
            )

    def before_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def wraps_gradient(self) -> bool:
        return self.weight > 0

    def wrap_loss(self, loss: LossFunction, turn: Turn) -> LossFunction:
        if not self.weight or turn.on_triples:
            return loss

        def of_two_passes(batch: Any) -> Loss:
            if not self._tried:
                self._try(loss, batch)
            if self.epoch < self.start_epoch:
                return loss(batch)
            with torch.enable_grad():  # the factors are derivatives
                first, calls = self._pass(loss, batch)
                with beside(self._model):
                    second, others = self._pass(loss, batch)
                divergence = self._divergence(calls, others, factors(first, calls))
            self.means.add(divergence=divergence.detach() / 2)
            return r_drop_loss(first, second, divergence, self.weight)

        return of_two_passes

    def figures(self) -> dict[str, float]:
        return self.means.read()

    # --- the divergence -------------------------------------------------------------------------

    def _pass(self, loss: LossFunction, batch: Any) -> tuple[Loss, list[Call]]:
        with recorded(self._modules) as calls:
            return loss(batch), calls

    def _divergence(
        self, calls: list[Call], others: list[Call], weights: list[Tensor | None]
    ) -> Tensor:
        """J, a scalar: of each pair of calls the mean over rows, times its factor in the loss."""
        if [_shapes(call) for call in calls] != [_shapes(call) for call in others]:
            raise ConfigError(self._unlike("scores of different shapes"))
        terms = [
            weight * self._of_pair(call, other)
            for call, other, weight in zip(calls, others, weights)
            if weight is not None
        ]
        if not terms:
            raise ConfigError(
                f"r_drop has no effect on {self._name}, whose loss does not use what its loss "
                "modules give; leave r_drop out"
            )
        return sum(terms[1:], terms[0])

    def _of_pair(self, call: Call, other: Call) -> Tensor:
        if isinstance(call.module, nn.CrossEntropyLoss):
            (first, counted), (second, _) = classes_last(call), classes_last(other)
            if self.exclude_padding and is_over_items(call, self._n_items):
                first, second = first[..., 1:], second[..., 1:]
            rows = categorical_divergence(first, second).masked_fill(~counted, 0.0)
            return rows.sum() / counted.sum()
        if isinstance(call.module, BPRLoss):
            pairs = [tuple(map(precise, each.inputs)) for each in (call, other)]
            if self.form == "difference":
                return bernoulli_divergence(*(p - n for p, n in pairs)).mean()
            return sum(bernoulli_divergence(a, b).mean() for a, b in zip(*pairs)) / 2
        return bernoulli_divergence(binary_logit(call), binary_logit(other)).mean()

    # --- what cannot work -----------------------------------------------------------------------

    def _try(self, loss: LossFunction, batch: Any) -> None:
        """Two passes on the first batch, without a trace, to see whether J means anything.

        Gradients are on: the loss may take some itself, and weights that autocast had cast without a
        graph would stay in its cache.
        """
        with replayed(self._model, random_state()):
            (_, calls), (_, others) = self._pass(loss, batch), self._pass(loss, batch)
        for call in calls:
            if call.value.dim():
                raise ConfigError(
                    f"r_drop averages over rows, and {self._name} has its "
                    f"{type(call.module).__name__} return {list(call.value.shape)} and weighs that "
                    "itself; leave r_drop out"
                )
        divergence = self._divergence(calls, others, [torch.ones_like(c.value) for c in calls])
        if not all(
            torch.equal(one, other) for one, other in zip(_targets(calls), _targets(others))
        ):
            raise ConfigError(self._unlike("different targets"))
        if divergence == 0:
            raise ConfigError(
                f"r_drop has no effect on {self._name}: two passes over a batch give the same scores, "
                "so its dropout does not reach them; leave r_drop out"
            )
        self._tried = True

    def _unlike(self, what: str) -> str:
        return (
            f"r_drop compares two passes over the same rows, and those of {self._name} have {what}, "
            "so it draws masks or negatives in its loss; leave r_drop out"
        )


def _shapes(call: Call) -> tuple[nn.Module, list[torch.Size]]:
    return call.module, [tensor.shape for tensor in call.inputs]


def _targets(calls: list[Call]) -> Iterator[Tensor]:
    return (call.inputs[1] for call in calls if not isinstance(call.module, BPRLoss))


def _is_rate(value: Any) -> bool:
    numbers = value if isinstance(value, (list, tuple)) and value else [value]
    return all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers)


def dropout_rates(model: nn.Module) -> Iterator[float]:
    """Every rate of dropout: of torch's modules, and numbers that a module calls so (``dropout``,
    ``drop_out``, ``dropout_prob``, for ``F.dropout`` and for recurrent layers)."""
    for module in model.modules():
        of_torch = "Dropout" in type(module).__name__
        for name, value in vars(module).items():
            if "drop" in name.lower() or (of_torch and name == "p"):
                if _is_rate(value):
                    yield from value if isinstance(value, (list, tuple)) else [value]
