"""Attacks where the model is on a GPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from recbole_adv.model_state import random_state
from recbole_adv.robustness.history import HistoryAttack
from recbole_adv.robustness.representation import user_vectors
from recbole_adv.robustness.tables import TableAttack, row_norms

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SETTINGS = {
    **{"topk": [5], "metrics": ["NDCG"], "valid_metric": "NDCG@5", "epochs": 1},
    **{"eval_args": {"order": "TO", "split": {"LS": "valid_and_test"}, "mode": "full"}},
}


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "GRU4Rec", "SASRec"])
def test_an_attack_finds_on_the_gpu_what_it_finds_on_the_cpu(model, tiny, as_trained):
    """GRU4Rec: cuDNN has no backward pass of its layers outside of training."""
    found = []
    for use_gpu in (True, False):
        run = as_trained(tiny(model, **SETTINGS, use_gpu=use_gpu))
        if not found:
            weights = {k: v.cpu() for k, v in run.model.state_dict().items()}
        run.model.load_state_dict(weights)
        attack, before = TableAttack(run, relative=True, steps=2), run.digest()
        noise = attack.moves("random", 0.5, 0, [])
        moves = attack.moves("pgd", 0.1, 0, attack.clean_gradient(0))
        figures = attack.measure(moves, 0.1, 0, random_state())
        assert run.digest() == before
        assert row_norms(attack.tables)
        user, vectors = user_vectors(run)
        assert vectors.device.type == "cpu" and len(user) == len(vectors)
        found.append((noise[0].cpu(), figures["train_loss"]))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-3)


@pytest.mark.parametrize("kind", ["random", "similar", "gradient"])
def test_histories(kind, tiny, as_trained):
    run = as_trained(tiny("GRU4Rec", **SETTINGS, use_gpu=True))
    attack = HistoryAttack(run)
    new = attack.corrupted(kind, 0.5, 0)
    assert new.device.type == "cpu" and (new != attack.history).any()
    assert attack.measure(new, random_state())["replaced"] > 0.3
