"""Fake users: their profiles, the split that they must not touch, and T-HR by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_adv import Config
from recbole_adv.errors import ConfigError
from recbole_adv.robustness import fake_users, pga
from recbole_adv.robustness.poison import PoisonPlan, load_poisoned, poison
from recbole_adv.robustness.promotion import Promotion, places, promotion, target_metrics

RANKED = {"topk": [5], "metrics": ["NDCG"], "valid_metric": "NDCG@5"}
LEAVE_ONE_OUT = {"order": "TO", "split": {"LS": "valid_and_test"}, "mode": "full"}


def test_target_metrics_of_three_users_by_hand():
    """Two targets; the third user owns the second one."""
    scores = torch.tensor(
        [
            [-math.inf, 0.9, 0.5, 0.4, 0.1],  # items 2 and 4 on the places 2 and 4
            [-math.inf, 0.1, 0.9, 0.5, 0.4],  # 1 and 3
            [-math.inf, 0.2, 0.7, 0.7, 0.9],  # 2 shares the places 2 and 3
        ]
    )
    place = places(scores, torch.tensor([2, 4]))
    assert place.tolist() == [[2, 4], [1, 3], [2.5, 1]]
    counts = torch.tensor([[True, True], [True, True], [True, False]])
    found = target_metrics(place, counts, [1, 3])
    assert found["t-hr@1"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["t-hr@3"] == pytest.approx((3 / 3 + 1 / 2) / 2)
    gain = (1 / math.log2(3) + 1 + 1 / math.log2(3.5)) / 3
    assert found["t-ndcg@3"] == pytest.approx((gain + (1 / math.log2(4)) / 2) / 2)
    assert found["t-place"] == pytest.approx((5.5 / 3 + 7 / 2) / 2)


def test_a_target_that_everyone_has_does_not_count():
    place = torch.tensor([[1.0, 5.0], [1.0, 1.0]])
    counts = torch.tensor([[False, True], [False, True]])
    assert target_metrics(place, counts, [2])["t-hr@2"] == pytest.approx(0.5)


def test_the_shift_of_predictions_is_of_those_who_lack_the_target():
    """The third user owns the second target; everyone owns the third."""
    counts = torch.tensor([[True, True, False], [True, True, False], [True, False, False]])
    clean = Promotion(
        {}, torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0], [5.0, -math.inf, 0.0]]), counts
    )
    after = torch.tensor([[2.0, 2.0, 9.0], [3.0, 6.0, 9.0], [7.0, -math.inf, 9.0]])
    # First target: (1 + 0 + 2) / 3, second: (0 + 2) / 2.
    assert Promotion({}, after, counts).shift_from(clean) == pytest.approx(1.0)
    assert clean.shift_from(clean) == 0


# --- the data -----------------------------------------------------------------------------------


def plan_of(**settings):
    return PoisonPlan(("random",), (0.5,), **{"n_targets": 2, **settings})


def loaded(settings_of, model, attack, share, plan=None, **settings):
    config = Config(model, "checkerboard", config_dict=settings_of(model, **RANKED, **settings))
    found: dict = {}
    dataset, *loaders = load_poisoned(config, plan or plan_of(), attack, share, found)
    return SimpleNamespace(dataset=dataset, parts=dataset.prepared.parts, loaders=loaders, **found)


def columns_of(part):
    rows = part.inter_feat
    return {name: rows[name] for name in rows.columns}


@pytest.mark.parametrize("loader", ["recbole", "tensor"])
@pytest.mark.parametrize("model", ["BPR", "SASRec", "DeepFM"])
def test_the_split_is_what_it_is_without_fake_users(model, loader, settings_of):
    own = {"train_loader": loader}
    if model == "SASRec":
        own["eval_args"] = LEAVE_ONE_OUT
    clean = loaded(settings_of, model, "none", 0.0, **own)
    # The largest seeds of a loader's shuffling are the data's: read the parts, not the batches.
    dirty = loaded(settings_of, model, "random", 0.1, **own)
    n_users = clean.n_real - 1
    assert dirty.n_fake == math.ceil(0.1 * n_users) and dirty.n_real == clean.n_real
    assert dirty.targets.tolist() == clean.targets.tolist()
    assert dirty.dataset.user_num == clean.dataset.user_num + dirty.n_fake
    for name in ("valid", "test"):
        for field, value in columns_of(clean.parts[name]).items():
            assert torch.equal(columns_of(dirty.parts[name])[field], value), (name, field)
    train, poisoned = columns_of(clean.parts["train"]), columns_of(dirty.parts["train"])
    assert set(train) == set(poisoned)
    n = len(clean.parts["train"].inter_feat)
    for field, value in train.items():
        assert torch.equal(poisoned[field][:n], value), field
    uid = dirty.dataset.uid_field
    assert poisoned[uid][n:].min() == clean.n_real
    assert len(poisoned[uid][n:].unique()) == dirty.n_fake
    tokens = dirty.dataset.field2id_token[uid]
    assert tokens[: clean.n_real].tolist() == clean.dataset.field2id_token[uid].tolist()
    assert tokens[clean.n_real] == "fake_user_0"
    size = fake_users.profile_size(clean.parts["train"], 2, None)
    rows_of_one = size - (model == "SASRec")  # a sequence begins with an item that is no target
    assert len(poisoned[uid]) - n == dirty.n_fake * rows_of_one
    pairs = fake_users.pairs_in(dirty.parts["train"])
    for user in range(clean.n_real, dirty.dataset.user_num):
        items = pairs[1][pairs[0] == user]
        assert len(items) == size and set(dirty.targets) <= set(items.tolist())


def test_fake_users_have_features_and_the_highest_rating(settings_of):
    clean = loaded(settings_of, "DeepFM", "none", 0.0)
    dirty = loaded(settings_of, "DeepFM", "random", 0.1)
    features, real = dirty.dataset.user_feat, clean.dataset.user_feat
    assert len(features) == clean.n_real + dirty.n_fake
    assert torch.equal(features["user_id"], torch.arange(len(features)))
    assert torch.equal(features["age_group"][: clean.n_real], real["age_group"])
    assert (features["age_group"][clean.n_real :] > 0).all()
    for loader in dirty.loaders:
        assert len(loader._dataset.user_feat) == len(features)


def test_the_same_seed_makes_the_same_fake_users(settings_of):
    once, again = (loaded(settings_of, "BPR", "random", 0.2) for _ in range(2))
    other = loaded(settings_of, "BPR", "random", 0.2, seed=1)
    for field, value in columns_of(once.parts["train"]).items():
        assert torch.equal(columns_of(again.parts["train"])[field], value)
    item = columns_of(once.parts["train"])["item_id"]
    assert not torch.equal(columns_of(other.parts["train"])["item_id"][-20:], item[-20:])


def test_target_items_by_name(settings_of):
    run = loaded(
        settings_of, "BPR", "none", 0.0, PoisonPlan(("random",), (0.5,), target_items=("i7", "i3"))
    )
    tokens = run.dataset.id2token("item_id", run.targets)
    assert sorted(tokens) == ["i3", "i7"] and (np.diff(run.targets) > 0).all()
    unknown = PoisonPlan(("random",), (0.5,), target_items=("i77777",))
    with pytest.raises(ConfigError, match="has no item 'i77777'"):
        loaded(settings_of, "BPR", "none", 0.0, unknown)


# --- profiles -----------------------------------------------------------------------------------


def part_of(pairs, n_items):
    """The little that profiles read of a training part."""
    rows = {"u": torch.tensor([p[0] for p in pairs]), "i": torch.tensor([p[1] for p in pairs])}
    return SimpleNamespace(inter_feat=rows, uid_field="u", iid_field="i", item_num=n_items)


PART = part_of(
    [(u, i) for u in range(1, 9) for i in range(1, 12) if i <= 3 or (u + i) % 4 == 0], 12
)


def test_targets_are_drawn_out_of_the_least_popular():
    count = np.array([0, 9, 1, 8, 7, 0, 6, 5, 4, 3, 2])  # items 5 and 2 are the bottom fifth
    assert fake_users.draw_targets(count, 2, 0).tolist() == [2, 5]
    assert {int(fake_users.draw_targets(count, 1, s)[0]) for s in range(20)} == {2, 5}
    assert fake_users.draw_targets(count, 3, 0).tolist() == [2, 5, 10]  # as many as there must be
    with pytest.raises(ConfigError, match="at most the number of items, 10, got 11"):
        fake_users.draw_targets(count, 11, 0)


@pytest.mark.parametrize("attack", ["random", "bandwagon", "pga"])
def test_profiles_hold_the_targets_and_no_item_twice(attack):
    profiles = fake_users.profiles_of(attack, PART, [7, 9], 4, 6, 0, popular_share=0.5)
    assert profiles.shape == (4, 6)
    for profile in profiles.tolist():
        assert profile[:2] == [7, 9] and len(set(profile)) == 6
        assert all(1 <= item < 12 for item in profile)
    if attack == "bandwagon":  # half of four fillers are the most popular, everyone's 1, 2 and 3
        assert profiles[:, 2:4].tolist() == [[1, 2]] * 4
    again = fake_users.profiles_of(attack, PART, [7, 9], 4, 6, 0, popular_share=0.5)
    assert profiles.tolist() == again.tolist()


def test_profile_size_is_the_mean_of_real_users():
    part = part_of([(1, 1), (1, 2), (1, 3), (2, 1), (2, 1), (2, 2)], 6)  # three items, and two
    assert fake_users.profile_size(part, 1, None) == 2
    assert fake_users.profile_size(part, 1, 4) == 4
    with pytest.raises(ConfigError, match="must hold the 3 targets .* got 2 items"):
        fake_users.profile_size(part, 3, None)


def ridge(design, target):
    """min ||target - design w||^2 + RIDGE ||w||^2, by least squares on stacked rows."""
    size = design.shape[1]
    stacked = np.vstack([design, math.sqrt(pga.RIDGE) * np.eye(size)])
    return np.linalg.lstsq(
        stacked, np.vstack([target, np.zeros((size, target.shape[1]))]), rcond=None
    )[0]


def test_the_gradient_of_pga_is_that_of_the_attackers_answer():
    """Against finite differences of the two ridge regressions, solved by least squares in numpy."""
    rng = np.random.default_rng(0)
    real = (rng.random((7, 9)) < 0.4).astype(float)
    users, items = rng.normal(size=(7, 3)), rng.normal(size=(9, 3))
    fake, targets = rng.random((2, 9)), [4, 6]
    wanted = real[:, targets] == 0

    def loss(x):
        fakes = ridge(items, x.T).T
        q = ridge(np.vstack([users, fakes]), np.vstack([real, x])).T
        score = users @ q.T
        place = np.sort(score, axis=1)[:, -min(pga.PLACE, 9)]
        miss = np.log1p(np.exp((place[:, None] - score[:, targets]) / pga.TEMPERATURE))
        return miss[wanted].mean()

    x = torch.from_numpy(fake).requires_grad_(True)
    given = [torch.from_numpy(a) for a in (real, users, items)]
    audience, wanted_t = torch.arange(7), torch.from_numpy(wanted)
    value = pga.promotion_loss(
        given[0].to_sparse(), x, given[1], given[2], audience, torch.tensor(targets), wanted_t
    )
    assert value.item() == pytest.approx(loss(fake))
    (gradient,) = torch.autograd.grad(value, x)
    for place in np.ndindex(fake.shape):
        step = np.zeros_like(fake)
        step[place] = 1e-6
        expected = (loss(fake + step) - loss(fake - step)) / 2e-6
        assert gradient[place].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_the_factorisation_is_a_minimum():
    """Its gradient vanishes, up to what alternations have left."""
    torch.manual_seed(0)
    real = (torch.rand(40, 30) < 0.2).double()
    fake = (torch.rand(3, 30) < 0.2).double()
    users, items = pga.factorise(real.to_sparse(), fake, 0)
    fakes = pga._answer(fake @ items, items)

    def objective(p, f, q):
        parts = (p, f, q)
        miss = (real - p @ q.T).square().sum() + (fake - f @ q.T).square().sum()
        return miss + pga.RIDGE * sum(part.square().sum() for part in parts)

    best = objective(users, fakes, items)
    for _ in range(5):
        moved = [t + 0.05 * torch.randn_like(t) for t in (users, fakes, items)]
        assert objective(*moved) > best


def test_pga_promotes_more_than_what_it_starts_with():
    rng = np.random.default_rng(1)
    dense = rng.random((60, 40)) < np.linspace(0.5, 0.05, 40)
    pairs = [(u + 1, i + 1) for u, i in zip(*dense.nonzero())]
    part = part_of(pairs, 41)
    start = fake_users.profiles_of("random", part, [39, 40], 6, 10, 0, 0.5)
    found = fake_users.profiles_of("pga", part, [39, 40], 6, 10, 0, 0.5)
    real, owner = pga._matrix(*fake_users.pairs_in(part), 41)
    wanted = torch.from_numpy(owner[:, [39, 40]].toarray() == 0)
    value = []
    for profiles in (start, found):
        fake = torch.zeros(6, 41).scatter_(1, torch.from_numpy(profiles), 1.0)
        users, items = pga.factorise(real, fake, 0)  # trained anew with them
        audience = torch.arange(len(users))
        value.append(
            pga.promotion_loss(
                real, fake, users, items, audience, torch.tensor([39, 40]), wanted
            ).item()
        )
    assert value[1] < value[0]


# --- the lists ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "SASRec"])
def test_promotion_counts_real_users_without_the_target(model, tiny):
    """Against a loop over users; NeuMF has no full_sort_predict."""
    own = {"eval_args": LEAVE_ONE_OUT} if model == "SASRec" else {}
    run = tiny(model, **RANKED, **own)
    run.fit(saved=False)
    parts, dataset = run.dataset.prepared.parts, run.dataset
    targets, n_real = np.array([3, 11]), dataset.user_num - 5  # as if the last five were fakes
    prepared = run.dataset.prepared
    found = promotion(
        SimpleNamespace(trainer=run.trainer, test_data=run.test, data=prepared), targets, n_real
    ).figures
    net, hits = run.model.eval(), {3: [], 11: []}
    owned = {(u, i) for part in parts.values() for u, i in zip(*fake_users.pairs_in(part))}
    seen = {
        (u, i) for name in ("train", "valid") for u, i in zip(*fake_users.pairs_in(parts[name]))
    }
    from recbole.data.interaction import Interaction

    test_rows = run.test._dataset.inter_feat
    users = range(1, n_real) if model != "SASRec" else test_rows["user_id"].tolist()
    for place, user in enumerate(users):
        with torch.no_grad():
            if model == "SASRec":
                score = net.full_sort_predict(run.test._dataset[[place]]).view(-1)
            else:
                pairs = {"user_id": torch.full((dataset.item_num,), user)}
                pairs["item_id"] = torch.arange(dataset.item_num)
                score = net.predict(Interaction(pairs))
        hidden = [i for i in range(dataset.item_num) if (user, i) in seen and model != "SASRec"]
        score[[0, *hidden]] = -math.inf
        for t in hits:
            if (user, t) not in owned:
                hits[t].append(int((score > score[t]).sum()) < 5)
    assert 0 < len(hits[3]) < len(list(users))
    assert found["t-hr@5"] == pytest.approx(np.mean([np.mean(hits[t]) for t in hits]))


# --- the command --------------------------------------------------------------------------------


def test_the_whole_command(settings_of, tmp_path):
    plan = PoisonPlan(("bandwagon",), (0.2,), n_targets=2, seeds="2", output="out", profile_size=8)
    settings = settings_of("BPR", **RANKED, techniques=["embedding_attack"], epochs=3)
    settings["embedding_attack_start_epoch"] = 0
    lines = []
    folder, text = poison(plan, "BPR", "checkerboard", config_dict=settings, say=lines.append)
    report = json.loads((folder / "report.json").read_text())
    points = report["points"]
    assert len(points) == len(lines) == 2 * (1 + 1)
    assert {p["seed"] for p in points} == {2020, 2021}
    n_users = len(
        Path(settings["data_path"], "checkerboard/checkerboard.user").read_text().split("\n")
    )
    n_users -= 2  # the head, and what follows the last line
    assert {p["figures"]["fake_users"] for p in points if p["strength"] == 0.2} == {
        math.ceil(0.2 * n_users)
    }
    clean = [p["figures"]["t-shift"] for p in points if p["attack"] == "none"]
    assert clean == [0, 0] and all(p["figures"]["t-shift"] for p in points if p["strength"])
    assert report["settings"]["config"]["techniques"] == ["embedding_attack"]
    assert "| bandwagon | 0.2 |" in text and "t-hr@5" in text
    assert {f.name for f in folder.iterdir()} == {
        *("metrics.csv", "report.json", "report.md", "curves.png", "runs")
    }
    assert not list(folder.rglob("*.pth")) and len(list(folder.rglob("result.json"))) == 4
    assert not list(Path().glob(".*tmp"))
    with pytest.raises(ConfigError, match="is there already"):
        poison(plan, "BPR", "checkerboard", config_dict=settings)
