r"""IRM: invariant risk minimisation over any backbone.

Reference:
    Arjovsky, Bottou, Gulrajani, Lopez-Paz, "Invariant Risk Minimization", 2019 (arXiv 1907.02893);
    objective and schedule as in Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization",
    ICLR 2021.

Official code: facebookresearch/DomainBed at b93c22a (``algorithms.py``).
"""

from __future__ import annotations

from recbole_adv.game.penalty import rescale
from recbole_adv.model.backbone import BackboneRecommender, assignment_of, penalty_of
from recbole_adv.objective import environment_risk, irm_penalty, present


class IRM(BackboneRecommender):
    r"""Minimises :math:`\frac1E\sum_e R_e + \lambda \frac1E \sum_e (\partial_w R_e(w s)|_{w=1})^2`.

    R_e [scalar] is the mean loss of the rows of environment e, s their scores, w a dummy scale. The
    gradient in w has a closed form for BPR, BCE and softmax losses, so no second backward pass is
    needed and sparse propagation, AMP and any backbone work.

    Deviations: the squared gradient is estimated by the U-statistic (DomainBed multiplies two half
    batches, ``penalty_estimator: split``); environments share a batch instead of having one each,
    and those absent from it are left out; weight decay and regularisation are the backbone's.
    The penalty also shrinks scores, for which it is 0: a loss that stays near that of equal scores (log 2
    for BPR) says that the weight is too high.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.environments = assignment_of(config, dataset)
        self.penalty = penalty_of(config)
        self.estimator = config["penalty_estimator"]
        self.rescales = config["penalty_rescale"]

    def calculate_loss(self, interaction):
        loss, rows = self.rows(interaction)
        q = self.environments.membership(rows.index)
        there = present(q)
        risk = environment_risk(rows.loss, q).sum() / there.sum().clamp(min=1)
        weight = self.penalty(self.progress)
        parts = self.with_risk(loss, rows, risk), weight * irm_penalty(
            rows.gradient, q, self.estimator
        )
        return tuple(rescale(part, weight) for part in parts) if self.rescales else parts

    def log_values(self):
        """For the log: the penalty's weight and the rows of each environment."""
        return {
            "penalty_weight": self.penalty(self.progress.last()),
            "environment_sizes": self.environments.counts(),
        }
