r"""GroupDRO: the worst environment decides, over any backbone.

Reference:
    Sagawa, Koh, Hashimoto, Liang, "Distributionally Robust Neural Networks for Group Shifts", ICLR
    2020 (arXiv 1911.08731).

Official code: kohpangwei/group_DRO (``loss.py``); order of updates as in
facebookresearch/DomainBed at b93c22a.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_adv import processes
from recbole_adv.model.backbone import BackboneRecommender, assignment_of
from recbole_adv.objective import environment_risk, group_dro_weights, present


class GroupDRO(BackboneRecommender):
    r"""Minimises :math:`\sum_e w_e R_e`, while the weights w move to where the risk is.

    The max player has no parameters; its move is one step of exponentiated gradient,
    :math:`w_e \leftarrow w_e \exp(\eta (R_e + C / \sqrt{n_e}))`, normalised, before the min player's
    (``max_first: True``).

    Buffers: weight [E] and running_risk [E], both kept in the checkpoint (DomainBed loses them).

    Deviations: an environment absent from a batch moves by its running risk instead of by 0, which
    would hand its weight to the others; the weights move on a forward pass of their own.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.environments = assignment_of(config, dataset)
        self.eta = config["group_dro_eta"]
        self.adjustment = config["group_dro_adjustment"]
        self.momentum = config["group_dro_risk_momentum"]
        n = self.environments.n_environments
        self.register_buffer("weight", torch.full((n,), 1 / n))
        self.register_buffer("running_risk", torch.full((n,), torch.nan))
        self._counted: torch.Tensor | None = None  # in this epoch: it reads all training rows

    def calculate_loss(self, interaction):
        loss, rows = self.rows(interaction)
        risk = environment_risk(rows.loss, self.environments.membership(rows.index))
        return self.with_risk(loss, rows, (self.weight * risk).sum())

    @torch.no_grad()
    def max_step(self, interaction):
        """Move the weights one step uphill."""
        _, rows = self.rows(interaction)
        q = self.environments.membership(rows.index)
        there, risk = _of_all_processes(present(q), environment_risk(rows.loss, q), q)
        known = torch.where(self.running_risk.isfinite(), self.running_risk, risk)
        running = known + self.momentum * (risk - known)
        self.running_risk.copy_(torch.where(there, running, self.running_risk))
        self.weight.copy_(
            group_dro_weights(
                self.weight,
                risk,
                there,
                self.eta,
                self.adjustment,
                self._sizes() if self.adjustment else None,
                self.running_risk,
            )
        )

    def before_epoch(self, epoch: int, train_data) -> None:
        super().before_epoch(epoch, train_data)
        self._counted = None  # environments are revised between epochs alone

    def _sizes(self):
        """How many training rows each environment has [E]."""
        if self._counted is None:
            self._counted = self.environments.counts()
        return self._counted

    def log_values(self):
        """For the log: weight, running risk and rows of each environment."""
        return {
            "environment_weight": self.weight,
            "environment_risk": self.running_risk,
            "environment_sizes": self.environments.counts(),
        }


def _of_all_processes(there: Tensor, risk: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Which environments have rows in the whole batch, and their risks; [E] each."""
    if processes.count() == 1:
        return there, risk
    mass = torch.where(there, q.sum(dim=0), 0.0)
    mass, total = processes.sum_(torch.stack([mass, mass * risk]))
    there = mass > 0
    return there, torch.where(there, total / torch.where(there, mass, 1.0), 0.0)
