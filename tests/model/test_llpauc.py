"""LLPAUC: its function by hand, its constraints, its saddle, its negatives, its rates."""

import math

import pytest
import torch
from torch.nn import functional as F

from recbole_adv import checkpoint, run_recbole_adv
from recbole_adv.errors import ConfigError
from recbole_adv.model.adversarial_recommender.llpauc import BOXES, LLPAUC, llpauc


def negatives(n):
    return {"train_neg_sample_args": {"distribution": "uniform", "sample_num": n}}


SETTINGS = {**negatives(4), "alpha": 0.9, "beta": 0.1, "learning_rate": 0.01}
MIDDLE = {
    "a": 0.7,
    "b": 0.2,
    "s_neg": 0.3,
    "s_pos": 0.1,
    "gamma": -0.4,
    "theta_a": 0.2,
    "theta_b": 0.6,
}


def r(x):
    return math.log(1 + math.exp(5 * x)) / 5


def set_scalars(model, values):
    with torch.no_grad():
        for name, value in model.all_scalars().items():
            value.fill_(values[name])


# --- the function -------------------------------------------------------------------------------


def test_function_at_the_start_by_hand(tiny):
    """All probabilities 1/2: r(0.25 + 1 - 0.5) = 0.754649, r(-0.25 + 1 - 0.5) = 0.300387.

    F = 0.5 + 0.754649 / 0.25 - 0.5 - 0.300387 / 0.5 - 0 + 0.5 (1 + 0) + 0.5 (1 + 0 - 0).
    """
    run = tiny("LLPAUC", **{**SETTINGS, "alpha": 0.5, "beta": 0.25})
    batch = run.batch()
    for embedding in (run.model.user_embedding, run.model.item_embedding):
        torch.nn.init.zeros_(embedding.weight)
    expected = 3.018597 - 0.600773 + 1
    assert run.model.calculate_loss(batch).item() == pytest.approx(expected, abs=1e-5)
    loss, objective = run.model.calculate_joint(batch)
    assert loss is objective


def test_function_with_every_term_by_hand():
    """p = 0.8, 0.4; n = 0.3, 0.1; 2 (1 + gamma) = 1.2; the scalars of MIDDLE."""
    positive = (r(-0.01 + 0.96 - 0.1) + r(-0.09 + 0.48 - 0.1)) / 2
    negative = (r(0.01 + 0.36 - 0.3) + r(0.01 + 0.12 - 0.3)) / 2
    expected = 0.3 + negative / 0.1 - 0.1 - positive / 0.9 - 0.16 + 0.2 * 0.3 - 0.6 * (0.2 - 0.6)
    scalars = {name: torch.tensor(value) for name, value in MIDDLE.items()}
    value = llpauc(torch.tensor([0.8, 0.4]), torch.tensor([0.3, 0.1]), scalars, 0.9, 0.1)
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_negatives_belong_to_their_positives(tiny):
    """Seven positives and four negatives each, against a loop over RecBole's rows."""
    run = tiny("LLPAUC", **SETTINGS, train_batch_size=28)
    batch, model = run.batch(), run.model
    for embedding in (model.user_embedding, model.item_embedding):
        torch.nn.init.normal_(embedding.weight)
    p, n = model.probabilities(batch)
    assert p.shape == (7,) and n.shape == (4, 7)
    users, items, others = (
        batch[name] for name in (model.USER_ID, model.ITEM_ID, model.NEG_ITEM_ID)
    )
    assert (others > 0).all()
    for row in range(28):
        k, i = divmod(row, 7)
        assert users[row] == users[i] and items[row] == items[i]
        user_e = model.user_embedding.weight[users[i]]
        score = user_e @ model.item_embedding.weight[others[row]]
        assert n[k, i].item() == pytest.approx(score.sigmoid().item(), abs=1e-6)
        score = user_e @ model.item_embedding.weight[items[i]]
        assert p[i].item() == pytest.approx(score.sigmoid().item(), abs=1e-6)


def test_without_negatives_it_says_what_to_write(tiny):
    with pytest.raises(ConfigError, match="sample_num': 100"):
        tiny("LLPAUC", train_neg_sample_args=None)


# --- the game -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shared_graph", "separate_forward"])
def test_constraints_hold_after_every_step(mode, tiny):
    """A rate of 1 throws every scalar out of its box in some step; none stays outside or sticks."""
    run = tiny(
        "LLPAUC", **{**SETTINGS, "learning_rate": 1.0}, game_update=mode, check_gradients=True
    )
    model, engine = run.model, run.trainer.loop.engine
    batch, turns = run.batch(), run.trainer._turns()
    finish, at_the_edge = engine._finish, set()

    def checked(turn, outcome):
        finish(turn, outcome)
        own = model.adversary if turn.player.name == "max" else model.scalars
        for name, value in own.items():
            low, high = BOXES[name]
            assert low <= value.item() <= high, name
            at_the_edge.update({name} if value.item() in (low, high) else ())

    engine._finish = checked
    for _ in range(15):
        if mode == "shared_graph":
            engine.run_shared(list(turns.values()), run.trainer._joint(), batch)
        else:
            for turn in turns.values():
                engine.run(turn, batch)
    assert len(at_the_edge) >= 4
    set_scalars(model, {name: low for name, (low, _) in BOXES.items()})
    gradients = torch.autograd.grad(model.calculate_loss(batch), list(model.all_scalars().values()))
    assert sum(gradient != 0 for gradient in gradients) >= 6  # a clip in the forward pass gives 0


def test_each_player_moves_its_own_scalars_its_own_way(tiny):
    run = tiny("LLPAUC", **SETTINGS, learner="sgd")
    model, batch = run.model, run.batch()
    set_scalars(model, MIDDLE)
    names = list(MIDDLE)
    before = {name: model.all_scalars()[name].item() for name in names}
    values = [model.all_scalars()[name] for name in names]
    gradients = dict(zip(names, torch.autograd.grad(model.calculate_loss(batch), values)))
    run.trainer.loop.engine.run_shared(
        list(run.trainer._turns().values()), run.trainer._joint(), batch
    )
    rates = {"a": -1, "b": -1, "theta_a": -1, "theta_b": -1, "s_neg": -2, "s_pos": 2, "gamma": 2}
    for name in names:  # both players from one point, three scalars at twice the rate
        moved = before[name] + 0.01 * rates[name] * gradients[name].item()
        assert model.all_scalars()[name].item() == pytest.approx(moved, abs=1e-6), name


def test_rates_are_doubled_and_nothing_else(tiny):
    run = tiny("LLPAUC", **SETTINGS)
    rate = {
        id(parameter): group["lr"]
        for optimizer in (run.trainer.optimizer, run.trainer.optimizer_max)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in run.model.named_parameters():
        fast = name.split(".")[-1] in ("gamma", "s_pos", "s_neg")
        assert rate[id(parameter)] == (0.02 if fast else 0.01), name
    owned = {
        name: set(map(id, turn.player.parameters)) for name, turn in run.trainer._turns().items()
    }
    assert owned["max"] == set(map(id, run.model.adversary.values()))


class FixedScores(LLPAUC):
    """Only the scalars move."""

    p, n = torch.tensor([0.9, 0.8, 0.3]), torch.tensor([0.6, 0.2, 0.1, 0.05])

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.user_embedding.requires_grad_(False)
        self.item_embedding.requires_grad_(False)

    def probabilities(self, interaction):
        return self.p, self.n


def min_max_on_a_grid(p, n, alpha, beta):
    """min over a, b, s_neg of max over s_pos and gamma >= -a, gamma >= b - 1, by trying them all.

    The multipliers theta, minimised, are what keeps gamma to its bounds.
    """

    def r(x):
        return torch.log1p(torch.exp(5 * x)).mean(-1) / 5

    a, b, gamma = torch.linspace(0, 1, 51), torch.linspace(0, 1, 51), torch.linspace(-1, 1, 201)
    s_pos, s_neg = torch.linspace(-1, 4, 251), torch.linspace(0, 1, 51)
    slope = 2 * (1 + gamma)
    curve = slope[:, None] * p - (p - a[:, None, None]).square()  # [a, gamma, p]
    left = (-s_pos - r(curve.unsqueeze(2) - s_pos[:, None]) / alpha).amax(-1)
    curve = slope[:, None] * n + (n - b[:, None, None]).square()  # [b, gamma, n]
    lower = (s_neg + r(curve.unsqueeze(2) - s_neg[:, None]) / beta).transpose(1, 2)
    lower = lower.masked_fill(gamma < b[:, None, None] - 1, -torch.inf).flatten(0, 1)
    left = left.masked_fill(gamma < -a[:, None], -torch.inf) - gamma.square()
    return min((row + lower).amax(-1).min().item() for row in left)


@pytest.mark.parametrize("alpha, beta", [(0.9, 0.5), (0.7, 0.8)])
def test_finds_the_min_max_value(alpha, beta, tiny):
    """Against a grid, and no scalar alone would leave; in the second case s_neg ends at 0."""
    settings = {**negatives(1), "alpha": alpha, "beta": beta, "learner": "sgd", "eval_step": 0}
    run = tiny(FixedScores, **settings, learning_rate=0.1, train_batch_size=8, epochs=8)
    run.fit(saved=False)
    model = run.model
    scalars = {name: value.detach() for name, value in model.all_scalars().items()}
    value = llpauc(model.p, model.n, scalars, alpha, beta).item()
    # The grid's step of 0.02 costs less than 2e-3 where the function is flat.
    assert value == pytest.approx(min_max_on_a_grid(model.p, model.n, alpha, beta), abs=2e-3)
    for name, (low, high) in BOXES.items():
        sign = 1 if name in ("gamma", "s_pos") else -1
        for other in torch.linspace(low, min(high, 5.0), 101):
            moved = llpauc(model.p, model.n, {**scalars, name: other}, alpha, beta).item()
            assert sign * (moved - value) <= 1e-4, (name, other)
    assert (scalars["s_neg"].item() == 0) == (beta == 0.8)


# --- the recommender ----------------------------------------------------------------------------


def test_learns_the_checkerboard(settings_of):
    """42 items are unseen, 12 of the user's colour: recall@10 is 0.83 by colour, 0.24 by chance."""
    given = settings_of("LLPAUC", **{**SETTINGS, "learning_rate": 0.02}, epochs=30, eval_step=10)
    result = run_recbole_adv(
        "LLPAUC", "checkerboard", config_dict={**given, "valid_metric": "Recall@10"}
    )
    assert result["test_result"]["recall@10"] > 0.7


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree, key=str) for leaf in leaves(tree[key])]
    if isinstance(tree, (list, tuple)):
        return [leaf for item in tree for leaf in leaves(item)]
    return [tree.tolist() if hasattr(tree, "tolist") else tree]


def test_four_epochs_are_two_and_two(settings_of):
    given = settings_of("LLPAUC", epochs=4, **SETTINGS)
    whole = run_recbole_adv("LLPAUC", "checkerboard", config_dict=given)
    half = run_recbole_adv("LLPAUC", "checkerboard", config_dict={**given, "epochs": 2})
    rest = run_recbole_adv(resume=half["run_dir"], config_dict={"epochs": 4})
    assert rest["test_result"] == whole["test_result"]
    states = [checkpoint.load(f"{run['run_dir']}/last.pth") for run in (whole, rest)]
    for key in ("state_dict", "optimizer", "recbole_adv"):
        assert leaves(states[0][key]) == leaves(states[1][key]), key


def test_softplus_is_the_official_form():
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    official = torch.log(1 + torch.exp(5 * x)) / 5
    assert torch.allclose(F.softplus(x, beta=5), official, atol=1e-9)
