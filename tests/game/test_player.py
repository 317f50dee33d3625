"""Ownership: by identity, each trainable parameter exactly once."""

import pytest
import torch
from torch import nn

from recbole_adv.errors import ConfigError
from recbole_adv.game.player import (
    Player,
    check_players,
    frozen,
    min_max_players,
    only_player,
    players_of,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 1)
        self.env_generator = nn.Linear(3, 1)

    def calculate_loss(self, batch):
        return self.body.weight.sum()

    def calculate_max_objective(self, batch):
        return self.env_generator.weight.sum() * 2


def test_min_and_max_by_identity():
    net = Net()
    # Equal values must not confuse ownership.
    net.env_generator = nn.Linear(2, 1)
    net.env_generator.load_state_dict(net.body.state_dict())
    low, high = players_of(net, {"max_modules": ["env_generator"]})
    assert [id(p) for p in high.parameters] == [id(p) for p in net.env_generator.parameters()]
    assert [id(p) for p in low.parameters] == [id(p) for p in net.body.parameters()]
    assert high.maximises and not low.maximises
    assert high.loss(None).item() == -2 * net.env_generator.weight.sum().item()


def test_max_player_that_owns_nothing_is_refused():
    with pytest.raises(ConfigError, match="max_modules is .'generator'.*env_generator"):
        min_max_players(Net(), ["generator"])


class Plain(nn.Module):
    """Has a submodule of max's name, but no method of a game."""

    calculate_loss = Net.calculate_loss

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 1)
        self.env_generator = nn.Linear(3, 1)


class Typo(Plain):
    calculate_max_objectiv = Net.calculate_max_objective


@pytest.mark.parametrize(
    "model, words",
    [
        (
            Typo,
            r"Typo has env_generator.*no calculate_max_objective\(\); did you mean "
            r"calculate_max_objectiv\?",
        ),
        (Plain, r"Plain has env_generator.*no calculate_max_objective\(\); write it, or max_mod"),
    ],
)
def test_a_max_player_without_an_objective_is_refused(model, words):
    with pytest.raises(ConfigError, match=words):
        only_player(model(), ["env_generator"])


def test_one_player_trains_where_nobody_could_be_max():
    assert len(only_player(Typo(), [])[0].parameters) == 4
    assert len(only_player(Typo(), ["critic"])[0].parameters) == 4
    net = Typo()
    net.env_generator.requires_grad_(False)
    assert len(only_player(net, ["env_generator"])[0].parameters) == 4
    stock = type("Stock", (Plain,), {"__module__": "recbole.model.general_recommender.stock"})
    assert len(only_player(stock(), ["env_generator"])[0].parameters) == 4


@pytest.mark.parametrize(
    "given", [nn.Module.parameters, lambda net: net, lambda net: list(net.parameters())]
)
def test_parameters_may_be_given_as_an_iterable_or_as_a_module(given):
    net = nn.Linear(2, 1)
    player = Player("a", given(net), sum)
    assert [id(p) for p in player.parameters] == [id(net.weight), id(net.bias)]
    check_players(net, [player])
    check_players(net, [player])  # a generator would be consumed by now


@pytest.mark.parametrize("returned, kind", [([("a", (), sum)], "tuple"), (None, "NoneType")])
def test_what_is_no_player_is_refused(returned, kind):
    net = Net()
    net.players = lambda: returned
    with pytest.raises(
        ConfigError, match=rf"Net.players\(\) must return .*Player.*of type {kind}$"
    ):
        players_of(net, {})


def test_parameter_without_owner_is_named():
    net = Net()
    only = Player("a", tuple(net.body.parameters()), net.calculate_loss)
    with pytest.raises(ConfigError, match="'env_generator.weight' belongs to no player"):
        check_players(net, [only])
    net.env_generator.requires_grad_(False)
    check_players(net, [only])


def test_parameter_with_two_owners_is_named():
    net = Net()
    everything = tuple(net.parameters())
    with pytest.raises(ConfigError, match="'body.weight' belongs to .'a', 'b'."):
        check_players(
            net,
            [
                Player("a", everything, net.calculate_loss),
                Player("b", everything, net.calculate_loss),
            ],
        )


@pytest.mark.parametrize(
    "player, words",
    [
        (Player("a", (), None), "neither a loss nor a move"),
        (Player("a", (nn.Parameter(torch.zeros(1)),), sum), "no parameter of the model"),
    ],
)
def test_players_that_cannot_play_are_refused(player, words):
    net = Net()
    net.requires_grad_(False)
    with pytest.raises(ConfigError, match=words):
        check_players(net, [player])


def test_frozen_restores_the_flags_that_were_there_also_on_an_error():
    net = Net()
    net.body.bias.requires_grad_(False)
    with pytest.raises(RuntimeError), frozen(net.parameters()):
        assert not any(p.requires_grad for p in net.parameters())
        raise RuntimeError
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]
