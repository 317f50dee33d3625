"""Probes of planted and of absent attributes, users' vectors, and attributes of files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from recbole_adv.errors import ConfigError, DataError
from recbole_adv.evaluation.summary import mean_and_error
from recbole_adv.robustness.attributes import Attribute, labels_of, read_attribute
from recbole_adv.robustness.leak import LeakPlan, leak_probe
from recbole_adv.robustness.probe import measure_of, probe
from recbole_adv.robustness.representation import last_histories, user_vectors

RANKED = {"topk": [5], "metrics": ["NDCG"], "valid_metric": "NDCG@5"}
LEAVE_ONE_OUT = {"order": "TO", "split": {"LS": "valid_and_test"}, "mode": "full"}


def scores(found, name):
    return [p.score for p in found if p.probe == name]


def test_a_planted_attribute_is_found_and_a_random_one_is_not():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 16))
    planted = np.where(vectors[:, 3] + 0.5 * vectors[:, 7] > 0, "F", "M")
    assert measure_of(planted) == "AUC"
    found = probe(vectors, planted, range(5))
    for name in ("logistic", "mlp"):
        assert mean_and_error(scores(found, name))[0] > 0.95
    # A round pair of lines in the plane, of which no linear probe can tell anything.
    ring = np.where(vectors[:, 0] ** 2 + vectors[:, 1] ** 2 > 1.39, "F", "M")
    curved = probe(vectors[:, :2], ring, range(3))
    assert mean_and_error(scores(curved, "mlp"))[0] > 0.9
    assert mean_and_error(scores(curved, "logistic"))[0] < 0.65
    random = probe(vectors, rng.permutation(planted), range(5))
    for name in ("logistic", "mlp"):
        mean, error = mean_and_error(scores(random, name))
        control = mean_and_error([p.permuted for p in random if p.probe == name])
        assert 0.5 <= mean < 0.6
        assert abs(mean - control[0]) < 3 * (error**2 + control[1] ** 2) ** 0.5
    assert {p.majority for p in random} == {0.5}


def test_several_classes_are_scored_by_accuracy():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(400, 8))
    classes = np.array(["a", "b", "c"])[np.digitize(vectors[:, 0], [-0.4, 1.0])]
    assert measure_of(classes) == "micro-F1"
    found = probe(vectors, classes, range(3))
    share = np.unique(classes, return_counts=True)[1].max() / 400
    assert all(abs(p.majority - share) < 0.02 for p in found)  # stratified
    assert all(p.score > p.majority + 0.15 for p in found)
    assert all(p.permuted < p.majority + 0.1 for p in found)


# --- vectors ------------------------------------------------------------------------------------


def vectors_of(run, as_trained):
    run = as_trained(run)
    before = run.digest()
    found = user_vectors(run)
    assert run.digest() == before
    return found


def test_tables_of_users_side_by_side(tiny, as_trained):
    run = tiny("NeuMF", **RANKED)
    user, vectors = vectors_of(run, as_trained)
    tables = [run.model.user_mf_embedding.weight, run.model.user_mlp_embedding.weight]
    assert user.tolist() == list(range(1, run.dataset.user_num))
    torch.testing.assert_close(vectors, torch.cat(tables, dim=1)[1:].detach())


@pytest.mark.parametrize(
    "settings", [{"model": "LightGCN"}, {"model": "IRM", "backbone": "LightGCN"}]
)
def test_what_is_propagated_not_what_is_looked_up(settings, tiny, as_trained):
    settings = {**settings, **RANKED}
    run = tiny(settings.pop("model"), **settings)
    _, vectors = vectors_of(run, as_trained)
    net = getattr(run.model, "backbone", run.model)
    with torch.no_grad():
        torch.testing.assert_close(vectors, net.forward()[0][1:])
    assert not torch.allclose(vectors, net.user_embedding.weight[1:])


def test_what_the_model_says_itself(tiny, as_trained):
    run = tiny("BPR", **RANKED)
    own = torch.arange(2.0 * run.dataset.user_num).view(-1, 2)
    run.model.user_representation = lambda: own
    assert torch.equal(vectors_of(run, as_trained)[1], own[1:])
    run.model.user_representation = lambda: own[:3]
    with pytest.raises(ConfigError, match=r"must return \[n_users, D\] .* got \[3, 2\]"):
        user_vectors(as_trained(run))


@pytest.mark.parametrize("length", [3, 100])
def test_sequences_are_the_whole_training_history(length, tiny, as_trained):
    run = tiny("SASRec", **RANKED, eval_args=LEAVE_ONE_OUT, MAX_ITEM_LIST_LENGTH=length)
    user, history, n = last_histories(run.dataset.prepared.parts["train"])
    held_out = {part: run.dataset.prepared.parts[part].inter_feat for part in ("valid", "test")}
    for u, items, k in zip(user.tolist(), history.tolist(), n.tolist()):
        valid = held_out["valid"]
        row = (valid["user_id"] == u).nonzero().item()  # what is known before the validation's item
        known = valid["item_id_list"][row][: valid["item_length"][row]].tolist()
        assert items[:k] == known and set(items[k:]) <= {0}
    found, vectors = vectors_of(run, as_trained)
    assert torch.equal(found, user)
    with torch.no_grad():
        torch.testing.assert_close(vectors, run.model.forward(history, n))


def test_a_context_models_embedding_of_the_user(tiny, as_trained):
    """The user's rows of the one table of all fields, as its own lookup gives them."""
    run = tiny("DeepFM")
    user, vectors = vectors_of(run, as_trained)
    batch = run.dataset.get_user_feature()
    fields = run.model.token_field_names
    index = torch.zeros(len(batch), len(fields), dtype=torch.long)
    index[:, fields.index("user_id")] = batch["user_id"]
    looked_up = run.model.token_embedding_table(index)[:, fields.index("user_id")]
    assert torch.equal(vectors, looked_up[1:]) and len(vectors) == len(user)


@pytest.mark.parametrize("model", ["MultiVAE", "BERT4Rec"])
def test_a_model_without_vectors_says_what_to_define(model, tiny, as_trained):
    own = {"MAX_ITEM_LIST_LENGTH": 5, "eval_args": LEAVE_ONE_OUT} if model == "BERT4Rec" else {}
    own |= {"train_neg_sample_args": None, "transform": "mask_itemseq"} if own else {}
    run = tiny(model, **RANKED, **own)
    with pytest.raises(ConfigError, match=r"define a method user_representation\(self\)"):
        user_vectors(as_trained(run))


# --- attributes ---------------------------------------------------------------------------------


def test_numbers_become_quantiles_and_words_stay(tmp_path, monkeypatch):
    (tmp_path / "d.user").write_text(
        "user_id:token\tage:float\tsex:token\n"
        + "".join(f"u{k}\t{k}\t{'F' if k % 3 else 'M'}\n" for k in range(20))
        + "u20\t\tM\n"
    )
    config = {"data_path": str(tmp_path), "dataset": "d", "USER_ID_FIELD": "user_id"}
    config |= {"field_separator": "\t", "encoding": "utf-8"}
    age = read_attribute(config, "age", 4)
    groups = [[u for u in age.value if age.value[u] == g] for g in sorted(set(age.value.values()))]
    assert sorted(map(len, groups)) == [5, 5, 5, 5] and ["u0", "u1", "u2", "u3", "u4"] in groups
    assert age.note == "age in 4 quantiles" and "u20" not in age.value
    sex = read_attribute(config, "sex", 4)
    assert sex.value["u3"] == "M" and sex.value["u20"] == "M" and not sex.note


def test_rare_classes_and_missing_users_are_left_out():
    value = {f"u{k}": "ab"[k % 2] for k in range(12)} | {"u20": "rare", "u21": "rare"}
    tokens = np.array([f"u{k}" for k in range(12)] + ["u20", "u99"])
    kept, labels, note = labels_of(Attribute("x", value, ""), tokens)
    assert kept.tolist() == [True] * 12 + [False] * 2
    assert labels.tolist() == list("ab" * 6)
    assert "1 classes of fewer than 5 users" in note and "2 of 14 users left out" in note
    with pytest.raises(DataError, match="1 of 1 classes .* 2 are needed"):
        labels_of(Attribute("x", dict.fromkeys(tokens, "a"), ""), tokens)


def test_the_command(run_of, tmp_path):
    runs = (run_of("BPR"), run_of("LightGCN"))
    plan = LeakPlan(runs, ("age_group",), (0, 1), output="leak")
    folder, text = leak_probe(plan)
    assert {f.name for f in folder.iterdir()} == {
        "scores.csv",
        "report.json",
        "report.md",
        "leak.png",
    }
    report = json.loads((folder / "report.json").read_text())
    assert len(report["scores"]) == 2 * 2 * 2
    assert [row["model"] for row in report["summary"]] == [r.rpartition("/")[2] for r in runs]
    assert "| age_group |" in text


def test_plan_of_flags():
    given = {
        "checkpoint": ["a"],
        "attribute": ["gender,age"],
        "seeds": "5",
        "bins": "4",
        "output": None,
    }
    assert LeakPlan.of(given).attributes == ("gender", "age")
    with pytest.raises(ConfigError, match="--bins must be a whole number of at least 2, got '1'"):
        LeakPlan.of({**given, "bins": "1"})
