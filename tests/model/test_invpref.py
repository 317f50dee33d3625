"""InvPref: its loss, the gradient reversal, the environments and the rows with their labels."""

import math

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_adv import checkpoint, run_recbole_adv
from recbole_adv.errors import ConfigError, DataError
from recbole_adv.game.penalty import Progress
from recbole_adv.model.labelled_rows import draw_unobserved
from recbole_adv.model.layers import reverse_gradient
from recbole_adv.objective.parts import total
from recbole_adv.objective.preference import environment_weight, product_loss, row_loss

LN2, LN3 = math.log(2), math.log(3)
# Stored labels and ratings: the only other column of the checkerboard data, made fit.
STORED = {"static_negatives": 0, "LABEL_FIELD": "timestamp", "threshold": {"timestamp": 36000}}
RATINGS = {"static_negatives": 0, "RATING_FIELD": "timestamp", "feedback": "explicit"}
PLAIN = {
    "invariant_weight": 2.0,
    "env_aware_weight": 3.0,
    "classifier_weight": 5.0,
    "l2_weight": 0.0,
    "l1_weight": 0.0,
    "alpha": 1.5,
    "class_reweight": "none",
    "embedding_size": 2,
    "eval_step": 0,
}


def hand_model(tiny, **settings):
    """Users 1 and 2 with item 1, d = 2; h = (ln 3, 0) and (-ln 3, 0); row 0 in environment 1,
    row 1 in environment 0; b = ln 3 and 0; the classifier says log(3 / 4), log(1 / 4) for row 0."""
    run = tiny("InvPref", **{**PLAIN, **settings})
    net = run.model
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.user_invariant.weight[1:3, 0] = torch.tensor([LN3, -LN3])
        net.item_invariant.weight[1, 0] = 1
        net.user_env_aware.weight[1:3, 1] = 1
        net.item_env_aware.weight[1, 1] = 1
        net.environment_embedding.weight[1, 1] = LN3
        net.classifier.weight[0, 0] = 1
        net.environments.environment[:2] = torch.tensor([1, 0])
    label = net.labels.label_field
    rows = {"user_id": [1, 2], "item_id": [1, 1], "inter_idx": [0, 1]}
    batch = Interaction({name: torch.tensor(value) for name, value in rows.items()})
    batch.update(Interaction({label: torch.tensor([1.0, 0.0])}))
    return net, batch


def test_implicit_loss_by_hand(tiny):
    net, batch = hand_model(tiny, **STORED)
    # r = 3/4 (liked) and 1/4 (not); g = 3/4 and 1/2; classifier: 1/4 for environment 1 of row 0, as
    # its logits are (ln 3, 0), and 1/4 for environment 0 of row 1, as they are (-ln 3, 0).
    parts = [part.item() for part in net.calculate_loss(batch)]
    invariant = -(math.log(3 / 4) + math.log(3 / 4)) / 2
    aware = -(math.log(9 / 16) + math.log(7 / 8)) / 2
    assert parts == pytest.approx([2 * invariant, 3 * aware, 0, 5 * math.log(4)], abs=1e-5)
    assert net.predict(batch).tolist() == pytest.approx([3 / 4, 1 / 4])
    assert net.full_sort_predict(batch).view(2, -1)[:, 1].tolist() == pytest.approx([3 / 4, 1 / 4])


def test_explicit_loss_by_hand(tiny):
    net, batch = hand_model(tiny, **RATINGS)
    parts = [part.item() for part in net.calculate_loss(batch)]
    invariant = ((LN3 - 1) ** 2 + LN3**2) / 2
    aware = ((2 * LN3 - 1) ** 2 + LN3**2) / 2
    assert parts == pytest.approx([2 * invariant, 3 * aware, 0, 5 * math.log(4)], abs=1e-5)
    assert net.predict(batch).tolist() == pytest.approx([LN3, -LN3])


def test_regularisation_by_hand(tiny):
    """Means over rows and dimensions, of users and of items, each the mean of two tables."""
    given = {**STORED, "l2_weight": 7.0, "l1_weight": 11.0}
    net, batch = hand_model(tiny, **given)
    l2 = (2 * LN3**2 + 2) / (2 * 2 * 2) + (2 + 2) / (2 * 2 * 2)
    l1 = (2 * LN3 + 2) / (2 * 2 * 2) + (2 + 2) / (2 * 2 * 2)
    assert net.calculate_loss(batch)[2].item() == pytest.approx(7 * l2 + 11 * l1, abs=1e-4)
    net.reg_env_embed = True
    l2, l1 = l2 + LN3**2 / 4, l1 + LN3 / 4
    assert net.calculate_loss(batch)[2].item() == pytest.approx(7 * l2 + 11 * l1, abs=1e-4)
    plain = net.calculate_loss(batch)[3].item()
    net.reg_only_embed = False  # one weight of 4 is 1, the biases are 0
    assert net.calculate_loss(batch)[3].item() == pytest.approx(plain + (7 + 11) / 4, abs=1e-5)


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
def test_the_product_is_computed_in_logarithms(label):
    y = torch.tensor(label)
    a, b = torch.tensor([0.5, -2.0, 3.0]), torch.tensor([1.0, -4.0, 0.0])
    torch.testing.assert_close(row_loss(a, b, y, False), product_loss(a, b, y, False))
    # Where float32 has p = 0 or 1: the loss goes on growing, and has a gradient.
    a, b = torch.tensor([-300.0, 60.0]), torch.tensor([-300.0, 60.0])
    a.requires_grad_()
    loss = row_loss(a, b, y, False)
    assert loss.tolist() == pytest.approx([600 * label, (1 - label) * (60 - LN2)], rel=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), a)
    assert gradient.tolist() == pytest.approx([-label, (1 - label) / 2], abs=1e-5)


# --- the adversary ------------------------------------------------------------------------------


def test_reverse_gradient():
    value = torch.tensor([1.0, -2.0], requires_grad=True)
    reversed_ = reverse_gradient(value, 0.25)
    assert torch.equal(reversed_, value)
    (gradient,) = torch.autograd.grad((reversed_ * torch.tensor([3.0, 4.0])).sum(), value)
    assert gradient.tolist() == [-0.75, -1.0]


def first_batch(run):
    run.trainer._before_fit(run.train)
    return next(iter(run.train))


def test_only_the_sign_and_alpha_stand_between_the_two_adversaries(tiny):
    """What P and Q get from the classifier is -alpha times what they get without the reversal."""
    run = tiny("InvPref", alpha=1.7)
    net, rows = run.model, run.model.labels.of(first_batch(run))
    h = torch.randn(len(rows.user), net.classifier.in_features, requires_grad=True)
    (plain,) = torch.autograd.grad(net._classification(h, rows), h)
    (turned,) = torch.autograd.grad(net._classification(reverse_gradient(h, 1.7), rows), h)
    torch.testing.assert_close(turned, -1.7 * plain)


@pytest.mark.parametrize("adversary", ["reversal", "explicit"])
def test_without_alpha_the_classifier_only_watches(adversary, tiny):
    run = tiny("InvPref", alpha=0.0, adversary=adversary)
    net, batch = run.model, first_batch(run)
    tables = [net.user_invariant.weight, net.item_invariant.weight]
    classifier = net.calculate_loss(batch)[3]
    assert all(g.abs().sum() == 0 for g in torch.autograd.grad(classifier, tables))


def test_the_explicit_adversary_equals_the_reversal(tiny):
    """Ten steps of SGD: the two ways add the same gradients in another order."""
    given = {"learner": "sgd", "learning_rate": 0.5, "epochs": 2, "class_reweight": "inverse"}
    given |= {"reg_only_embed": False, "eval_step": 0, "train_batch_size": 200}
    runs = [tiny("InvPref", adversary=a, **given) for a in ("reversal", "explicit")]
    before = runs[0].model.state_dict()["classifier.weight"].clone()
    for run in runs:
        run.fit(saved=False)
    assert [len(run.trainer.players) for run in runs] == [1, 2]
    assert runs[0].trainer.loop.steps_taken["min"] == 10
    states = [run.model.state_dict() for run in runs]
    assert (states[0]["classifier.weight"] - before).abs().max() > 1e-3
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=1e-6, msg=name)


def test_alpha_ramps_over_the_training(tiny):
    net = tiny("InvPref", alpha=2.0, alpha_schedule="dann").model
    assert net.alpha(Progress(total_epochs=10)) == 0
    assert net.alpha(Progress(epoch=1.0, total_epochs=10)) == pytest.approx(
        2 * (2 / (1 + math.exp(-1)) - 1)
    )
    assert net.alpha(Progress(epoch=10.0, total_epochs=10)) == pytest.approx(2, abs=1e-3)
    # The trainer's progress is the one that is read.
    run = tiny("InvPref", alpha=2.0, alpha_schedule="dann", epochs=3, eval_step=0)
    run.fit(saved=False)
    assert run.model.alpha(run.model.progress) == pytest.approx(2, abs=1e-3)


def test_weights_of_environments():
    size = torch.tensor([6, 2, 0, 0])
    assert environment_weight(size, "none").tolist() == [1, 1, 1, 1]
    assert environment_weight(size, "frequency").tolist() == [7 / 8, 3 / 8, 1 / 8, 1 / 8]
    assert environment_weight(torch.tensor([8, 0]), "frequency").tolist() == [7 / 8, 1 / 8]
    inverse = environment_weight(size, "inverse")
    assert inverse[:2].tolist() == pytest.approx([8 / 24, 1.0])


@pytest.mark.parametrize("kind, weight", [("frequency", (3 / 8, 7 / 8)), ("inverse", (2.0, 2 / 3))])
def test_reweighting_by_hand(kind, weight, tiny):
    """Row 0 is in environment 1 (2 of 8 rows), row 1 in environment 0 (6 of 8)."""
    net, batch = hand_model(tiny, **STORED, recommend_reweight=kind)
    net.environment_size.copy_(torch.tensor([6, 2]))
    parts = [part.item() for part in net.calculate_loss(batch)]
    invariant = -(weight[0] + weight[1]) * math.log(3 / 4) / 2
    aware = -(weight[0] * math.log(9 / 16) + weight[1] * math.log(7 / 8)) / 2
    assert parts == pytest.approx([2 * invariant, 3 * aware, 0, 5 * math.log(4)], abs=1e-5)
    net.class_reweight, net.recommend_reweight = kind, "none"
    classifier = net.calculate_loss(batch)[3].item()
    assert classifier == pytest.approx(5 * math.log(4) * (weight[0] + weight[1]) / 2, abs=1e-5)


# --- environments -------------------------------------------------------------------------------


def summed_loss(run):
    """The loss of all labelled rows, each in the environment where it is."""
    net, rows = run.model, run.model.labels.of(run.train._dataset.inter_feat)
    cost = net.environment_losses(rows).gather(1, net.environments.of(rows.row).unsqueeze(1))
    return cost.sum().item(), net.environment_losses(rows).min(dim=1).values.sum().item()


@pytest.mark.parametrize("settings", [{}, {"static_negatives": 3}, STORED, RATINGS])
def test_reassignment_finds_the_least_loss(settings, tiny, monkeypatch):
    given = {"n_environments": 3, "epochs": 3, "eval_step": 0, "cluster_start_epoch": 9}
    run = tiny("InvPref", **given, **settings)
    if "RATING_FIELD" in settings:
        run.dataset.inter_feat["timestamp"] /= 36000
        run.train._dataset.inter_feat["timestamp"] /= 36000
    run.fit(saved=False)
    net = run.model
    with torch.no_grad():  # so that environments differ by more than rounding
        net.environment_embedding.weight.normal_()
        net.user_env_aware.weight.normal_()
        net.item_env_aware.weight.normal_()
    initial = net.environments.environment.clone()
    before, least = summed_loss(run)
    monkeypatch.setattr("recbole_adv.model.invariant_recommender.invpref._CHUNK", 100)
    moved = net.reassign(run.train)
    after, _ = summed_loss(run)
    assert after == pytest.approx(least) and after < before
    found = net.environments.environment.clone()
    assert moved == int((found != initial).sum()) == net.log_values()["n_moved"] > 0
    assert net.environment_size.tolist() == found.bincount(minlength=3).tolist()
    assert net.reassign(run.train) == 0
    net.environments.environment.copy_(initial)
    net.reassign(run.train)
    assert torch.equal(net.environments.environment, found)


def test_ties(tiny):
    """Without an environment-aware branch every environment fits alike."""
    for official in (False, True):
        run = tiny("InvPref", official_ties=official, n_environments=3)
        first_batch(run)
        torch.nn.init.zeros_(run.model.environment_embedding.weight)
        before = run.model.environments.environment.clone()
        expected = torch.zeros_like(before) if official else before
        run.model.reassign(run.train)
        assert torch.equal(run.model.environments.environment, expected)


def test_when_environments_are_reassigned(tiny):
    given = {"cluster_interval": 2, "cluster_start_epoch": 3, "cluster_stop_epoch": 8}
    run = tiny("InvPref", epochs=9, eval_step=0, **given)
    done = []
    run.model.reassign = lambda train_data: done.append(run.model.progress.epoch)
    run.fit(saved=False)
    assert done == [4, 6]


def test_environments_begin_by_chance_and_by_the_seed(tiny):
    first, again, other = (tiny("InvPref", seed=seed).model for seed in (1, 1, 2))
    sizes = first.environment_size
    assert sizes.sum() == first.labels.n_labelled == 2 * len(first.labels.negatives)
    assert sizes.min() > 0.4 * sizes.sum()
    assert torch.equal(first.environments.environment, again.environments.environment)
    assert not torch.equal(first.environments.environment, other.environments.environment)
    # Negatives and environments are different random numbers.
    n = len(first.labels.negatives)
    pairs = first.labels.negatives[:, 0] % 2 == first.environments.environment[:n]
    assert 0.4 < pairs.float().mean() < 0.6


# --- rows, labels, resuming ---------------------------------------------------------------------


def test_draws_are_uniform_over_what_a_user_has_not_seen():
    user = torch.tensor([1, 1, 1, 3, 3])
    item = torch.tensor([2, 5, 2, 1, 6])  # of 1..6; user 2 has none, a pair stands twice
    drawn = draw_unobserved(user, item, 7, 6000, torch.Generator().manual_seed(0))
    for row, free in ((0, [1, 3, 4, 6]), (3, [2, 3, 4, 5])):
        counts = drawn[row].bincount(minlength=7)
        assert counts.nonzero().flatten().tolist() == free
        # Four standard deviations of a count are 134.
        assert all(abs(int(counts[i]) - 1500) < 134 for i in free)
    assert draw_unobserved(user, item, 7, 0, torch.Generator()).shape == (5, 0)
    with pytest.raises(DataError, match="1 users have one with every item"):
        draw_unobserved(torch.ones(3).long(), torch.tensor([1, 2, 3]), 4, 1, torch.Generator())


def test_a_batch_with_its_negatives(tiny):
    run = tiny("InvPref", static_negatives=2)
    net, batch = run.model, first_batch(run)
    rows, n = net.labels.of(batch), len(net.labels.negatives)
    b = len(batch)
    assert len(rows.user) == len(rows.item) == len(rows.label) == len(rows.row) == 3 * b
    assert rows.label.tolist() == [1] * b + [0] * 2 * b
    for k in range(3):
        tile = slice(k * b, (k + 1) * b)
        assert torch.equal(rows.user[tile], batch["user_id"])
        assert torch.equal(rows.row[tile], batch["inter_idx"] + k * n)
        item = net.labels.negatives[batch["inter_idx"], k - 1] if k else batch["item_id"]
        assert torch.equal(rows.item[tile], item)
    # No negative is a positive of its user.
    feat = run.train._dataset.inter_feat
    positive = set(zip(feat["user_id"].tolist(), feat["item_id"].tolist()))
    users = feat["user_id"].repeat_interleave(2).tolist()
    assert positive.isdisjoint(zip(users, net.labels.negatives.flatten().tolist()))
    before = net.labels.negatives.clone()
    run.fit(saved=False)
    assert torch.equal(net.labels.negatives, before)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"static_negatives": 0}, "static_negatives: 0 takes the labels from the column 'label'"),
        ({"feedback": "explicit"}, "takes every training row for a positive.*feedback: explicit"),
        ({**STORED, "static_negatives": 1}, "takes every training row for a positive"),
        ({**STORED, "threshold": None}, r"must lie in \[0, 1\]"),
        (
            {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}},
            "RecBole may not draw negatives anew",
        ),
    ],
)
def test_labels_must_come_from_one_place(settings, message, tiny):
    with pytest.raises(ConfigError, match=message):
        tiny("InvPref", **settings)


@pytest.mark.parametrize("adversary", ["reversal", "explicit"])
def test_four_epochs_are_two_and_two(adversary, settings_of):
    given = settings_of(
        "InvPref", epochs=4, cluster_interval=1, adversary=adversary, learning_rate=0.1
    )
    given |= {"n_environments": 3, "recommend_reweight": "inverse"}
    whole = run_recbole_adv("InvPref", "checkerboard", config_dict=given)
    first = run_recbole_adv("InvPref", "checkerboard", config_dict={**given, "epochs": 2})
    half = checkpoint.load(f"{first['run_dir']}/last.pth")["state_dict"]
    rest = run_recbole_adv(resume=first["run_dir"], config_dict={"epochs": 4})
    states = [checkpoint.load(f"{r['run_dir']}/last.pth")["state_dict"] for r in (whole, rest)]
    assert {"labels.negatives", "environments.environment", "environment_size"} <= set(states[0])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert torch.equal(half["labels.negatives"], states[1]["labels.negatives"])
    environments = [s["environments.environment"] for s in (half, states[1])]
    assert not torch.equal(*environments)
    assert rest["test_result"] == whole["test_result"]


def test_learns_the_checkerboard(tiny):
    """The ten best are worth 10 / 12 to who knows the colours, and 10 / 42 to Pop, who does not."""
    quick = {"learning_rate": 0.05, "train_batch_size": 256, "eval_step": 0}
    ranking = {"metrics": ["Recall"], "valid_metric": "recall@10"}
    pop = tiny("Pop", epochs=1, **quick, **ranking)
    pop.fit()
    # The official weights regularise as Yahoo needs it, which is too much for 60 users.
    run = tiny(
        "InvPref", epochs=20, l2_weight=1.0, l1_weight=0.0, cluster_interval=3, **quick, **ranking
    )
    run.fit()
    recall = run.trainer.evaluate(run.test)["recall@10"]
    assert pop.trainer.evaluate(pop.test)["recall@10"] < 0.4
    assert recall > 0.6
    loss = total(run.model.calculate_loss(next(iter(run.train))))
    assert loss.isfinite()
