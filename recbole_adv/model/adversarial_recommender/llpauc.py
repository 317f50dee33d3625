r"""LLPAUC: the lower-left partial area under the ROC curve, as a min-max problem.

Reference:
    Shi, Wang, Feng, Zhang, Wang, Wu, He, "Lower-Left Partial AUC: An Effective and Efficient
    Optimization Metric for Recommendation", WWW 2024 (arXiv 2403.00844).

Official code: swt-user/LLPAUC at 011675f, a fork of RecBole (``recbole/model/loss.py``, loss type
``TP_Point_TP``; ``Trainer_MinMax`` in ``recbole/trainer/trainer.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from recbole.model.general_recommender import BPR
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adv.errors import ConfigError
from recbole_adv.game.player import Player, min_max_players

BOXES = {
    "a": (0.0, 1.0),
    "b": (0.0, 1.0),
    "s_neg": (0.0, 5.0),
    "s_pos": (-1.0, 4.0),
    "gamma": (-1.0, 1.0),
    "theta_a": (0.0, 1e9),
    "theta_b": (0.0, 1e9),
}
"""The interval in which each scalar stays."""

_STARTS = {
    "a": 1.0,
    "b": 0.0,
    "s_neg": 0.5,
    "s_pos": 0.5,
    "gamma": 0.0,
    "theta_a": 0.5,
    "theta_b": 0.5,
}
_MAXIMISED = ("gamma", "s_pos")
_FASTER = ("gamma", "s_pos", "s_neg")


def llpauc(p: Tensor, n: Tensor, s: Mapping[str, Tensor], alpha: float, beta: float) -> Tensor:
    """F of the docstring of :class:`LLPAUC`.

    p, n: probabilities of positives and negatives, any shapes; s: the scalars by name.
    Returns a scalar.
    """
    slope = 2 * (1 + s["gamma"])
    positive = F.softplus(slope * p - (p - s["a"]).square() - s["s_pos"], beta=5).mean()
    negative = F.softplus(slope * n + (n - s["b"]).square() - s["s_neg"], beta=5).mean()
    multipliers = s["theta_a"] * (s["a"] + s["gamma"]) - s["theta_b"] * (s["b"] - 1 - s["gamma"])
    left, lower = s["s_pos"] + positive / alpha, s["s_neg"] + negative / beta
    return lower - left - s["gamma"].square() + multipliers


class LLPAUC(BPR):
    r"""Matrix factorisation for the part of the ROC curve that a list of k items shows.

    With p = sigma(u.i), n = sigma(u.j), r(x) = softplus(5 x) / 5 and the scalars of :data:`BOXES`::

        F = s_neg + mean r((n - b)^2 + 2 (1 + gamma) n - s_neg) / beta
            - s_pos - mean r(-(p - a)^2 + 2 (1 + gamma) p - s_pos) / alpha
            - gamma^2 + theta_a (a + gamma) + theta_b (1 + gamma - b)

        min player: embeddings, a, b, s_neg, theta_a, theta_b minimise F
        max player: gamma, s_pos increase F

    alpha bounds the true, beta the false positive rate. Both players move at once, from one forward
    pass; after each step the scalars are put back into their boxes. s_neg, s_pos and gamma have
    twice the learning rate. Scores are inner products.

    theta_a and theta_b, minimised, hold gamma above -a and b - 1. Who answers whom matters: against
    a fixed gamma < 0 the min player would take a = 0 and theta_a without end, so F has a min-max
    value but no saddle point; where the bounds are not reached the two agree nearby.

    Deviations: the official code clips in the forward pass, so that a scalar that leaves its box
    loses its gradient and never returns; here the scalars themselves are projected. Each player
    always moves its own way; there the sign of the gradients of gamma and s_pos is turned only for
    ``learner: minmax_adam``, inside a try/except. One Adam for each player instead of one for both,
    which is the same thing, Adam having no state across tensors. Negatives are RecBole's: never the
    padding item, never a training positive of the user (there any item, number 0 too, drawn by
    numpy in the model). The value 5 of r is not a key.

    For this the fork has a trainer of 653 lines that knows seven parameters by name, a loss of 90
    and a model of 127; the trainer here knows nothing of LLPAUC.

    Attributes:
        scalars: the min player's; adversary: the max player's.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.alpha, self.beta = config["alpha"], config["beta"]
        self.n_negatives = config["train_neg_sample_args"]["sample_num"]
        if not isinstance(self.n_negatives, int):
            raise ConfigError(
                f"LLPAUC needs sampled negatives, got sample_num {self.n_negatives!r}; write "
                "train_neg_sample_args: {'distribution': 'uniform', 'sample_num': 100}"
            )
        for embedding in (self.user_embedding, self.item_embedding):
            nn.init.normal_(embedding.weight, std=0.01)
        scalars = {name: nn.Parameter(torch.tensor(value)) for name, value in _STARTS.items()}
        self.adversary = nn.ParameterDict({name: scalars.pop(name) for name in _MAXIMISED})
        self.scalars = nn.ParameterDict(scalars)

    def all_scalars(self) -> dict[str, Tensor]:
        """The seven scalars by name."""
        return {**self.scalars, **self.adversary}

    def probabilities(self, interaction) -> tuple[Tensor, Tensor]:
        """p [B] of the positives and n [N, B] of their negatives."""
        # The k-th negative of positive i lies in row k B + i; users and positives are repeated.
        negative = interaction[self.NEG_ITEM_ID].unflatten(0, (self.n_negatives, -1))
        b = negative.shape[1]
        user_e, positive_e = self.forward(
            interaction[self.USER_ID][:b], interaction[self.ITEM_ID][:b]
        )
        negative_e = self.get_item_embedding(negative)
        return (user_e * positive_e).sum(-1).sigmoid(), (user_e * negative_e).sum(-1).sigmoid()

    def calculate_loss(self, interaction):
        return llpauc(*self.probabilities(interaction), self.all_scalars(), self.alpha, self.beta)

    calculate_max_objective = calculate_loss

    def calculate_joint(self, interaction):
        value = self.calculate_loss(interaction)
        return value, value

    def players(self) -> list[Player]:
        """Min and max, with twice the learning rate for three of the scalars."""
        rates = {id(value): 2.0 for name, value in self.all_scalars().items() if name in _FASTER}
        return [replace(player, rates=rates) for player in min_max_players(self, ["adversary"])]

    def project_(self, player: str) -> None:
        """Put the player's scalars back into their boxes."""
        for name, value in (self.adversary if player == "max" else self.scalars).items():
            value.clamp_(*BOXES[name])

    def log_values(self) -> dict[str, float]:
        """For the log: the scalars."""
        return {f"llpauc_{name}": value.item() for name, value in self.all_scalars().items()}
