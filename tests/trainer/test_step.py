"""The step engine, by hand."""

import pytest
import torch
from torch import nn

from recbole_adv.game.player import Player
from recbole_adv.technique.gradient_accumulation import GradientAccumulation
from recbole_adv.trainer.random_stream import RandomStream
from recbole_adv.trainer.step import StepEngine
from recbole_adv.trainer.turn import Turn


@pytest.mark.parametrize("scaled, norm", [(False, 5.0), (True, 3.0)])
def test_an_optimizer_of_half_a_player(scaled, norm):
    """RecVAETrainer's. The loss 3 a + 4 b of two batches; with a scaler, b's gradient is still scaled."""
    model = nn.ParameterDict({"a": torch.zeros(1), "b": torch.zeros(1)})
    player = Player("min", tuple(model.values()), lambda batch: (3 * model.a + 4 * model.b).sum())
    optimizer = torch.optim.SGD([model.a], lr=1.0)
    turn = Turn(player, optimizer, player.loss, techniques=[GradientAccumulation(batches=2)])
    turn.scaler = torch.amp.GradScaler("cpu") if scaled else None
    engine = StepEngine(model, monitor_interval=1)
    assert engine.run(turn, None).gradient_norm is None
    assert engine.run(turn, None).gradient_norm.item() == pytest.approx(norm)
    assert (model.a.item(), model.b.item(), model.a.grad.item()) == (-3.0, 0.0, 3.0)
    assert model.b.grad.item() == (4.0 * 65536 if scaled else 4.0)


def test_a_graph_shared_by_others_draws_none_of_the_first_players_numbers():
    model = nn.ParameterDict({"b": torch.zeros(1), "c": torch.zeros(1)})
    turns = []
    for seed, name in enumerate(model):
        player = Player(name, (model[name],), None)
        optimizer = torch.optim.SGD([model[name]], lr=1.0)
        others = tuple(value for other, value in model.items() if other != name)
        stream = RandomStream(seed, torch.device("cpu"))
        turns.append(Turn(player, optimizer, None, stream=stream, others=others))

    def joint(batch):
        drawn = torch.rand(())
        return {name: (value * drawn).sum() for name, value in model.items()}

    torch.manual_seed(0)
    expected = torch.rand(())  # of the stream of b, who moves first
    before = torch.get_rng_state()
    StepEngine(model).run_shared(turns, joint, None)
    assert torch.get_rng_state().equal(before)
    assert model.b.item() == model.c.item() == -expected.item()
