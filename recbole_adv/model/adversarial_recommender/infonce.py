r"""InfoNCE over matrix factorisation or LightGCN, with many sampled negatives.

Reference:
    Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018
    (arXiv 1807.03748); as the baseline of Zhang et al., "Empowering Collaborative Filtering with
    Principled Adversarial Contrastive Loss", NeurIPS 2023 (arXiv 2310.18700).

Official code: class INFONCE of LehengTHU/AdvInfoNCE at e7c0416 (``model.py``).
"""

from __future__ import annotations

import torch
from recbole.model.general_recommender import LightGCN
from recbole.model.init import xavier_normal_initialization
from torch.nn import functional as F

from recbole_adv.data.negatives import InBatchNegatives, UniformNegatives, UserUniformPositives
from recbole_adv.objective import info_nce, sampled_products


class InfoNCE(LightGCN):
    r"""With scores s = cos(z_u, z_i) / temperature and N negatives j of each positive (u, i)::

        mean_B [ -s+ + log( e^{s+} + k sum_j e^{s-_j} ) ] + reg_weight / B 0.5 sum (|u0|^2 + |i0|^2)

    k is ``negative_weight``; z are the tables' rows u0, i0 (``n_layers: 0``) or LightGCN's.

    The model draws its own negatives, [B, N] at once on its device: ``train_batch_size`` counts
    positives, and none of RecBole's B N rows are made, nor reshaped in the wrong order. With
    ``in_batch: True`` the negatives of a positive are the batch's B - 1 others, but for the items of
    its user, which weigh nothing.

    Deviations: log-sum-exp instead of a quotient of exponentials, which overflows; no term
    ``0.5 ** norm`` of the negatives (a typing error of the official code, about 1e-13;
    ``reg_negatives`` adds what was meant); rows are visited as in RecBole (``user_uniform``: users
    in turn, as officially, with ``drop_last`` as it has it). ``cosine_predict: False`` ranks by
    inner products after training on cosines.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        for key in (
            "temperature",
            "n_negatives",
            "negative_weight",
            "cosine_train",
            "cosine_predict",
            "reg_negatives",
        ):
            setattr(self, key, config[key])
        self.apply(xavier_normal_initialization)
        user, item = dataset.inter_feat[self.USER_ID], dataset.inter_feat[self.ITEM_ID]
        self.negatives = UniformNegatives(
            user, item, self.n_users, self.n_items, lambda i: str(dataset.id2token(self.USER_ID, i))
        )
        self.in_batch = None
        if config["in_batch"]:
            self.in_batch = InBatchNegatives(user, item, self.n_users, self.n_items)
        self.needs_row_index, self.INTER_IDX = config["user_uniform"], config["INTER_IDX_FIELD"]
        self.positives = UserUniformPositives(user, item) if self.needs_row_index else None

    def get_norm_adj_mat(self):
        return super().get_norm_adj_mat() if self.n_layers else torch.empty(0)

    def forward(self):
        if self.n_layers:
            return super().forward()
        return self.user_embedding.weight, self.item_embedding.weight

    def draw(self, interaction):
        """user [B], positive item [B] and negative items [B, N] of a batch."""
        if self.positives is not None:
            user, item = self.positives.positives_of(interaction[self.INTER_IDX])
        else:
            user, item = interaction[self.USER_ID], interaction[self.ITEM_ID]
        if self.in_batch is not None:
            return user, item, self.in_batch.others(item)
        return user, item, self.negatives.sample(user, self.n_negatives)

    def scores(self, user, positive, negative):
        """Scores over temperature of the positives [B] and of the negatives [B, N]."""
        users, items = self.forward()
        user_e = users[user]
        if self.cosine_train:
            user_e, items = F.normalize(user_e, dim=-1), F.normalize(items, dim=-1)
        products = sampled_products(
            user_e, items, torch.cat([positive.unsqueeze(-1), negative], -1)
        )
        products = products / self.temperature
        return products[:, 0], products[:, 1:]

    def log_weight(self, user, negative):
        """The logarithm of each negative's weight: 0, or [B, N]."""
        if self.in_batch is None:
            return 0.0
        # Not -inf, of which a row of nothing else has no gradient that is a number.
        return -1e4 * self.in_batch.is_positive(user.unsqueeze(-1), negative)

    def calculate_loss(self, interaction):
        self.restore_user_e = self.restore_item_e = None
        user, positive, negative = self.draw(interaction)
        positive_s, negative_s = self.scores(user, positive, negative)
        log_weight = self.log_weight(user, negative)
        loss = info_nce(positive_s, negative_s, log_weight, self.negative_weight).mean()
        return loss + self.reg_weight * self.regulariser(user, positive, negative)

    def regulariser(self, user, positive, negative):
        """Half the squared norms of the embeddings in the tables, over B."""
        tables = [(self.user_embedding, user), (self.item_embedding, positive)]
        tables += [(self.item_embedding, negative)] if self.reg_negatives else []
        return half_squares(tables) / len(user)

    def predict(self, interaction):
        user, item = self._final()
        return (user[interaction[self.USER_ID]] * item[interaction[self.ITEM_ID]]).sum(dim=-1)

    def full_sort_predict(self, interaction):
        if self.restore_user_e is None or self.restore_item_e is None:
            # Detached, since a module would take a table itself for a parameter of its own.
            self.restore_user_e, self.restore_item_e = (e.detach() for e in self._final())
        user_e = self.restore_user_e[interaction[self.USER_ID]]
        return torch.matmul(user_e, self.restore_item_e.transpose(0, 1)).view(-1)

    def _final(self):
        user, item = self.forward()
        if self.cosine_predict:
            return F.normalize(user, dim=-1), F.normalize(item, dim=-1)
        return user, item


def half_squares(tables):
    """0.5 sum |e|^2 over the rows of each (table, index); each row of a table is squared once."""
    return sum(0.5 * table.weight.square().sum(dim=-1)[index].sum() for table, index in tables)
