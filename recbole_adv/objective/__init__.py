"""What is minimised or maximised: tensors in, tensors out."""

from recbole_adv.objective.contrastive import info_nce, sampled_products
from recbole_adv.objective.invariance import (
    balance,
    eiil_objective,
    environment_mass,
    environment_risk,
    group_dro_weights,
    irm_penalty,
    membership_entropy,
    present,
    risk_variance,
    squared_gradient,
)
from recbole_adv.objective.partition import kmeans_1d, sign_split
from recbole_adv.objective.ranking import (
    RowLoss,
    bce,
    bce_from_prob,
    bpr,
    fold_rows,
    logit_of,
    softmax_cross_entropy,
)

__all__ = [
    "RowLoss",
    "balance",
    "bce",
    "bce_from_prob",
    "bpr",
    "eiil_objective",
    "environment_mass",
    "environment_risk",
    "fold_rows",
    "group_dro_weights",
    "info_nce",
    "irm_penalty",
    "kmeans_1d",
    "logit_of",
    "membership_entropy",
    "present",
    "risk_variance",
    "sampled_products",
    "sign_split",
    "softmax_cross_entropy",
    "squared_gradient",
]
