r"""EIIL: environments inferred by an adversary, over any backbone.

Reference:
    Creager, Jacobsen, Zemel, "Environment Inference for Invariant Learning", ICML 2021
    (arXiv 2010.07249).

Official code: ecreager/eiil at 2198213 (``opt_env/utils/opt_utils.py``).
"""

from __future__ import annotations

import torch

from recbole_adv.game.player import graphs_apart
from recbole_adv.game.schedule import Schedule, Turns, schedule_of
from recbole_adv.model.backbone import BackboneRecommender, penalty_of, seeded
from recbole_adv.model.env_generator import (
    MLPGenerator,
    TableGenerator,
    check_generator,
    logits_of_rows,
)
from recbole_adv.objective import balance, eiil_objective, environment_mass, membership_entropy
from recbole_adv.objective.inference import irm_of_gradients, irm_of_membership, irm_statistics


class EIIL(BackboneRecommender):
    r"""``env_generator`` finds the environments in which the backbone is least invariant.

    With memberships q [B, E] from the generator, masses p_e = mean_i q_ie and the scalar-dummy
    gradient g_i of a row (:mod:`recbole_adv.objective.ranking`)::

        max player (env_generator):  J(q) - balance_weight KL(p || uniform) - entropy_weight mean H(q_i)
        min player (all else):       backbone loss + lambda J(sg(q))

    J (``inference_objective``): ``irm`` sum_e p_e G_e^2, G_e the mean g of e, whose maximiser is the
    1-D k-means partition of g; ``irm_raw`` the paper's, maximised by the signs of g; ``rex`` the
    variance of risks.

    ``inference: alternating`` is the min-max game (RecBole issue 2123: an ascent step in every third
    batch); ``one_shot`` is the paper's: train the reference for ``max_start_epoch`` epochs, freeze it
    for ``one_shot_epochs`` epochs of ascent, make q hard, start the backbone anew and train it on
    these environments.

    Deviations: the paper has a free number for each example (``generator: table``) and a fixed
    reference; the default generator explains its environments by what is known of a row. Without
    mass weighting and balance, one environment may end up empty.

    A subclass may set another ``env_generator``: ``forward(user [B], item [B], index [B]) -> logits
    [B, n_environments]``, with or without ``of_all_rows() -> logits [N, n_environments]``.

    Buffer: hard_environment [N], -1 before the environments are hard.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.objective = config["inference_objective"]
        self.estimator = config["penalty_estimator"]
        self.balance_weight = config["balance_weight"]
        self.entropy_weight = config["entropy_weight"]
        self.penalty = penalty_of(config)
        self.one_shot = config["inference"] == "one_shot"
        self.one_shot_epochs = config["one_shot_epochs"]
        build = MLPGenerator if config["generator"] == "mlp" else TableGenerator
        self.env_generator = seeded(config, lambda: build(config, dataset, self.backbone))
        # The dataset's own tensors: a copy would cost as much again.
        self._row_ids = dataset.inter_feat[self.USER_ID], dataset.inter_feat[self.ITEM_ID]
        n_rows = len(dataset.inter_feat)
        self.register_buffer("hard_environment", torch.full((n_rows,), -1))
        self._hard = False
        self.register_buffer("mass", torch.zeros(config["n_environments"]))
        if self.one_shot:  # building the model again gives the same, so no checkpoint holds it
            self._initial = {k: v.clone() for k, v in self.backbone.state_dict().items()}

    def membership(self, interaction, index):
        """q by environment, [E, B], of the training rows ``index`` [B] of a batch.

        Over the first of two dimensions a softmax is several times as fast as over a last one of 2, and so
        is what follows.
        """
        if self._hard:
            hard = self.hard_environment[index]
            return torch.nn.functional.one_hot(hard, len(self.mass)).t().float()
        n = len(index)
        user, item = interaction[self.USER_ID][:n], interaction[self.ITEM_ID][:n]
        return self.env_generator(user, item, index).t().softmax(dim=0)

    def calculate_loss(self, interaction):
        loss, rows = self.rows(interaction)
        weight = self.penalty(self.progress)
        if weight == 0:
            return loss
        with torch.no_grad():
            q = self.membership(interaction, rows.index)
        known = self._statistics(rows, q)
        return _with_penalty(loss, weight * self.inferred(rows, q, known))

    def calculate_max_objective(self, interaction):
        with torch.no_grad():
            _, rows = self.rows(interaction)
        q = self.membership(interaction, rows.index)
        return self._leashed(rows, q, self._statistics(rows, q))

    @graphs_apart
    def calculate_joint(self, interaction):
        loss, rows = self.rows(interaction)
        q = self.membership(interaction, rows.index)
        weight, known = self.penalty(self.progress), self._statistics(rows, q)
        min_loss = loss
        if weight:
            min_loss = _with_penalty(loss, weight * self.inferred(rows, q, known))
        return min_loss, self._leashed(rows, q, known)

    def _statistics(self, rows, q):
        """What both players' J share; None where it is left to autograd."""
        if self.objective == "irm" and self.estimator in ("u", "plain"):
            return irm_statistics(rows.gradient, q, self.estimator)
        return None

    def inferred(self, rows, q, known):
        """J of the rows under the memberships q [E, B], which are held: the min player's."""
        if known is not None:
            return irm_of_gradients(rows.gradient, q, known)
        q = q.t().detach()
        return eiil_objective(self.objective, rows.loss, rows.gradient, q, self.estimator)

    def _leashed(self, rows, q, known):
        """J of the memberships q [E, B], the rows held, less the multiple of KL that keeps environments
        from emptying and what keeps memberships from hardening: the max player's."""
        if known is not None:
            value = irm_of_membership(rows.gradient, q, known, self.balance_weight)
            mass = known.mass.flatten()
        else:
            held = rows.loss.detach(), rows.gradient.detach()
            value = eiil_objective(self.objective, *held, q.t(), self.estimator)
            mass = environment_mass(q.t())
            value = value - self.balance_weight * balance(mass)
        self.mass.copy_(mass.detach())
        if self.entropy_weight:
            value = value - self.entropy_weight * membership_entropy(q.t())
        return value

    # --- the paper's schedule -------------------------------------------------------------------

    def schedule(self, config) -> Schedule:
        """The keys' schedule, or one ascent phase between the two trainings."""
        if not self.one_shot:
            return schedule_of(config.final_config_dict, ["min", "max"])
        ascent = Turns(
            steps=self.one_shot_epochs,
            unit="epoch",
            start_epoch=config["max_start_epoch"],
            budget=1,
        )
        return Schedule({"max": ascent, "min": Turns()})

    def on_fit_start(self, train_data) -> None:
        """Refuse a generator of a subclass that cannot be used, before it is needed."""
        own, generator = type(self), self.env_generator
        asked_in_training = own.membership is EIIL.membership
        asked_at_the_end = own.inferred_environments is EIIL.inferred_environments
        if asked_in_training or (asked_at_the_end and not hasattr(generator, "of_all_rows")):
            check_generator(generator, *self._row_ids, len(self.mass), self.mass.device)

    def before_epoch(self, epoch: int, train_data) -> None:
        """Read once whether the environments are hard already: a run may have been resumed."""
        self._hard = bool(self.hard_environment[0] >= 0)

    @torch.no_grad()
    def on_phase_end(self, player: str, epoch: int) -> bool:
        """After the ascent phase: hard environments, a new backbone and a new optimizer for it."""
        if not self.one_shot:
            return False
        self.hard_environment.copy_(self._all_logits().argmax(dim=-1))
        counts = self.hard_environment.bincount(minlength=len(self.mass))
        self.mass.copy_(counts / counts.sum())
        self._hard = True
        self.backbone.load_state_dict(self._initial)
        return True

    @torch.no_grad()
    def inferred_environments(self):
        """The environment of each training row [N]: the hard one, or the likeliest so far."""
        if bool(self.hard_environment[0] >= 0):
            return self.hard_environment
        return self._all_logits().argmax(dim=-1)

    def _all_logits(self):
        return logits_of_rows(self.env_generator, *self._row_ids, self.mass.device)

    def log_values(self):
        """For the log: the penalty's weight and the share of each environment in the last batch."""
        weight = self.penalty(self.progress.last())
        return {"penalty_weight": weight, "environment_mass": self.mass}


def _with_penalty(loss, penalty):
    """The backbone's loss, of one part or several, and the penalty as a part of its own."""
    return (*loss, penalty) if isinstance(loss, tuple) else (loss, penalty)
