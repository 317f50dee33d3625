"""RecBole issue 2123: "Trying to backward through the graph a second time", explained.

Every model here is one that the issue's users could have written.
"""

from collections import deque

import pytest
import torch
from recbole.model.general_recommender import BPR
from recbole.model.layers import MLPLayers
from torch import nn

from recbole_adv.errors import TrainingError
from recbole_adv.game.player import graphs_apart
from recbole_adv.trainer.graph_guard import explain_kept_graph, graph_tensors, sequence_number

MODES = ["shared_graph", "separate_forward"]
ONE_EPOCH = {"epochs": 1, "eval_step": 0, "train_batch_size": 64}


class Generator(nn.Module):
    """Weights of two environments for each user."""

    def __init__(self, n_users):
        super().__init__()
        self.logit = nn.Embedding(n_users, 2)

    def forward(self, user):
        return self.logit(user).softmax(dim=-1)


class Game(BPR):
    """The game of the issue: an adversary reweighs the users' losses."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.env_generator = Generator(self.n_users)
        self.average = None
        self.seen = 0

    def weights(self, interaction):
        return self.env_generator(interaction[self.USER_ID])

    def row_loss(self, interaction):
        user = self.user_embedding(interaction[self.USER_ID])
        better = self.item_embedding(interaction[self.ITEM_ID])
        worse = self.item_embedding(interaction[self.NEG_ITEM_ID])
        return nn.functional.softplus((user * (worse - better)).sum(dim=-1))

    def calculate_loss(self, interaction):
        return (self.row_loss(interaction) * self.weights(interaction)[:, 0]).mean()

    def calculate_max_objective(self, interaction):
        return self.calculate_loss(interaction)

    def calculate_joint(self, interaction):
        value = self.calculate_loss(interaction)
        return value, value


class RunningAverage(Game):
    """Forgets the ``detach()`` in a running average of the loss."""

    def calculate_loss(self, interaction):
        loss = super().calculate_loss(interaction)
        self.average = loss if self.average is None else 0.9 * self.average + 0.1 * loss
        # Has this batch's graph, which is legitimate: the attribute is assigned anew each time.
        self.last_loss = 2 * loss
        return loss + self.average


class CachedWeights(Game):
    """Infers the environments in every third batch and uses them in the next two (the issue)."""

    def weights(self, interaction):
        if self.seen % 3 == 0:
            self.cached = self.env_generator(torch.arange(self.n_users))
        self.seen += 1
        self.scores = self.user_embedding.weight.sum(dim=-1)  # anew in each batch: innocent
        return self.cached[interaction[self.USER_ID]]


class InList(CachedWeights):
    def weights(self, interaction):
        result = super().weights(interaction)
        self.history = [torch.zeros(1), {"weights": self.cached}]
        return result


class InDict(RunningAverage):
    def calculate_loss(self, interaction):
        loss = Game.calculate_loss(self, interaction)
        memory = vars(self).setdefault("memory", {"loss": loss})
        self.other = {"loss": 2 * loss}
        memory["loss"] = 0.9 * memory["loss"] + 0.1 * loss
        return loss + memory["loss"]


class InDeque(Game):
    kind, bank = deque, ()

    def weights(self, interaction):
        value = super().weights(interaction) + sum(kept.mean() for kept in self.bank)
        self.bank = self.kind([value])
        return value


class InSet(InDeque):
    kind = set


class InSubmodule(Game):
    def weights(self, interaction):
        generator = self.env_generator
        if self.seen == 0:
            generator.cache = (generator(torch.arange(self.n_users)),)
        self.seen += 1
        return generator.cache[0][interaction[self.USER_ID]]


class InBuffer(Game):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.register_buffer("mean_weight", torch.zeros(2))

    def calculate_loss(self, interaction):
        self.mean_weight = 0.9 * self.mean_weight + 0.1 * self.weights(interaction).mean(dim=0)
        return super().calculate_loss(interaction) + self.mean_weight[0]


@pytest.mark.parametrize(
    "model, mode, guilty",
    [
        (RunningAverage, "shared_graph", "self.average"),
        (RunningAverage, "separate_forward", "self.average"),
        (CachedWeights, "shared_graph", "self.cached"),
        (InList, "shared_graph", "self.cached, self.history[1]['weights']"),
        (InDict, "shared_graph", "self.memory['loss']"),
        (InDict, "separate_forward", "self.memory['loss']"),
        (InDeque, "shared_graph", "self.bank[0]"),
        (InSet, "shared_graph", "self.bank"),
        (InSubmodule, "shared_graph", "self.env_generator.cache[0]"),
        (InBuffer, "shared_graph", "self.mean_weight"),
        (InBuffer, "separate_forward", "self.mean_weight"),
    ],
)
def test_the_attribute_that_kept_a_graph_is_named_and_no_other(model, mode, guilty, tiny):
    run = tiny(model, game_update=mode, **ONE_EPOCH)
    with pytest.raises(TrainingError) as caught:
        run.fit(saved=False)
    sentence = str(caught.value)
    assert sentence.startswith(
        f"{guilty} of {model.__name__} keeps the graph of an earlier forward pass"
    )
    assert ".detach()" in sentence and "retain_graph" in sentence
    assert sentence.count("self.") == guilty.count("self.")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attribute", ["last_loss", "parts"])
def test_a_graph_of_this_batch_is_nobodys_fault(mode, attribute, tiny):
    class Tidy(Game):
        def calculate_loss(self, interaction):
            loss = super().calculate_loss(interaction)
            setattr(self, attribute, [loss, {"twice": 2 * loss}])
            average = loss.detach() if self.average is None else self.average
            self.average = 0.9 * average + 0.1 * loss.detach()
            return loss

    run = tiny(Tidy, game_update=mode, **ONE_EPOCH)
    run.fit(saved=False)
    assert run.trainer.loop.turns_taken == {"min": len(run.train), "max": len(run.train)}
    assert run.trainer.train_loss_dict[0] > 0


def test_a_tensor_outside_of_the_model_is_described(tiny):
    kept = []

    class Outside(Game):
        def calculate_loss(self, interaction):
            loss = super().calculate_loss(interaction)
            kept.append(loss if not kept else 0.5 * kept[-1] + loss)
            return kept[-1]

    run = tiny(Outside, game_update="separate_forward", **ONE_EPOCH)
    with pytest.raises(
        TrainingError, match="no tensor, list.* attribute of Outside holds it.*outside of the model"
    ):
        run.fit(saved=False)


def test_graph_tensors_are_found_by_name():
    net = nn.Sequential(nn.Linear(2, 1))
    net[0].plain, net[0].grown = torch.ones(2), net[0](torch.ones(2))
    net.register_buffer("mean", net[0].grown * 3)
    net.pair = (torch.ones(1), [net[0].grown * 2])
    assert sorted(name for name, _ in graph_tensors(net)) == ["0.grown", "mean", "pair[1][0]"]


def test_blame_is_shared_by_those_that_reach_the_freed_graph_only():
    net = nn.Linear(2, 1)
    net.first = net(torch.ones(2)).exp()
    net.elsewhere = net(torch.zeros(2)).exp()
    net.second = 2 * net.first
    net.second.sum().backward()
    net.elsewhere.sum().backward()  # freed too, but the loss does not go through it
    begun = sequence_number()
    net.current = net(torch.ones(2)).exp()
    loss = (net.current * net.second).sum()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    sentence = explain_kept_graph(net, [loss], begun)
    assert sentence.startswith("self.first, self.second of Linear keeps")


class WithMLP(BPR):
    """An MLP in the min player: stepping between two backward calls over one graph would raise
    "modified by an inplace operation"."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.mlp = MLPLayers([2 * self.embedding_size, 8, 1], activation="tanh")
        self.env_generator = Generator(self.n_users)

    def score(self, user, item):
        return self.mlp(torch.cat([self.user_embedding(user), self.item_embedding(item)], dim=-1))

    def calculate_joint(self, interaction):
        user = interaction[self.USER_ID]
        better, worse = self.score(user, interaction[self.ITEM_ID]), self.score(
            user, interaction[self.NEG_ITEM_ID]
        )
        row = nn.functional.softplus(worse - better).squeeze(-1)
        value = (row * self.env_generator(user)[:, 0]).mean()
        return value, value * 1.0

    def calculate_loss(self, interaction):
        return self.calculate_joint(interaction)[0]

    def calculate_max_objective(self, interaction):
        return self.calculate_joint(interaction)[1]


@pytest.mark.parametrize("max_first", [False, True])
def test_an_mlp_in_the_min_player_is_not_modified_in_place(max_first, tiny):
    """One batch of shared_graph by hand: both gradients at the point where the batch began."""
    whole = {**ONE_EPOCH, "train_batch_size": 10**6}
    sgd = {"learner": "sgd", "learning_rate": 0.5, "max_first": max_first, "check_gradients": True}
    run = tiny(WithMLP, game_update="shared_graph", **whole, **sgd)
    batch, model = run.batch(), run.model
    model.train()
    value = model.calculate_joint(batch)[0]
    names, weights = zip(*model.named_parameters())
    gradients = torch.autograd.grad(value, weights)
    expected = {
        name: weight.detach() + (0.5 if name.startswith("env_generator") else -0.5) * gradient
        for name, weight, gradient in zip(names, weights, gradients)
    }
    engine, turns = run.trainer.loop.engine, run.trainer._turns()
    engine.run_shared([turns[n] for n in run.trainer.schedule.turns], run.trainer._joint(), batch)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-6, atol=1e-7)
    # And with Adam over many batches of both players, nothing is raised.
    again = tiny(WithMLP, game_update="shared_graph", max_first=max_first, **ONE_EPOCH)
    again.fit(saved=False)
    assert again.trainer.loop.steps_taken == {"min": len(again.train), "max": len(again.train)}


@pytest.mark.parametrize("mode", MODES)
def test_an_objective_that_does_not_depend_on_its_player_is_a_sentence(mode, tiny):
    class Detached(Game):
        def weights(self, interaction):
            return super().weights(interaction).detach()

    run = tiny(Detached, game_update=mode, **ONE_EPOCH)
    with pytest.raises(TrainingError, match="loss of player 'max' does not depend on its param"):
        run.fit(saved=False)


def test_a_loss_without_any_graph_is_a_sentence(tiny):
    class Constant(BPR):
        def calculate_loss(self, interaction):
            with torch.no_grad():
                return super().calculate_loss(interaction)

    with pytest.raises(TrainingError, match="'min' does not depend.*detach.., a no_grad"):
        tiny(Constant, **ONE_EPOCH).fit(saved=False)


def test_a_cache_made_in_anothers_turn_is_a_sentence(tiny):
    """In separate_forward the adversary is frozen where the cache is made: it has no graph."""
    run = tiny(CachedWeights, game_update="separate_forward", **ONE_EPOCH)
    with pytest.raises(
        TrainingError, match="'max' does not depend.*kept from another player's turn"
    ):
        run.fit(saved=False)


class Polluter(Game):
    """Goes back by itself inside the adversary's objective, which fills everybody's gradients."""

    def calculate_max_objective(self, interaction):
        value = self.calculate_loss(interaction)
        value.backward(retain_graph=True)
        return value

    def calculate_joint(self, interaction):
        return self.calculate_loss(interaction), self.calculate_max_objective(interaction)


class LeakyBackward(Game):
    """A hook that writes into the other player's gradient while the adversary's flows."""

    def calculate_max_objective(self, interaction):
        value = self.calculate_loss(interaction)

        def leak(gradient):
            weight = self.user_embedding.weight
            weight.grad = torch.ones_like(weight)

        value.register_hook(leak)
        return value


@pytest.mark.parametrize(
    "model, mode, what",
    [
        (Polluter, "shared_graph", "calculate_joint changed gradients"),
        (Polluter, "separate_forward", "the loss of 'max' changed gradients"),
        (LeakyBackward, "separate_forward", "the backward of 'max' changed gradients"),
    ],
)
def test_check_gradients_catches_a_model_that_fills_gradients(model, mode, what, tiny):
    run = tiny(model, game_update=mode, check_gradients=True, **ONE_EPOCH)
    with pytest.raises(TrainingError, match=what):
        run.fit(saved=False)


@pytest.mark.parametrize("mode", MODES)
def test_check_gradients_is_silent_on_a_tidy_model(mode, tiny):
    tiny(Game, check_gradients=True, game_update=mode, **ONE_EPOCH).fit(saved=False)


class Apart(Game):
    """Two losses that share values, but no node; each part can be made to break the word."""

    shares_from, keeps = None, False

    def calculate_loss(self, interaction):
        return (self.row_loss(interaction) * self.weights(interaction).detach()[:, 0]).mean()

    def calculate_max_objective(self, interaction):
        return (self.row_loss(interaction).detach() * self.weights(interaction)[:, 0]).mean()

    def together(self, interaction):
        rows, weights = self.row_loss(interaction), self.weights(interaction)[:, 0]
        self.seen += 1
        held = rows if self.shares_from and self.seen >= self.shares_from else rows.detach()
        loss, value = (rows * weights.detach()).mean(), (held * weights).mean()
        if self.keeps:
            loss = loss if self.average is None else loss + self.average
            self.average = loss
        return loss, value

    @graphs_apart
    def calculate_joint(self, interaction):
        return self.together(interaction)


class Unmarked(Apart):
    def calculate_joint(self, interaction):
        return self.together(interaction)


def test_one_backward_of_graphs_apart_gives_each_player_its_own(tiny):
    """Every weight after an epoch is that of two backward passes, each kept to its player."""
    weights = {}
    for model in (Apart, Unmarked):
        settings = {"train_batch_size": 64, "check_gradients": model is Unmarked}
        run = tiny(model, game_update="shared_graph", epochs=2, eval_step=0, **settings)
        run.fit(saved=False)
        weights[model] = run.model.state_dict()
    assert weights[Apart].keys() == weights[Unmarked].keys()
    assert all(weights[Apart][key].equal(weights[Unmarked][key]) for key in weights[Apart])


@pytest.mark.parametrize("shares_from, checked", [(1, False), (1, True), (2, True)])
def test_graphs_that_are_not_apart_are_refused(shares_from, checked, tiny):
    """At the first step, and with check_gradients at any: here the second is the first to break it."""
    run = tiny(Apart, game_update="shared_graph", check_gradients=checked, **ONE_EPOCH)
    run.model.shares_from = shares_from
    sentence = "the loss of player 'max' leads back to '(user|item)_embedding.weight' of another"
    with pytest.raises(TrainingError, match=sentence):
        run.fit(saved=False)
    assert run.model.seen == shares_from


def test_a_kept_graph_is_named_also_in_one_backward(tiny):
    run = tiny(Apart, game_update="shared_graph", **ONE_EPOCH)
    run.model.keeps = True
    with pytest.raises(TrainingError, match="self.average of Apart keeps the graph"):
        run.fit(saved=False)


def test_a_player_without_gradient_is_named_in_one_backward(tiny):
    class Cut(Apart):
        @graphs_apart
        def calculate_joint(self, interaction):
            loss, value = self.together(interaction)
            return loss, value.detach()

    run = tiny(Cut, game_update="shared_graph", **ONE_EPOCH)
    with pytest.raises(TrainingError, match="the loss of player 'max' does not depend"):
        run.fit(saved=False)
