"""WassersteinCritic: what the critic measures, who moves what and how often, what is kept."""

import pytest
import torch
from torch import nn

from recbole_adv import checkpoint, run_recbole_adv
from recbole_adv.model.adversarial_recommender.wassersteincritic import (
    Draw,
    Network,
    WassersteinCritic,
    distance,
    gradient_penalty,
)

SETTINGS = {"generator_hidden_size": [32], "critic_hidden_size": [16], "check_gradients": True}
LIPSCHITZ = ["clip", "gradient_penalty", "one_sided_penalty"]


def settings(**given):
    return {**SETTINGS, **given}


def values(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def equal(ones, others):
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


# --- the critic ---------------------------------------------------------------------------------


class Gaussians(WassersteinCritic):
    """The critic between N(0, 1) and N(2, 1); the generator never moves (generator_budget: 0)."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.critic = Network([1, 32, 32, 1])

    @staticmethod
    def sample(n):
        empty = torch.empty(n, 0)
        return Draw(torch.randn(n, 1), empty, torch.ones(n, 1), empty)

    def draw(self, interaction):
        return self.sample(256)

    def generated(self, draw):
        return torch.randn_like(draw.real) + 2


@pytest.mark.parametrize("weight", [10, 40])
def test_distance_of_two_gaussians(weight, tiny):
    """The distance is |2 - 0|; a penalty of weight w lets the slope be 1 + 2 / 2w: 2.2 and 2.05.

    Tolerance 0.1: two samples of 20000 have means off by 0.01 each, the rest is training.
    """
    given = {
        "generator_budget": 0,
        "critic_steps": 1,
        "learner": "adam",
        "learner_betas": [0.5, 0.9],
    }
    given |= {"critic_learning_rate": 0.002, "train_batch_size": 2, "eval_step": 0}
    run = tiny(Gaussians, **settings(penalty_weight=weight), **given)
    run.fit(saved=False)
    assert run.trainer.loop.steps_taken == {"critic": 960, "generator": 0}
    torch.manual_seed(1)
    draw = run.model.sample(20000)
    with torch.no_grad():
        found = distance(run.model.critic, draw.condition, draw.real, run.model.generated(draw))
    assert found.item() == pytest.approx(2 * (1 + 2 / (2 * weight)), abs=0.1)


@pytest.mark.parametrize("one_sided, slope", [(False, 0.9), (True, -1.1)])
def test_a_critic_the_wrong_way_round_turns_only_under_the_one_sided_penalty(one_sided, slope):
    """f = w x between 0 and 2, from w = 1; the best is w = -(1 + 2 / 20)."""
    w = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([w], lr=0.02)
    real, fake = torch.zeros(8, 1), torch.full((8, 1), 2.0)

    def critic(condition, x):
        return x @ w

    for _ in range(200):
        optimizer.zero_grad()
        penalty = gradient_penalty(critic, real, real, fake, one_sided)
        (10 * penalty - distance(critic, real, real, fake)).backward()
        optimizer.step()
    assert w.item() == pytest.approx(slope, abs=1e-3)


def test_gradient_penalty_of_a_plane_by_hand():
    """f = w x has the gradient w: penalty (|w| - 1)^2, derivative 2 (|w| - 1) w / |w|."""
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    real, fake = torch.randn(5, 2), torch.randn(5, 2)
    penalty = gradient_penalty(lambda condition, x: x @ w, real, real, fake)
    assert penalty.item() == pytest.approx(16)
    penalty.backward()
    assert w.grad.tolist() == pytest.approx([4.8, 6.4])


def test_losses_by_hand(tiny):
    """Linear networks of known weights; users, masks and conditions as the batch drew them."""
    run = tiny("WassersteinCritic", **settings(lipschitz="clip", reconstruction_weight=0.5))
    model, batch = run.model, run.batch()
    model.generator.forward = lambda condition, noise: 2 * condition + 0.5
    model.critic.forward = lambda condition, vector: vector.sum(-1, keepdim=True)
    draw = model.draw(batch)
    users = sorted(set(batch[model.USER_ID].tolist()))
    assert draw.real.shape == (len(users), model.n_items)
    assert draw.real.sum(-1).tolist() == [16] * len(users)  # 20 clicks, 16 of them for training
    assert (draw.condition <= draw.real).all() and (draw.mask >= draw.real).all()
    shown, n_mask = draw.condition.sum(-1), draw.mask.sum(-1)
    generated = (2 * shown + 0.5 * n_mask).mean()
    assert model.critic_loss(batch).item() == pytest.approx(generated.item() - 16, rel=1e-5)
    # Shown ones are off by 1.5, hidden ones by -0.5, zeros that count by 0.5.
    error = (1.5**2 * shown + 0.25 * (n_mask - shown)).mean()
    plausible, reconstruction = model.generator_loss(batch)
    assert plausible.item() == pytest.approx(-generated.item(), rel=1e-5)
    assert reconstruction.item() == pytest.approx(0.5 * error.item(), rel=1e-5)


# --- the players --------------------------------------------------------------------------------


@pytest.mark.parametrize("lipschitz", LIPSCHITZ)
def test_neither_touches_the_other(lipschitz, tiny):
    run = tiny("WassersteinCritic", **settings(lipschitz=lipschitz, reconstruction_weight=0.0))
    model, batch, engine = run.model, run.batch(), run.trainer.loop.engine
    networks = {"critic": model.critic, "generator": model.generator}
    turns = run.trainer._turns()
    for name in ("critic", "generator", "critic", "generator"):
        mine, other = networks[name], networks["critic" if name == "generator" else "generator"]
        moved, still = values(mine), values(other)
        gradients = [None if p.grad is None else p.grad.clone() for p in other.parameters()]
        engine.run(turns[name], batch)
        assert equal(values(other), still) and not equal(values(mine), moved)
        for p, gradient in zip(other.parameters(), gradients):
            assert p.requires_grad
            assert p.grad is gradient is None or torch.equal(p.grad, gradient)
        # Without reconstruction the generator's gradient comes through the critic alone.
        assert any(p.grad.abs().sum() > 0 for p in mine.parameters())


def test_two_optimizers_of_their_own(tiny):
    run = tiny("WassersteinCritic", **settings(critic_learning_rate=0.3, generator_learner="sgd"))
    assert type(run.trainer.optimizer) is torch.optim.RMSprop
    assert run.trainer.optimizer.defaults["lr"] == 0.3
    assert type(run.trainer.optimizers["generator"]) is torch.optim.SGD
    assert run.trainer.optimizers["generator"].defaults["lr"] == 0.0005


@pytest.mark.parametrize(
    "schedule, generator_turns",
    [({"critic_steps": 3}, 8), ({"critic_steps": 1, "generator_interval": 3}, 2)],
)
def test_three_critic_steps_for_each_of_the_generator(schedule, generator_turns, tiny):
    run = tiny("WassersteinCritic", **settings(**schedule), eval_step=0)  # 2 epochs of 4 batches
    order, engine = [], run.trainer.loop.engine
    play = engine.run
    engine.run = lambda turn, batch: order.append(turn.player.name) or play(turn, batch)
    run.fit(saved=False)
    steps = 24 if "generator_interval" not in schedule else 8
    assert run.trainer.loop.steps_taken == {"critic": steps, "generator": generator_turns}
    assert order[:8] == [*["critic"] * 3, "generator"] * 2


def test_clipping_holds_after_each_step(tiny):
    run = tiny("WassersteinCritic", **settings(lipschitz="clip", clip_value=0.01), eval_step=0)
    engine, largest = run.trainer.loop.engine, []
    finish = engine._finish

    def checked(turn, outcome):
        finish(turn, outcome)
        largest.append(max(p.abs().max().item() for p in run.model.critic.parameters()))

    engine._finish = checked
    run.fit(saved=False)
    assert len(largest) == 32 and max(largest) == pytest.approx(0.01)
    assert max(p.abs().max().item() for p in run.model.generator.parameters()) > 0.05


# --- what is kept within a batch ----------------------------------------------------------------


class Recomputed(WassersteinCritic):
    """Generates in each step of the critic anew."""

    def generated(self, draw):
        self._generated = None
        return super().generated(draw)


@pytest.mark.parametrize("schedule", [{"critic_steps": 3}, {"generator_steps": 2}])
@pytest.mark.parametrize("lipschitz", LIPSCHITZ)
def test_cached_equals_recomputed(lipschitz, schedule, tiny):
    states, calls = [], []
    for model in (WassersteinCritic, Recomputed):
        given = settings(lipschitz=lipschitz, noise_size=4, **schedule)
        run = tiny(model, **given, eval_step=0)
        counted = [0]
        run.model.generator.register_forward_hook(
            lambda *_, counted=counted: counted.__setitem__(0, counted[0] + 1)
        )
        run.fit(saved=False)
        states.append(run.model.state_dict())
        calls.append(counted[0])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    generator_steps = schedule.get("generator_steps", 1)
    assert calls == [8 * (1 + generator_steps), 8 * (3 + generator_steps)]


def test_cache_follows_the_generator_and_the_batch(tiny):
    run = tiny("WassersteinCritic", **SETTINGS)
    model, batch, turns = run.model, run.batch(), run.trainer._turns()
    draw = model.draw(batch)
    first = model.generated(draw)
    assert model.generated(draw) is first and first.grad_fn is None
    run.trainer.loop.engine.run(turns["critic"], batch)
    assert model.draw(batch) is draw and model.generated(draw) is first
    run.trainer.loop.engine.run(turns["generator"], batch)
    second = model.generated(draw)
    expected = draw.mask * model.generator(draw.condition, draw.noise)
    assert not torch.equal(first, second) and torch.equal(second, expected)
    other = model.draw(next(iter(run.train)))
    assert other is not draw and model.generated(other) is not second


# --- the recommender ----------------------------------------------------------------------------


def test_no_chance_in_prediction(tiny):
    run = tiny("WassersteinCritic", **settings(noise_size=5))
    model, batch = run.model.eval(), run.batch()
    once, twice = model.full_sort_predict(batch), model.full_sort_predict(batch)
    assert torch.equal(once, twice)
    each = once.view(-1, model.n_items).gather(1, batch[model.ITEM_ID].unsqueeze(1)).squeeze(1)
    assert torch.allclose(model.predict(batch), each)


def test_learns_the_checkerboard_better_than_popularity(settings_of):
    """42 items are unseen, 12 of the user's colour: recall@10 is 0.83 by colour, 0.24 by chance."""
    given = {"epochs": 10, "valid_metric": "Recall@10"}
    ours = settings_of("WassersteinCritic", **given, generator_hidden_size=[64])
    found = run_recbole_adv("WassersteinCritic", "checkerboard", config_dict=ours)
    popular = run_recbole_adv("Pop", "checkerboard", config_dict=settings_of("Pop", **given))
    assert found["test_result"]["recall@10"] > 0.65 > 0.4 > popular["test_result"]["recall@10"]


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree, key=str) for leaf in leaves(tree[key])]
    if isinstance(tree, (list, tuple)):
        return [leaf for item in tree for leaf in leaves(item)]
    return [tree.tolist() if hasattr(tree, "tolist") else tree]


@pytest.mark.parametrize("schedule", [{"critic_steps": 3}, {"generator_interval": 3}])
def test_four_epochs_are_two_and_two(schedule, settings_of):
    given = settings_of("WassersteinCritic", **settings(noise_size=4, **schedule), epochs=4)
    whole = run_recbole_adv("WassersteinCritic", "checkerboard", config_dict=given)
    half = run_recbole_adv("WassersteinCritic", "checkerboard", config_dict={**given, "epochs": 2})
    rest = run_recbole_adv(resume=half["run_dir"], config_dict={"epochs": 4})
    assert rest["test_result"] == whole["test_result"]
    states = [checkpoint.load(f"{run['run_dir']}/last.pth") for run in (whole, rest)]
    for key in ("state_dict", "optimizer", "recbole_adv"):
        assert leaves(states[0][key]) == leaves(states[1][key]), key
