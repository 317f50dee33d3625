"""The keys train_negatives and train_positives in RecBole's own training loader."""

import pytest
import torch

from recbole_adv import run_recbole_adv
from recbole_adv.data.leak_check import pairs_of
from recbole_adv.data.negatives import per_positive
from recbole_adv.errors import ConfigError

FOUR = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 4}}


def batches(built):
    loader = getattr(built.train, "general_dataloader", built.train)
    return list(loader)


def negatives_by_pair(built):
    """The negatives of each training row by its pair, from one epoch of pairwise batches."""
    found = {}
    for batch in batches(built):
        n = 4
        user, item = (batch[name][: len(batch) // n] for name in ("user_id", "item_id"))
        rows = per_positive(batch["neg_item_id"], n)
        assert torch.equal(per_positive(batch["user_id"], n), user.unsqueeze(1).expand(-1, n))
        found |= {(int(u), int(i)): row.tolist() for u, i, row in zip(user, item, rows)}
    return found


def known(built):
    return set(pairs_of(built.train._dataset).tolist())


@pytest.mark.parametrize("kind", ["recbole", "static", "in_batch"])
def test_several_negatives_are_the_positives_own(kind, tiny):
    """In every order of rows each negative belongs to a user who has no training row with it."""
    built = tiny("BPR", train_negatives=kind, **FOUR)
    found = negatives_by_pair(built)
    n_items, positives = built.dataset.item_num, known(built)
    assert {u * n_items + i for u, i in found} == positives
    assert not any(u * n_items + j in positives for (u, _), row in found.items() for j in row)


def test_static_negatives_are_the_same_in_every_epoch_and_run(tiny):
    built = tiny("BPR", train_negatives="static", **FOUR)
    first, second = negatives_by_pair(built), negatives_by_pair(built)
    assert first == second
    assert first == negatives_by_pair(tiny("BPR", train_negatives="static", **FOUR))
    assert first != negatives_by_pair(tiny("BPR", train_negatives="static", seed=1, **FOUR))
    drawn_anew = tiny("BPR", **FOUR)
    assert negatives_by_pair(drawn_anew) != negatives_by_pair(drawn_anew)


def test_in_batch_negatives_come_from_the_batch(tiny):
    built = tiny("BPR", train_negatives="in_batch", train_batch_size=128, **FOUR)
    for batch in batches(built):
        assert set(batch["neg_item_id"].tolist()) <= set(batch["item_id"].tolist())


def test_pointwise_models_get_them_too(tiny):
    built = tiny("DeepFM", train_negatives="static")
    n_items, positives = built.dataset.item_num, known(built)
    for batch in batches(built):
        pair = batch["user_id"] * n_items + batch["item_id"]
        assert [int(p) in positives for p in pair] == (batch["label"] == 1).tolist()
        assert batch["label"].mean() == 0.5


def test_users_in_turn(tiny):
    """960 rows of 60 users: each user 16 times an epoch, whatever he has."""
    built = tiny("BPR", train_positives="user_uniform", train_batch_size=64, seed=3)
    users = torch.cat([batch["user_id"] for batch in batches(built)])
    assert torch.bincount(users)[1:].tolist() == [16] * 60
    pairs = torch.cat([b["user_id"] * 61 + b["item_id"] for b in batches(built)]).tolist()
    assert set(pairs) <= known(built) and len(set(pairs)) < 960  # with replacement


def test_active_users_count_no_more(tiny):
    keys = {"shift_split": "user", "shift_values": [0.0, 0.5], "shift_test": ["shifted"]}
    built = tiny("BPR", train_positives="user_uniform", shift_share=0.3, **keys)
    rows = torch.bincount(built.train._dataset.inter_feat["user_id"])[1:]
    assert rows.max() > 3 * rows.min()
    users = torch.cat([batch["user_id"] for batch in batches(built)])
    count = torch.bincount(users)[1:]
    assert count.max() - count.min() <= 1


@pytest.mark.parametrize("model", ["EIIL", "SASRec"])
def test_runs_resume_exactly(model, settings_of):
    """2 + 2 epochs equal 4, also where the sampler draws from torch's random numbers."""
    keys = {"train_positives": "user_uniform"}
    if model != "SASRec":
        keys["train_negatives"] = "in_batch"
    settings = settings_of(model, epochs=4, **keys)
    whole = run_recbole_adv(model, "checkerboard", config_dict=settings)
    half = run_recbole_adv(model, "checkerboard", config_dict={**settings, "epochs": 2})
    resumed = run_recbole_adv(resume=half["run_dir"], config_dict={"epochs": 4})
    assert resumed["test_result"] == whole["test_result"]
    assert resumed["best_valid_result"] == whole["best_valid_result"]


@pytest.mark.parametrize("train_loader", ["recbole", "tensor"])
def test_negative_tails_need_a_distribution(train_loader, tiny, settings_of):
    """Which RecBole finds missing at the first triple; RippleNet on labels may read none."""
    keys = {"train_loader": train_loader, "train_neg_sample_args": None}
    with pytest.raises(ConfigError, match="negative tails .*, got None; write train_neg_sample"):
        tiny("CKE", **keys)
    keys |= {"train_rec_step": 1, "train_kg_step": 0, "threshold": {"timestamp": 0}}
    tiny("RippleNet", load_col=settings_of("CKE")["load_col"], **keys, epochs=1).fit(saved=False)


def test_models_that_train_on_users_refuse(tiny):
    with pytest.raises(ConfigError, match="MultiVAE trains on whole users.* leave both out"):
        tiny("MultiVAE", train_positives="user_uniform")


def test_info_nce_in_batch(tiny):
    """Against the formula: of each row the other rows' items, without the user's own."""
    built = tiny("InfoNCE", in_batch=True, train_batch_size=32, reg_weight=0.0, temperature=0.5)
    batch, model = built.batch(), built.model
    user, item = batch["user_id"], batch["item_id"]
    users, items = (torch.nn.functional.normalize(e, dim=-1) for e in model())
    score, positives = users[user] @ items[item].t() / 0.5, known(built)
    losses = []
    for b in range(len(user)):
        others = [
            score[b, j].exp()
            for j in range(len(user))
            if j != b and int(user[b]) * model.n_items + int(item[j]) not in positives
        ]
        losses.append(-(score[b, b].exp() / (score[b, b].exp() + sum(others))).log())
    loss = model.calculate_loss(batch)
    assert float(loss.detach()) == pytest.approx(
        float(sum(losses).detach()) / len(losses), rel=1e-5
    )
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
