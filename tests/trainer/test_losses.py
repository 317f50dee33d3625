"""What a model may return as a loss, and what is said of everything else."""

import math

import pytest
import torch
from recbole.model.general_recommender import BPR
from torch import nn

from recbole_adv.errors import TrainingError

ONE_EPOCH = {"epochs": 1, "eval_step": 0, "train_batch_size": 256}


class Breaking(BPR):
    """A game whose losses break at their third step, as ``broken`` says."""

    broken: dict = {}

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.env_generator = nn.Linear(1, 1)
        self.steps = {"min": 0, "max": 0}

    def value(self, player, value):
        step, self.steps[player] = self.steps[player], self.steps[player] + 1
        return value + self.broken.get(player, 0.0) if step == 2 else value

    def calculate_loss(self, interaction):
        loss = super().calculate_loss(interaction)
        if "part" in self.broken:
            return loss, self.value("min", loss * 0) + self.broken["part"]
        return self.value("min", loss)

    def calculate_max_objective(self, interaction):
        return self.value("max", -self.env_generator.weight.square().sum())


@pytest.mark.parametrize(
    "broken, sentence",
    [
        (
            {"min": math.nan},
            "the loss of player 'min' is nan at its step 2; lower the learning rate",
        ),
        ({"min": math.inf}, "the loss of player 'min' is inf at its step 2"),
        ({"max": math.nan}, "the loss of player 'max' is nan at its step 2"),
        ({"max": math.inf}, "the loss of player 'max' is -inf at its step 2"),
        ({"part": math.nan}, "part 2 of the loss of player 'min' is nan at its step 0"),
    ],
)
def test_a_loss_that_is_no_number_names_player_and_step(broken, sentence, tiny, monkeypatch):
    monkeypatch.setattr(Breaking, "broken", broken)
    run = tiny(Breaking, monitor_interval=0, **ONE_EPOCH)
    with pytest.raises(TrainingError, match=sentence):
        run.fit(saved=False)
    assert all(weight.isfinite().all() for weight in run.model.parameters())


class Returning(BPR):
    """A game whose methods return what ``returned`` says, as somebody's might."""

    returned: dict = {}

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.env_generator = nn.Embedding(self.n_items, 1)

    def of(self, name, interaction):
        user = self.user_embedding(interaction[self.USER_ID]).sum(dim=-1)
        value = user * self.env_generator(interaction[self.ITEM_ID])[:, 0]
        return self.returned.get(name, lambda vector: vector.mean())(value)

    def calculate_loss(self, interaction):
        return self.of("loss", interaction)

    def calculate_max_objective(self, interaction):
        return self.of("objective", interaction)


class ReturningJoint(Returning):
    def calculate_joint(self, interaction):
        return self.of("joint", interaction)


SHAPE = r"a tensor of shape \[16\]"
ONE = "return one number as a tensor, such as .mean"
NO_LOSSES = [
    ("loss", lambda v: None, f"calculate_loss of Returning returned None; {ONE}"),
    ("loss", lambda v: v, f"calculate_loss of Returning returned {SHAPE}; {ONE}"),
    ("loss", lambda v: (v.mean(), 0.5), r"calculate_loss .* \(a tensor of shape \[\], a float\); "),
    ("objective", lambda v: None, f"calculate_max_objective of Returning returned None; {ONE}"),
    ("objective", lambda v: v, f"calculate_max_objective of Returning returned {SHAPE}; {ONE}"),
    ("objective", lambda v: v.mean().item(), f"objective of Returning returned a float; {ONE}"),
    ("joint", lambda v: None, f"calculate_joint of ReturningJoint returned None; {ONE}"),
    ("joint", lambda v: v.mean(), "calculate_joint of ReturningJoint returned a tensor of shape "),
    ("joint", lambda v: (v.mean(), None), r"calculate_joint .* \(a tensor of shape \[\], None\); "),
    ("joint", lambda v: (v.mean(),) * 3, r"calculate_joint .*, a tensor of shape \[\]\); "),
    ("joint", lambda v: (v, v.mean()), f"calculate_joint .*'min', returned {SHAPE}; {ONE}"),
    ("joint", lambda v: (v.mean(), v), f"calculate_joint .*'max', returned {SHAPE}; {ONE}"),
    ("joint", lambda v: {"min": v.mean()}, "calculate_joint .*'max', returned None; "),
]


@pytest.mark.parametrize("name, returned, sentence", NO_LOSSES)
@pytest.mark.parametrize("guarded", [False, True])
def test_what_is_no_loss_is_named(guarded, name, returned, sentence, tiny, monkeypatch):
    """Also where a technique reads the loss before the trainer does."""
    monkeypatch.setattr(Returning, "returned", {name: returned})
    model = ReturningJoint if name == "joint" else Returning
    techniques = {"techniques": ["sam"], "max_techniques": ["sam"]} if guarded else {}
    settings = {**ONE_EPOCH, "train_batch_size": 16, **techniques}
    run = tiny(model, **settings)
    with pytest.raises(TrainingError, match=sentence):
        run.fit(saved=False)


def test_an_error_of_a_joint_loss_of_its_own_stays_what_it_is(tiny, monkeypatch):
    monkeypatch.setattr(Returning, "returned", {"joint": lambda v: v.mean() + "a"})
    with pytest.raises(TypeError, match="unsupported operand"):
        tiny(ReturningJoint, **ONE_EPOCH).fit(saved=False)


def test_a_loss_of_one_element_is_a_loss(tiny, monkeypatch):
    """RecBole's EmbLoss has shape [1]; parts may be mixed."""
    one = {"loss": lambda v: (v.mean(), v.mean()[None]), "objective": lambda v: v.mean()[None]}
    monkeypatch.setattr(Returning, "returned", one)
    tiny(Returning, **ONE_EPOCH).fit(saved=False)


class GradientPenalty(BPR):
    """Losses that take gradients themselves, as WGAN-GP's."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.env_generator = nn.Linear(self.embedding_size, 1)

    def penalty(self, interaction):
        x = self.user_embedding(interaction[self.USER_ID]).detach().requires_grad_()
        score = self.env_generator(x).square().sum()
        (slope,) = torch.autograd.grad(score, x, create_graph=True)
        return slope.square().mean()

    def calculate_max_objective(self, interaction):
        return -self.penalty(interaction)


def test_an_objective_may_take_gradients_where_its_gain_is_monitored(tiny):
    run = tiny(GradientPenalty, monitor_interval=1, max_start_epoch=0, **ONE_EPOCH)
    before = run.model.env_generator.weight.norm()
    run.fit(saved=False)
    gains = run.trainer.loop.statistics["max"].figures()
    assert gains["gain"] > 0 and run.model.env_generator.weight.norm() < before
