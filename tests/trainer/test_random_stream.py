"""Every player's random numbers are its own: torch's, numpy's and Python's."""

import random

import numpy as np
import pytest
import torch
from recbole.model.general_recommender import BPR
from torch import nn

from recbole_adv.trainer.random_stream import RandomStream

CPU = torch.device("cpu")
SOURCES = {
    "torch": lambda: torch.rand(()).item(),
    "numpy": np.random.rand,
    "python": random.random,
    "normal": np.random.randn,  # numpy keeps the second of two
}


def seeded(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.mark.parametrize("source", SOURCES)
def test_inside_and_outside_go_on_where_they_were(source):
    draw = SOURCES[source]
    seeded(7)
    own = [draw() for _ in range(4)]
    seeded(3)
    outside = [draw() for _ in range(4)]
    seeded(3)
    stream, found, inside = RandomStream(7, CPU), [], []
    for _ in range(4):
        found.append(draw())
        with stream:
            inside.append(draw())
    assert found == outside and inside == own


@pytest.mark.parametrize("source", SOURCES)
def test_state_goes_on_where_it_was_taken(source):
    draw, stream = SOURCES[source], RandomStream(7, CPU)
    with stream:
        draw()
    other = RandomStream(99, CPU)
    other.load_state_dict(stream.state_dict())
    with stream:
        expected = draw()
    with other:
        assert draw() == expected


class Drawing(BPR):
    """Both losses draw of everything, as DGCF's draws Python's and KGIN's numpy's."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.env_generator = nn.Embedding(self.n_items, 1)

    def draw(self):
        return sum(draw() for draw in SOURCES.values())

    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction) * (1 + 0.01 * self.draw())

    def calculate_max_objective(self, interaction):
        return self.env_generator(interaction[self.ITEM_ID]).sum() * self.draw()


@pytest.mark.parametrize("settings", [{}, {"monitor_interval": 1}])
def test_a_max_player_without_effect_leaves_the_min_player_as_it_was(settings, tiny):
    def weights(max_start_epoch, **given):
        run = tiny(Drawing, eval_step=0, max_start_epoch=max_start_epoch, **given)
        return run.fit(saved=False).model.user_embedding.weight.detach().clone()

    idle = weights(5, monitor_interval=0)
    assert torch.equal(weights(0, **settings), idle)
