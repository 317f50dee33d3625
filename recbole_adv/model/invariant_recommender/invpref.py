r"""InvPref: preferences that are the same in environments that nobody has labelled.

Reference:
    Wang, He, Liu, Zou, Yu, Cui, "Invariant Preference Learning for General Debiasing in
    Recommendation", KDD 2022 (doi 10.1145/3534678.3539439).

Official code: AIflowerQ/InvPref_KDD_2022 at 227d001 (``models.py``, ``train.py``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_adv.environment import EnvironmentAssignment
from recbole_adv.game.penalty import PenaltySchedule, Progress
from recbole_adv.game.player import Player, min_max_players
from recbole_adv.model.labelled_rows import Labelled, LabelledRows
from recbole_adv.model.layers import reverse_gradient
from recbole_adv.objective import preference

_CHUNK = 1 << 16  # labelled rows whose losses are looked at at once


class InvPref(GeneralRecommender):
    r"""An invariant and an environment-aware preference, over environments that are re-estimated.

    Of a user u, an item i, a label y and the environment e of this very row::

        h   = P_u * Q_i                       a = sum h          (invariant)
        b_e = sum(P'_u * Q'_i * E_e)                             (environment-aware)
        implicit:  r = sigma(a),  r_e = sigma(a) sigma(b_e),  l = binary cross entropy
        explicit:  r = a,         r_e = a + b_e,              l = squared error
        min player:  invariant_weight l(r, y) + env_aware_weight l(r_e, y)
                     + l2_weight R2 + l1_weight R1 - alpha classifier_weight NLL(C(h), e)
        classifier:  classifier_weight NLL(C(h), e)

    all means over the R rows of a batch, R2 = (|P|^2 + |P'|^2 + |Q|^2 + |Q'|^2) / (2 R d) of their
    embeddings, R1 alike, C log softmax of a linear map. After each ``cluster_interval`` epochs
    every row moves to the environment of its least l(r_e, y). Scores are r.

    ``adversary: reversal``: one player, C behind a gradient reversal. ``adversary: explicit``: C
    belongs to ``max``; on a shared graph the gradients are the same.

    Rows and labels: :class:`LabelledRows`; negatives too have an environment each.
    Buffers: labels.negatives [N, n], environments.environment [N (1 + n)], environment_size [E],
    n_moved.

    Deviations from the official code, and what is wrong there:

    * ``alpha_schedule: dann``: p = (b + (t + 1) n) / ((t + 1) n) >= 1 there, so alpha is 1 from the
      first step on; here p goes from 0 to 1 over the training.
    * Re-weighting, w_e = min(n_e + 1, n - 1) / n, favours large environments; it is called
      ``frequency``. ``inverse``, n / (E n_e), gives every environment the same say.
    * A tie keeps the row where it is. There, 1e-10 is added in an order drawn from a table of E!
      (out of memory for E = 10), which float32 does not see: the first of those that tie is taken.
      Ties are many, because losses are compared in float32 while the environment-aware branch is
      close to 0; environment 0 fills up, and ``frequency`` makes its rows weigh more. On Coat the
      codes agree to 1e-5 until then and part there; ``official_ties: True`` reproduces it.
    * The epoch is chosen on the test set there. Here validation decides, as in RecBole.
    * BCE of the product is computed in logarithms, which nn.BCELoss cuts off at -100.
    * Its batches are fixed runs of the file: ``shuffle: False`` does that.
    """

    input_type = InputType.POINTWISE
    needs_row_index = True
    environment_size: Tensor
    n_moved: Tensor

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.explicit_feedback = config["feedback"] == "explicit"
        self._read_options(config)
        d = config["embedding_size"]
        self.user_invariant = nn.Embedding(self.n_users, d)
        self.item_invariant = nn.Embedding(self.n_items, d)
        self.user_env_aware = nn.Embedding(self.n_users, d)
        self.item_env_aware = nn.Embedding(self.n_items, d)
        self.environment_embedding = nn.Embedding(self.n_environments, d)
        self.classifier = nn.Linear(d, self.n_environments)
        for module in self.children():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.01)
        nn.init.xavier_uniform_(self.classifier.weight)
        generator = torch.Generator().manual_seed(config["seed"])
        self.labels = LabelledRows(config, dataset, generator)
        n_rows, n = self.labels.n_labelled, self.n_environments
        self.environments = EnvironmentAssignment(
            n_rows, n, torch.randint(n, (n_rows,), generator=generator)
        )
        self.register_buffer("environment_size", self.environments.counts())
        self.register_buffer("n_moved", torch.zeros((), dtype=torch.int64))
        self.progress = Progress()

    def _read_options(self, config) -> None:
        self.n_environments = config["n_environments"]
        self.invariant_weight = config["invariant_weight"]
        self.env_aware_weight = config["env_aware_weight"]
        self.classifier_weight = config["classifier_weight"]
        self.l2_weight, self.l1_weight = config["l2_weight"], config["l1_weight"]
        self.alpha = PenaltySchedule(kind=config["alpha_schedule"], weight=config["alpha"])
        self.explicit_adversary = config["adversary"] == "explicit"
        self.max_modules = config["max_modules"]
        self.class_reweight = config["class_reweight"]
        self.recommend_reweight = config["recommend_reweight"]
        self.reg_env_embed, self.reg_only_embed = config["reg_env_embed"], config["reg_only_embed"]
        self.cluster_interval = config["cluster_interval"]
        self.official_ties = config["official_ties"]
        self.balanced = bool(config["environment_balanced"])
        self.cluster_epochs = config["cluster_start_epoch"], config["cluster_stop_epoch"]

    # --- the game -------------------------------------------------------------------------------

    def players(self) -> tuple[Player, ...]:
        """One player before and one behind the gradient reversal, or ``min`` and ``max``."""
        if self.explicit_adversary:
            return min_max_players(self, self.max_modules)
        return (Player("min", tuple(self.parameters()), self.calculate_loss),)

    def calculate_loss(self, interaction):
        rows = self.labels.of(interaction)
        h, fit = self._fit(rows)
        alpha = self.alpha(self.progress)
        if self.explicit_adversary:
            return *fit, -alpha * self._classification(h, rows)
        loss = self._classification(reverse_gradient(h, alpha), rows)
        return *fit, loss + self._classifier_regularisation()

    def calculate_max_objective(self, interaction):
        rows = self.labels.of(interaction)
        h = self.user_invariant(rows.user) * self.item_invariant(rows.item)
        return -self._classification(h, rows) - self._classifier_regularisation()

    def calculate_joint(self, interaction):
        rows = self.labels.of(interaction)
        h, fit = self._fit(rows)
        loss = self._classification(h, rows)
        return (
            (*fit, -self.alpha(self.progress) * loss),
            -loss - self._classifier_regularisation(),
        )

    def _fit(self, rows: Labelled) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """h [R, d], and both losses of recommendation and the regularisation, weighed."""
        user, item = self.user_invariant(rows.user), self.item_invariant(rows.item)
        user_env, item_env = self.user_env_aware(rows.user), self.item_env_aware(rows.item)
        environment = self.environment_embedding(self.environments.of(rows.row))
        h = user * item
        a, b = h.sum(-1), (user_env * item_env * environment).sum(-1)
        weight = self._row_weight(self.recommend_reweight, rows)
        invariant = (
            weight * preference.row_loss(a, None, rows.label, self.explicit_feedback)
        ).mean()
        env_aware = (weight * preference.row_loss(a, b, rows.label, self.explicit_feedback)).mean()
        regularisation = self._norms(0.5, user, user_env, item, item_env)
        if self.reg_env_embed:
            regularisation = regularisation + self._norms(1.0, environment)
        return h, (
            self.invariant_weight * invariant,
            self.env_aware_weight * env_aware,
            regularisation,
        )

    def _classification(self, h: Tensor, rows: Labelled) -> Tensor:
        log_prob = torch.log_softmax(self.classifier(h), dim=-1)
        loss = F.nll_loss(log_prob, self.environments.of(rows.row), reduction="none")
        weight = self._row_weight(self.class_reweight, rows)
        return self.classifier_weight * (weight * loss).mean()

    def _row_weight(self, kind: str, rows: Labelled) -> Tensor:
        weight = preference.environment_weight(self.environment_size, kind)
        return weight[self.environments.of(rows.row)]

    def _norms(self, factor: float, *tensors: Tensor) -> Tensor:
        """factor sum_t (l2 |t|^2 + l1 |t|_1) / (number of elements of t)."""
        parts = [
            self.l2_weight * t.square().mean() + self.l1_weight * t.abs().mean() for t in tensors
        ]
        return factor * torch.stack(parts).sum()

    def _classifier_regularisation(self) -> Tensor | float:
        own = (self.classifier.weight, self.classifier.bias)
        return 0.0 if self.reg_only_embed else self._norms(1.0, *own)

    # --- environments ---------------------------------------------------------------------------

    def after_epoch(self, epoch: int, train_data) -> None:
        """Re-estimate the environments where the schedule asks for it."""
        done, (start, stop) = epoch + 1, self.cluster_epochs
        if done % self.cluster_interval == 0 and start <= done and (stop is None or done < stop):
            self.reassign(train_data)

    @torch.no_grad()
    def reassign(self, train_data) -> int:
        """Move every labelled row to the environment of its least loss; how many moved."""
        was_training = self.training
        self.eval()
        rows = train_data._dataset.inter_feat
        step = max(_CHUNK // (1 + self.labels.negatives.shape[1]), 1)
        starts = range(0, len(rows), step)
        of_chunks = (self.labels.of(rows[i : i + step].to(self.n_moved.device)) for i in starts)
        costs = ((chunk.row, self.environment_losses(chunk)) for chunk in of_chunks)
        if self.balanced:  # which looks at all rows at once
            costs = iter([tuple(torch.cat(parts) for parts in zip(*costs))])
        if self.official_ties:
            moved = sum(self.environments.assign(i, cost.argmin(dim=1)) for i, cost in costs)
        else:
            moved = sum(self.environments.reassign(i, cost, self.balanced) for i, cost in costs)
        self.environment_size.copy_(self.environments.counts())
        self.n_moved.fill_(moved)
        self.train(was_training)
        return moved

    def environment_losses(self, rows: Labelled) -> Tensor:
        """l(r_e, y) of each row in each environment.   Returns [R, E]."""
        a = (self.user_invariant(rows.user) * self.item_invariant(rows.item)).sum(-1, keepdim=True)
        aware = self.user_env_aware(rows.user) * self.item_env_aware(rows.item)
        b = aware @ self.environment_embedding.weight.t()
        row_loss = preference.product_loss if self.official_ties else preference.row_loss
        return row_loss(a, b, rows.label.unsqueeze(1), self.explicit_feedback)

    def inferred_environments(self) -> Tensor:
        """The environment of each training row [N], without those of its negatives."""
        return self.environments.environment[: len(self.labels.negatives)]

    def log_values(self):
        """For the log: alpha, and how many rows each environment has and how many moved last."""
        return {
            "alpha": self.alpha(self.progress.last()),
            "environment_sizes": self.environment_size,
            "n_moved": self.n_moved.item(),
        }

    # --- prediction -----------------------------------------------------------------------------

    def _score(self, a: Tensor) -> Tensor:
        return a if self.explicit_feedback else torch.sigmoid(a)

    def predict(self, interaction):
        user, item = interaction[self.USER_ID], interaction[self.ITEM_ID]
        return self._score((self.user_invariant(user) * self.item_invariant(item)).sum(-1))

    def full_sort_predict(self, interaction):
        user = self.user_invariant(interaction[self.USER_ID])
        return self._score(user @ self.item_invariant.weight.t()).view(-1)
