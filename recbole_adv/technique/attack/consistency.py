"""Virtual adversarial training (Miyato et al., TPAMI 2018): the loss that needs no labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from recbole.utils import InputType, ModelType
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, softplus

from recbole_adv.errors import ConfigError
from recbole_adv.model_state import clear_caches
from recbole_adv.technique.attack.user_scale import at_least_float32, pair_margin


def bernoulli_divergence(before: Tensor, after: Tensor) -> Tensor:
    """``KL(Bernoulli(sigmoid(before)) || Bernoulli(sigmoid(after)))``, the mean over logits [B]."""
    p = torch.sigmoid(before)
    ones = p * (softplus(-after) - softplus(-before))
    zeros = (1 - p) * (softplus(after) - softplus(before))
    return (ones + zeros).mean()


def softmax_divergence(before: Tensor, after: Tensor) -> Tensor:
    """``KL(softmax(before) || softmax(after))``, the mean over the B rows of logits [B, I]."""
    first, second = log_softmax(before, 1), log_softmax(after, 1)
    return kl_div(second, first, reduction="batchmean", log_target=True)


class Predictions:
    """What a model says about a batch, as logits, and how far it is from what it said before.

    * Sequential models: the scores of all items, a softmax ([B, I], ``full_sort_predict``).
    * Batches of pairs: the probability that the positive is preferred to the sampled item,
      ``sigmoid(predict(u, i) - predict(u, j))``.
    * Others: ``predict``, which must be a probability (NeuMF, DeepFM and their kin).

    Args:
        model: a RecBole model.
        fields: the names of user, item and sampled item in a batch.
        autocast: makes the context of a forward pass.
    """

    def __init__(self, model: nn.Module, fields: tuple[str, str, str], autocast: Callable[[], Any]):
        self.model, self.autocast = model, autocast
        self.item, self.negative = fields[1:]
        self.sequential = getattr(model, "type", None) == ModelType.SEQUENTIAL
        self.divergence: Callable[[Tensor, Tensor], Tensor] = (
            softmax_divergence if self.sequential else bernoulli_divergence
        )
        self.pairs = getattr(model, "input_type", None) == InputType.PAIRWISE
        self._checked = False

    def checked(self, batch: Any) -> Tensor:
        """Logits without a graph; on the first batch it is made sure that they can be attacked.

        Raises :class:`ConfigError` for logits that no gradient comes through, and for scores that
        are no probabilities.
        """
        logits, name = self(batch), type(self.model).__name__
        if not logits.requires_grad:
            raise ConfigError(
                f"embedding_attack_preset: vat follows the gradient of {name}'s predictions, which "
                "have none; choose another preset"
            )
        if not self._checked and not bool(logits.isfinite().all()):
            raise ConfigError(
                f"embedding_attack_preset: vat takes {name}.predict for a probability, and it is "
                "not in [0, 1]; choose another preset"
            )
        self._checked = True
        return logits.detach()

    def __call__(self, batch: Any) -> Tensor:
        """Logits, [B] or [B, I]; raises :class:`ConfigError` where the model cannot say.

        Embeddings that the model keeps from one prediction to the next are forgotten before and
        after: they would hide a perturbation.
        """
        clear_caches(self.model)
        try:
            with self.autocast():
                return at_least_float32(self._logits(batch))
        except (NotImplementedError, AttributeError, KeyError, IndexError, TypeError) as error:
            raise ConfigError(
                f"embedding_attack_preset: vat needs the predictions of {type(self.model).__name__} "
                f"on training batches, which fail ({type(error).__name__}: {error}); choose another "
                "preset"
            ) from error
        finally:
            clear_caches(self.model)

    def _logits(self, batch: Any) -> Tensor:
        if self.sequential:
            n_rows = len(batch)
            return self.model.full_sort_predict(batch).reshape(n_rows, -1)
        if self.pairs and self.negative in batch.interaction:
            return pair_margin(self.model.predict, batch, self.item, self.negative)
        p = at_least_float32(self.model.predict(batch).flatten())
        inside = (p >= 0) & (p <= 1)  # check_predictions refuses the nan of what is not
        return torch.logit(torch.where(inside, p.clamp(1e-6, 1 - 1e-6), torch.nan))
