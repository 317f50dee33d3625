"""Lists compared by hand, and the one row that is changed."""

from __future__ import annotations

import json

import pytest
import torch

from recbole_adv import Config
from recbole_adv.errors import ConfigError
from recbole_adv.robustness.stability import StabilityPlan, load_changed, similarity, stability

RANKED = {"topk": [5], "metrics": ["NDCG"], "valid_metric": "NDCG@5"}


def test_similarity_by_hand():
    one = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    other = torch.tensor([[1, 2, 3], [4, 1, 5], [7, 8, 9]])
    jaccard, overlap = similarity(one, other)
    assert jaccard.tolist() == pytest.approx([1, 1 / 5, 0])
    # Shared of the first 1, 2, 3: 0, 1, 1; weights 1, .9, .81.
    assert overlap.tolist() == pytest.approx([1, (0.9 / 2 + 0.81 / 3) / 2.71, 0])


def rows_of(settings_of, change, number=0, **settings):
    config = Config("BPR", "checkerboard", config_dict=settings_of("BPR", **RANKED, **settings))
    found: dict = {}
    dataset, *_ = load_changed(config, change, number, found)
    parts = dataset.prepared.parts
    return [
        torch.stack([parts[n].inter_feat[f] for f in ("user_id", "item_id")], dim=1)
        for n in ("train", "valid", "test")
    ], found


def test_one_row_of_training_is_changed_and_nothing_else(settings_of):
    (clean, *held_out), found = rows_of(settings_of, "none")
    assert found == {}
    (dropped, *others), found = rows_of(settings_of, "drop")
    assert all(map(torch.equal, held_out, others)) and len(dropped) == len(clean) - 1
    place = next(i for i in range(len(clean)) if i == len(dropped) or clean[i].ne(dropped[i]).any())
    assert torch.equal(torch.cat([clean[:place], clean[place + 1 :]]), dropped)
    assert clean[place, 0] == found["user"]
    (replaced, *others), found = rows_of(settings_of, "replace")
    assert all(map(torch.equal, held_out, others))
    (row,) = (replaced != clean).any(1).nonzero()[:, 0].tolist()
    assert row == place and replaced[row, 0] == clean[row, 0] == found["user"]
    assert replaced[row, 1] not in clean[clean[:, 0] == found["user"], 1]
    other = rows_of(settings_of, "drop", number=1)[0][0]
    assert not torch.equal(other, dropped)


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_the_report(model, settings_of):
    own = dict(RANKED)
    if model == "SASRec":
        own["eval_args"] = {"order": "TO", "split": {"LS": "valid_and_test"}, "mode": "full"}
    plan = StabilityPlan(("drop",), 2, "1", "out")
    lines = []
    folder, text = stability(
        plan, model, "checkerboard", config_dict=settings_of(model, **own), say=lines.append
    )
    assert len(lines) == 2 and "| drop | 2 |" in text
    report = json.loads((folder / "report.json").read_text())
    for training in report["trainings"]:
        assert 0 < training["jaccard"] <= 1 and 0 < training["rbo"] <= 1
    assert len(list(folder.glob("runs/*/result.json"))) == 3


def test_training_again_without_a_change_makes_the_same_lists(settings_of, monkeypatch):
    """Else what is measured would be the noise of training."""
    from recbole_adv.robustness import stability as module

    original = module.load_changed
    monkeypatch.setattr(module, "load_changed", lambda c, change, n, f: original(c, "none", n, f))
    plan = StabilityPlan(("drop",), 1, "1", "out")
    folder, _ = stability(plan, "BPR", "checkerboard", config_dict=settings_of("BPR", **RANKED))
    (training,) = json.loads((folder / "report.json").read_text())["trainings"]
    assert training["jaccard"] == training["rbo"] == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eval_args": {"mode": "uni100"}}, "lists out of all items, got eval_args mode"),
        ({"model": "DeepFM", "eval_args": {"mode": "labeled"}}, "lists out of all items"),
    ],
)
def test_refused(settings, words, settings_of):
    model = settings.pop("model", "BPR")
    own = {**settings_of(model), **settings}
    own |= {"metrics": ["AUC"], "valid_metric": "AUC"} if model == "DeepFM" else RANKED
    with pytest.raises(ConfigError, match=words):
        stability(StabilityPlan(), model, "checkerboard", config_dict=own)


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("changes", ["drpo"], "--changes has no 'drpo'; did you mean drop?"),
        ("n_rows", "0", "--n_rows must be a whole number of at least 1, got '0'"),
        ("seeds", "x", "--seeds must be how many"),
    ],
)
def test_flags(flag, value, words):
    given = {"changes": ["drop,replace"], "n_rows": "3", "seeds": "3", "output": None}
    assert StabilityPlan.of(given) == StabilityPlan()
    with pytest.raises(ConfigError) as error:
        StabilityPlan.of({**given, flag: value})
    assert words in str(error.value)


def test_a_row_of_lazily_built_sequences(settings_of):
    """``train_loader: tensor`` makes the sequences when they are read."""
    own = {"eval_args": {"order": "TO", "split": {"LS": "valid_and_test"}, "mode": "full"}}
    settings = settings_of("SASRec", **RANKED, **own, train_loader="tensor")
    targets = []
    for change in ("none", "replace", "drop"):
        found: dict = {}
        config = Config("SASRec", "checkerboard", config_dict=settings)
        dataset, *_ = load_changed(config, change, 0, found)
        train = dataset.prepared.parts["train"].inter_feat
        targets.append(train["item_id"])
        assert len(train["item_id_list"]) == len(train)
    assert (targets[0] != targets[1]).sum() == 1 and len(targets[2]) == len(targets[0]) - 1
