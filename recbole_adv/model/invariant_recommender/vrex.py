r"""V-REx: risk extrapolation over any backbone.

Reference:
    Krueger, Caballero, Jacobsen, Zhang, Binas, Zhang, Le Priol, Courville, "Out-of-Distribution
    Generalization via Risk Extrapolation", ICML 2021 (arXiv 2003.00688).

Official code: capybaralet/REx_code_release; schedule as in facebookresearch/DomainBed at b93c22a.
"""

from __future__ import annotations

from recbole_adv.game.penalty import rescale
from recbole_adv.model.backbone import BackboneRecommender, assignment_of, penalty_of
from recbole_adv.objective import environment_risk, present, risk_variance


class VREx(BackboneRecommender):
    r"""Minimises :math:`\frac1E\sum_e R_e + \lambda \frac1E \sum_e (R_e - \bar R)^2`.

    R_e [scalar] is the mean loss of the rows of environment e. The variance is the population's, as
    in DomainBed; the official code for two environments uses :math:`(R_1 - R_2)^2`, four times it.

    Deviations: environments share a batch, those absent from it are left out; regularisation is the
    backbone's.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.environments = assignment_of(config, dataset)
        self.penalty = penalty_of(config)
        self.rescales = config["penalty_rescale"]

    def calculate_loss(self, interaction):
        loss, rows = self.rows(interaction)
        q = self.environments.membership(rows.index)
        there = present(q)
        risks = environment_risk(rows.loss, q)
        risk = risks.sum() / there.sum().clamp(min=1)
        weight = self.penalty(self.progress)
        parts = self.with_risk(loss, rows, risk), weight * risk_variance(risks, there)
        return tuple(rescale(part, weight) for part in parts) if self.rescales else parts

    def log_values(self):
        """For the log: the penalty's weight and the rows of each environment."""
        return {
            "penalty_weight": self.penalty(self.progress.last()),
            "environment_sizes": self.environments.counts(),
        }
