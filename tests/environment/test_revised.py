"""Environments that follow the losses of the training rows."""

from __future__ import annotations

import pytest
import torch

from recbole_adv.environment.revised import RevisedAssignment
from recbole_adv.objective import kmeans_1d


def assignment(**keys):
    return RevisedAssignment(2, torch.tensor([0, 1, 0, 1, 0, 1]), **keys)


def test_by_hand():
    """Losses 1 2 9 and 10: the parts of k-means; a row that was not seen stays."""
    environments = assignment(figure="loss")
    loss = torch.tensor([9.0, 1.0, 2.0, 10.0])
    environments.see(torch.tensor([0, 1, 2, 4]), loss, -loss)
    assert environments.revise(0) == 0
    assert environments.revise(1) == 3  # 0 and 4 leave 0, 1 leaves 1
    assert environments.environment.tolist() == [1, 0, 0, 1, 1, 1]
    assert environments.revise(2) == 0


def test_the_last_figure_counts_and_gradients_are_their_own():
    environments = assignment(figure="gradient")
    environments.see(torch.tensor([0, 1]), torch.tensor([5.0, 5.0]), torch.tensor([0.5, -0.5]))
    environments.see(torch.tensor([1, 2]), torch.tensor([5.0, 5.0]), torch.tensor([0.4, -0.9]))
    environments.revise(1)
    assert environments.environment[:3].tolist() == [1, 1, 0]


def test_balanced_environments_have_equal_mass():
    environments = assignment(figure="loss", balanced=True)
    environments.see(torch.arange(6), torch.tensor([1.0, 1, 1, 1, 1, 50]), torch.zeros(6))
    environments.revise(1)
    assert environments.environment.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_interval_counts_epochs():
    environments = assignment(interval=3)
    environments.see(torch.arange(6), torch.tensor([1.0, 2, 3, 7, 8, 9]), torch.zeros(6))
    assert [environments.revise(epoch) > 0 for epoch in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("model", ["GroupDRO", "IRM", "VREx"])
@pytest.mark.parametrize("source", ["loss", "gradient"])
def test_a_model_revises_by_what_it_has_trained_on(model, source, tiny):
    run = tiny(model, environment_source=source, n_environments=2, epochs=3)
    trainer = run.fit(saved=False)
    environments = run.model.environments
    assert isinstance(environments, RevisedAssignment)
    assert environments.seen.isfinite().all()
    before = environments.environment.clone()
    environments.revise(3)
    assert torch.equal(environments.environment, kmeans_1d(environments.seen, 2))
    assert (environments.environment != before).any()  # the losses of the last epoch are others
    assert "min/loss" in trainer.report._line


def test_exact_resume(tiny):
    """2 + 2 epochs are 4: figures and environments are in the checkpoint."""
    keys = {"environment_source": "loss", "n_environments": 2, "environment_interval": 2}
    whole = tiny("VREx", epochs=4, **keys)
    whole.fit()
    first = tiny("VREx", epochs=2, **keys)
    first.fit()
    second = tiny("VREx", epochs=4, **keys)
    second.trainer.resume_checkpoint(first.trainer.last_file)
    second.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
