r"""AdvInfoNCE: an adversary decides how hard each negative is.

Reference:
    Zhang, Sheng, Cai, Wang, Chua, "Empowering Collaborative Filtering with Principled Adversarial
    Contrastive Loss", NeurIPS 2023 (arXiv 2310.18700).

Official code: LehengTHU/AdvInfoNCE at e7c0416 (``model.py``, ``train_AdvInfoNCE.py``).
"""

from __future__ import annotations

import math

import torch
from recbole.model.init import xavier_normal_initialization
from torch import nn

from recbole_adv.model.adversarial_recommender.infonce import InfoNCE, half_squares
from recbole_adv.model.backbone import seeded
from recbole_adv.objective import info_nce, sampled_products


class AdvInfoNCE(InfoNCE):
    r"""The adversary ``hardness``, tables p [U, D] and q [I, D], weights the N negatives by
    pi_j = softmax_j(<p_u, q_j>)::

        L(theta, phi) = mean_B [ -s+ + log( e^{s+} + k N sum_j pi_j e^{s-_j} ) ]
        min player (embeddings):  L + reg_weight / B 0.5 sum (|u0|^2 + |i0|^2)
        max player (p, q):        L - adversary_reg_weight / B 0.5 sum (|p_u|^2 + |q_j|^2)

    Ascent is whole epochs with theta frozen. Officially one precedes epoch t where
    (t + 3) % interval == 0, t > warm-up and fewer than eta_epochs were done: ``max_interval``,
    ``max_start_epoch: interval - 3`` (the first such t after the warm-up), ``max_budget``. The log
    has KL(pi || uniform), the paper's eta, of the last batch.

    Deviations: those of :class:`InfoNCE`. The official code builds the adversary's regulariser and
    then returns the recommender's, so that p and q are free; here they are regularised,
    ``official_behaviour: True`` frees them. Its baseline has k = 1 where it has k = 64: compare
    with InfoNCE at the same ``negative_weight``. It freezes embeddings in an ascent epoch, as here.

    Buffer: kl [scalar].
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        free = config["official_behaviour"]
        self.adversary_reg_weight = 0.0 if free else config["adversary_reg_weight"]
        size = config["adversary_embedding_size"]
        tables = {"user": (self.n_users, size), "item": (self.n_items, size)}
        self.hardness = seeded(
            config,
            lambda: nn.ModuleDict(
                {name: nn.Embedding(*shape) for name, shape in tables.items()}
            ).apply(xavier_normal_initialization),
        )
        self.register_buffer("kl", torch.zeros(()))

    def log_weight(self, user, negative):
        users, items = self.hardness["user"], self.hardness["item"]
        hardness = sampled_products(users(user), items.weight, negative)
        log_weight = math.log(self.n_negatives) + hardness.log_softmax(dim=-1)
        with torch.no_grad():
            self.kl.copy_((log_weight.exp() * log_weight).mean())
        return log_weight

    def calculate_max_objective(self, interaction):
        user, positive, negative = self.draw(interaction)
        with torch.no_grad():
            positive_s, negative_s = self.scores(user, positive, negative)
        log_weight = self.log_weight(user, negative)
        loss = info_nce(positive_s, negative_s, log_weight, self.negative_weight).mean()
        if not self.adversary_reg_weight:
            return loss
        tables = [(self.hardness["user"], user), (self.hardness["item"], negative)]
        return loss - self.adversary_reg_weight * half_squares(tables) / len(user)

    def log_values(self):
        """For the log: how far the negatives' weights are from uniform."""
        return {"kl_from_uniform": float(self.kl)}
