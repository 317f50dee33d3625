"""Games with a known solution, through the real trainer, in both modes."""

import pytest
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import nn

from recbole_adv import Player
from recbole_adv.errors import ConfigError
from recbole_adv.trainer import INVTrainer

MODES = ["shared_graph", "separate_forward"]
PLAY = {
    "learner": "sgd",
    "learning_rate": 0.05,
    "epochs": 25,
    "train_batch_size": 64,
    "eval_step": 0,
    "max_modules": ["env_generator"],
    "check_gradients": True,
}


class Point(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))


class SaddleGame(GeneralRecommender):
    """min over x, max over y of a function with a known saddle; scores are of no interest."""

    input_type = InputType.PAIRWISE
    start = (2.0, -1.5)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.body = Point(self.start[0])
        self.env_generator = Point(self.start[1])

    def value(self):
        raise NotImplementedError

    def calculate_loss(self, interaction):
        return self.value()

    def calculate_max_objective(self, interaction):
        return self.value()

    def calculate_joint(self, interaction):
        value = self.value()
        return value, value

    def point(self):
        return self.body.value.item(), self.env_generator.value.item()


class Bilinear(SaddleGame):
    def value(self):
        x, y = self.body.value, self.env_generator.value
        return x * y + 0.2 * x**2 - 0.2 * y**2


class Quadratic(SaddleGame):
    """Saddle where x - 1 + y/2 = 0 and x/2 - y + 2 = 0: x = 0, y = 2."""

    def value(self):
        x, y = self.body.value, self.env_generator.value
        return 0.5 * x**2 - x + 0.5 * x * y - 0.5 * y**2 + 2 * y


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model, saddle", [(Bilinear, (0, 0)), (Quadratic, (0, 2))])
def test_converges_to_the_saddle(model, saddle, mode, tiny):
    run = tiny(model, game_update=mode, **PLAY)
    assert type(run.trainer) is INVTrainer
    run.fit(saved=False)
    assert run.model.point() == pytest.approx(saddle, abs=0.02)


def test_shared_graph_is_simultaneous_and_separate_forward_alternates(tiny):
    """One step of the bilinear game by hand, from (2, -1.5) with rate 0.05.

    d/dx = y + 0.4 x = -0.7, d/dy = x - 0.4 y = 2.6 at the start.
    """
    once = {**PLAY, "epochs": 1, "train_batch_size": 10**6, "monitor_interval": 0}
    shared = tiny(Bilinear, game_update="shared_graph", **once)
    shared.fit(saved=False)
    assert shared.model.point() == pytest.approx((2.035, -1.5 + 0.05 * 2.6))
    separate = tiny(Bilinear, game_update="separate_forward", **once)
    separate.fit(saved=False)
    assert separate.model.point() == pytest.approx((2.035, -1.5 + 0.05 * (2.035 + 0.6)))
    first = tiny(Bilinear, game_update="separate_forward", max_first=True, **once)
    first.fit(saved=False)
    y = -1.5 + 0.05 * 2.6
    assert first.model.point() == pytest.approx((2 - 0.05 * (y + 0.8), y))


@pytest.mark.parametrize("mode", MODES)
def test_each_turn_moves_only_its_own_and_its_value_its_way(mode, tiny):
    run = tiny(Quadratic, game_update=mode, **PLAY)
    batch = run.batch()
    trainer, model = run.trainer, run.model
    turns = trainer._turns()
    for name, sign, other in (("min", -1, model.env_generator), ("max", 1, model.body)):
        before, still = model.value().item(), other.value.item()
        trainer.loop.engine.run(turns[name], batch)
        assert sign * (model.value().item() - before) > 0
        assert other.value.item() == still
        assert other.value.grad is None or name == "max"  # min's own gradient of its turn before
        model.zero_grad()


def test_inner_steps_of_either_side(tiny):
    once = {**PLAY, "epochs": 1, "train_batch_size": 10**6, "game_update": "separate_forward"}
    run = tiny(Bilinear, max_steps=3, min_steps=2, **once)
    run.fit(saved=False)
    x, y = 2.0, -1.5
    for _ in range(2):
        x -= 0.05 * (y + 0.4 * x)
    for _ in range(3):
        y += 0.05 * (x - 0.4 * y)
    assert run.model.point() == pytest.approx((x, y))
    assert run.trainer.loop.steps_taken == {"min": 2, "max": 3}


class ThreePlayers(SaddleGame):
    """Each pulls its number to a multiple of its neighbour's; solution 0, 0, 0."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.third = Point(3.0)

    def losses(self):
        a, b, c = self.body.value, self.env_generator.value, self.third.value
        return {"a": (a - 0.5 * b) ** 2, "b": (b - 0.5 * c) ** 2, "c": (c + 0.5 * a) ** 2}

    calculate_max_objective = None

    def calculate_joint(self, interaction):
        return self.losses()

    def players(self):
        named = {"a": self.body, "b": self.env_generator, "c": self.third}
        return [
            Player(name, tuple(module.parameters()), lambda batch, name=name: self.losses()[name])
            for name, module in named.items()
        ]


@pytest.mark.parametrize("mode", MODES)
def test_three_players(mode, tiny):
    run = tiny(ThreePlayers, game_update=mode, c_learning_rate=0.2, **PLAY)
    run.fit(saved=False)
    assert [*run.model.point(), run.model.third.value.item()] == pytest.approx([0, 0, 0], abs=0.01)
    assert run.trainer.optimizers["c"].defaults["lr"] == 0.2


class ClosedForm(Bilinear):
    """The max player's best response, y = x / 0.4 clipped to [-1, 1], without a gradient."""

    calculate_joint = None

    def max_step(self, interaction):
        self.env_generator.value.data.copy_(self.body.value.detach() / 0.4)

    def project_(self, player):
        if player == "max":
            self.env_generator.value.clamp_(-1, 1)


def test_closed_form_move_and_projection(tiny):
    run = tiny(ClosedForm, max_first=True, **{**PLAY, "epochs": 1, "train_batch_size": 10**6})
    run.fit(saved=False)
    assert run.model.point() == pytest.approx((2 - 0.05 * (1 + 0.8), 1.0))


class Surrogate(Bilinear):
    """A move given as a gradient of a tensor: uphill in y by 3."""

    calculate_joint = None

    def max_step(self, interaction):
        return [(self.env_generator.value * 1.0, torch.tensor(3.0))]


def test_surrogate_gradient_goes_uphill(tiny):
    run = tiny(Surrogate, max_first=True, **{**PLAY, "epochs": 1, "train_batch_size": 10**6})
    run.fit(saved=False)
    assert run.model.point()[1] == pytest.approx(-1.5 + 0.05 * 3)


def test_gradients_of_a_move_are_clipped_scaled_and_counted(tiny):
    """The gradient 3, clipped to 0.5, at rate 0.1: 0.05 a step; a scaler changes nothing."""
    keys = {"max_learner": "sgd", "max_learning_rate": 0.1, "max_techniques": ["clip_norm"]}
    keys = {
        **PLAY,
        **keys,
        "max_clip_norm_max_norm": 0.5,
        "epochs": 1,
        "eval_step": 0,
        "monitor_interval": 1,
    }
    for more in ({}, {"enable_amp": True, "enable_scaler": True}):
        run = tiny(Surrogate, **keys, **more)
        start = next(iter(run.model.env_generator.parameters())).item()
        run.fit(saved=False)
        moved = next(iter(run.model.env_generator.parameters())).item() - start
        steps = run.trainer.loop.steps_taken["max"]
        assert moved == pytest.approx(0.05 * steps, rel=1e-4) and steps == len(run.train)
        figures = run.trainer.report._line
        assert figures["max/clip_norm_total_norm"] == pytest.approx(3.0)
        assert figures["max/clip_norm_clipped"] == 1.0
    with pytest.raises(ConfigError, match="Sam changes a loss .* take it out of max_techniques"):
        tiny(Surrogate, **{**keys, "max_techniques": ["sam"]}).fit(saved=False)


def test_gain_is_the_rise_of_the_objective_by_the_step(tiny):
    once = {**PLAY, "epochs": 1, "train_batch_size": 10**6, "monitor_interval": 1}
    run = tiny(Bilinear, game_update="separate_forward", **once)
    run.fit(saved=False)
    x, y = 2.035, -1.5
    moved = y + 0.05 * (x - 0.4 * y)
    gain = (x * moved - 0.2 * moved**2) - (x * y - 0.2 * y**2)
    figures = run.trainer.report.figures()
    assert figures["max/gain"] == pytest.approx(gain, abs=1e-5)
    assert figures["max/objective"] == pytest.approx(x * y + 0.2 * x**2 - 0.2 * y**2, abs=1e-5)
    assert figures["max/gradient_norm"] == pytest.approx(x - 0.4 * y, abs=1e-5)
