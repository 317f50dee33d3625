"""The calls of loss modules in a forward pass, and what the model makes of their values."""

import pytest
import torch
from recbole.model.loss import BPRLoss, EmbLoss
from torch import nn

from recbole_adv.loss_modules import factors, loss_modules, recorded


class TwoTasks(nn.Module):
    """Three times a ranking loss, half the log of a click loss, one that is not used."""

    def __init__(self):
        super().__init__()
        self.rank, self.click, self.reg = BPRLoss(), nn.BCEWithLogitsLoss(), EmbLoss()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, label):
        rank = self.rank(self.weight, neg_score=torch.zeros(2))
        click = self.click(target=label, input=self.weight)
        self.rank(torch.ones(2), torch.zeros(2))
        self.unused = self.click(self.weight, label)
        return 3 * rank, click.log() / 2, self.reg(self.weight)


def test_calls_are_recorded_in_order_and_factors_are_those_of_the_model():
    model, label = TwoTasks(), torch.tensor([1.0, 0.0])
    modules = loss_modules(model)
    assert modules == [model.rank, model.click]
    with recorded(modules) as calls:
        loss = model(label)
    assert [call.module for call in calls] == [model.rank, model.click, model.rank, model.click]
    assert calls[1].inputs[0] is model.weight and calls[1].inputs[1] is label
    assert calls[0].inputs[1].tolist() == [0, 0]
    found = factors(loss, calls)
    assert found[0].item() == 3 and found[1].item() == pytest.approx(0.5 / calls[1].value.item())
    assert found[2:] == [None, None]  # without a gradient, and without use
    sum(part.sum() for part in loss).backward()  # the graph is still there


def test_nothing_is_left_behind():
    model = TwoTasks()
    with pytest.raises(AttributeError), recorded(loss_modules(model)) as calls:
        model(None)
    assert len(calls) == 1
    assert all(not module._forward_hooks for module in model.modules())


def test_recordings_nest():
    model = TwoTasks()
    with recorded(loss_modules(model)) as outer:
        model(torch.ones(2))
        with recorded(loss_modules(model)) as inner:
            model(torch.zeros(2))
    assert len(inner) == 4 and outer[4:] == inner and len(outer) == 8
