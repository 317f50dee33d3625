"""InfoNCE and AdvInfoNCE: the loss, who moves when, and what is drawn."""

import math

import pytest
import torch

from recbole_adv import checkpoint, run_recbole_adv
from recbole_adv.objective import info_nce, sampled_products

GAME = {
    "n_negatives": 5,
    "train_batch_size": 64,
    "max_interval": 4,
    "max_start_epoch": 1,
    "max_learning_rate": 0.1,
    "eval_step": 0,
}


def weights(model):
    """Copies of the recommender's and of the adversary's tables."""
    copies = {name: p.detach().clone() for name, p in model.named_parameters()}
    theta = {name: p for name, p in copies.items() if not name.startswith("hardness")}
    return theta, {name: p for name, p in copies.items() if name not in theta}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# --- the loss -------------------------------------------------------------------------------------


def test_info_nce_by_hand():
    """-log(2 / (2 + 3 (1/2 1 + 2 4))) = log(27.5 / 2)"""
    positive, negative = torch.tensor([2.0]).log(), torch.tensor([[1.0, 4.0]]).log()
    found = info_nce(positive, negative, torch.tensor([[0.5, 2.0]]).log(), negative_weight=3.0)
    torch.testing.assert_close(found, torch.tensor([math.log(13.75)]))


def test_info_nce_is_the_quotient_of_exponentials():
    generator = torch.Generator().manual_seed(0)
    positive, negative, hardness = (
        torch.randn(shape, generator=generator, dtype=torch.float64) * 3
        for shape in ((20,), (20, 7), (20, 7))
    )
    pi = hardness.softmax(dim=1)
    rest = 64 * 7 * (pi * negative.exp()).sum(dim=1)
    naive = -torch.log(positive.exp() / (positive.exp() + rest))
    found = info_nce(positive, negative, math.log(7) + pi.log(), negative_weight=64.0)
    torch.testing.assert_close(found, naive, rtol=0, atol=1e-12)


def test_info_nce_is_finite_where_the_quotient_overflows():
    positive = torch.tensor([1.0, -1.0], requires_grad=True)
    negative = torch.tensor([[1.0, 0.9], [-1.0, 1.0]], requires_grad=True)
    loss = info_nce(positive / 0.01, negative / 0.01, 0.0, negative_weight=64.0)
    loss.sum().backward()
    assert torch.isinf((positive / 0.01).exp()).any()
    assert (
        loss.isfinite().all() and positive.grad.isfinite().all() and negative.grad.isfinite().all()
    )
    # 1: the first negative is the positive's equal, the second e^10 times smaller. Scores of 100
    # have a spacing of 8e-6 in float32.
    expected = torch.tensor([math.log(65 + 64 * math.exp(-10)), 200 + math.log(64)])
    torch.testing.assert_close(loss.detach(), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("n_items", [20, 2000])
def test_sampled_products_by_either_way(n_items):
    generator = torch.Generator().manual_seed(0)
    row, table = torch.randn(6, 4, generator=generator), torch.randn(
        n_items, 4, generator=generator
    )
    index = torch.randint(n_items, (6, 9), generator=generator)
    expected = torch.stack([table[index[b]] @ row[b] for b in range(6)])
    torch.testing.assert_close(sampled_products(row, table, index), expected)


@pytest.mark.parametrize("n_layers", [0, 2])
def test_uniform_weights_give_info_nce(tiny, n_layers):
    """At p = q = 0 and the same k both are one model, from one start; KL(pi || uniform) is 0."""
    settings = {**GAME, "n_layers": n_layers, "negative_weight": 1.0}
    adversarial = tiny("AdvInfoNCE", **settings)
    for key in ("max_interval", "max_start_epoch", "max_learning_rate"):
        del settings[key]
    plain = tiny("InfoNCE", **settings)
    assert same(weights(plain.model)[0], weights(adversarial.model)[0])
    for table in adversarial.model.hardness.values():
        torch.nn.init.zeros_(table.weight)
    losses = []
    for run in (plain, adversarial):
        batch = run.batch()
        torch.manual_seed(0)
        losses.append(run.model.calculate_loss(batch).item())
    assert abs(losses[0] - losses[1]) < 1e-6
    assert abs(adversarial.model.log_values()["kl_from_uniform"]) < 1e-7


def test_the_regulariser_is_half_the_squared_norms_per_positive(tiny):
    run = tiny("InfoNCE", n_negatives=5, reg_weight=3.0)
    batch = run.batch()
    torch.manual_seed(0)
    user, item, _ = run.model.draw(batch)
    torch.manual_seed(0)
    with_it = run.model.calculate_loss(batch)
    run.model.reg_weight = 0.0
    torch.manual_seed(0)
    without = run.model.calculate_loss(batch)
    users, items = run.model.user_embedding(user), run.model.item_embedding(item)
    expected = 1.5 * (users.square().sum(1) + items.square().sum(1)).mean()
    torch.testing.assert_close(with_it - without, expected)


# --- what is drawn --------------------------------------------------------------------------------


@pytest.mark.parametrize("user_uniform", [False, True])
def test_negatives_are_never_training_positives(tiny, user_uniform):
    run = tiny("AdvInfoNCE", **{**GAME, "n_negatives": 200, "user_uniform": user_uniform})
    rows = run.train._dataset.inter_feat
    pairs = set(zip(rows["user_id"].tolist(), rows["item_id"].tolist()))
    batch = run.batch()
    assert len(batch) == 64  # positives, whatever n_negatives is
    user, item, negative = run.model.draw(batch)
    assert negative.shape == (64, 200) and negative.min() >= 1
    assert set(zip(user.tolist(), item.tolist())) <= pairs
    for u, drawn in zip(user.tolist(), negative.tolist()):
        assert not pairs & {(u, i) for i in drawn}
    if user_uniform:
        users = rows["user_id"].unique()
        assert torch.equal(user, users[batch["inter_idx"] % len(users)])


# --- the game -------------------------------------------------------------------------------------


def test_ascent_raises_the_loss_on_its_batch_and_kl(tiny):
    run = tiny("AdvInfoNCE", **GAME, n_layers=0, adversary_reg_weight=0.0)
    batch, turn = run.batch(), run.trainer._turns()["max"]
    run.model.train()

    def loss():
        torch.manual_seed(0)
        return run.model.calculate_max_objective(batch).item()

    values = [loss()]
    # Negatives are drawn anew for each step; the objective is measured on those of one seed.
    for _ in range(10):
        run.trainer.loop.engine.run(turn, batch)
        values.append(loss())
    assert values[-1] > values[0] + 0.01
    assert run.model.kl > 0.001


def test_each_phase_leaves_the_other_player_bit_identical(tiny):
    run = tiny("AdvInfoNCE", **GAME, epochs=6)
    trainer, seen = run.trainer, []
    trainer._before_fit(run.train)
    for epoch in range(6):
        theta, phi = weights(run.model)
        ascent = {}
        run.model.on_phase_end = lambda player, epoch, a=ascent: a.update(w=weights(run.model))
        trainer._fit_epoch(run.train, epoch, verbose=False, show_progress=False)
        del run.model.on_phase_end
        new_theta, new_phi = weights(run.model)
        if ascent:  # first the adversary alone, then the recommender alone
            assert same(theta, ascent["w"][0]) and not same(phi, ascent["w"][1])
            assert same(new_phi, ascent["w"][1])
            seen.append(epoch)
        else:
            assert same(phi, new_phi)
        assert not same(theta, new_theta)
    assert seen == [1, 5]


def official_epochs(interval, warm_up, eta_epochs, epochs):
    """When train_AdvInfoNCE.py has an adversarial epoch."""
    done = []
    for t in range(epochs):
        if (t + 3) % interval == 0 and t > warm_up and len(done) < eta_epochs:
            done.append(t)
    return done


@pytest.mark.parametrize("interval, eta_epochs", [(15, 3), (15, 18), (5, 13), (4, 20)])
def test_schedule_is_the_official_one(tiny, interval, eta_epochs):
    settings = {"max_interval": interval, "max_start_epoch": interval - 3, "max_budget": eta_epochs}
    schedule, taken = tiny("AdvInfoNCE", **settings).trainer.schedule, {"min": 0, "max": 0}
    found = []
    for epoch in range(90):
        passes = schedule.passes(epoch, taken)
        assert passes[-1] == ("min",)
        if passes[0] == ("max",):
            taken["max"] += 1
            found.append(epoch)
    assert found == official_epochs(interval, 0, eta_epochs, 90)
    assert interval != 15 or found[:2] == [12, 27]


def test_official_behaviour_frees_the_adversary(tiny):
    objectives = []
    for official in (False, True):
        run = tiny("AdvInfoNCE", **GAME, adversary_reg_weight=2.0, official_behaviour=official)
        batch = run.batch()
        torch.manual_seed(0)
        objectives.append(run.model.calculate_max_objective(batch).item())
        torch.manual_seed(0)
        user, _, negative = run.model.draw(batch)
    p, q = (run.model.hardness[name].weight for name in ("user", "item"))
    penalty = (p[user].square().sum() + q[negative].square().sum()).item() / len(user)
    assert objectives[1] - objectives[0] == pytest.approx(penalty, rel=1e-5)


@pytest.mark.parametrize("model", ["InfoNCE", "AdvInfoNCE"])
@pytest.mark.parametrize("n_layers", [0, 2])
def test_learns_the_checkerboard(settings_of, model, n_layers):
    given = settings_of(
        model,
        epochs=40,
        n_layers=n_layers,
        train_batch_size=128,
        learning_rate=0.03,
        temperature=0.3,
    )
    given |= {"eval_step": 10, "checkpoint_interval": 0}
    found = run_recbole_adv(model, "checkerboard", config_dict=given)["test_result"]["recall@10"]
    # Half of the items are of a user's colour; chance is about 10 of those not seen yet.
    assert found > 0.7


@pytest.mark.parametrize("user_uniform", [False, True])
def test_four_epochs_are_two_and_two(settings_of, user_uniform):
    given = settings_of("AdvInfoNCE", **GAME, user_uniform=user_uniform, drop_last=True)
    given |= {"max_interval": 2, "eval_step": 1}
    whole = run_recbole_adv("AdvInfoNCE", "checkerboard", config_dict={**given, "epochs": 4})
    half = run_recbole_adv("AdvInfoNCE", "checkerboard", config_dict={**given, "epochs": 2})
    rest = run_recbole_adv(resume=half["run_dir"], config_dict={"epochs": 4})
    assert rest["test_result"] == whole["test_result"]
    states = [checkpoint.load(f"{run['run_dir']}/last.pth") for run in (whole, rest)]
    assert same(states[0]["state_dict"], states[1]["state_dict"])
    loops = [state["recbole_adv"]["loop"] for state in states]
    assert (
        loops[0]["turns_taken"] == loops[1]["turns_taken"] and loops[0]["turns_taken"]["max"] == 2
    )


@pytest.mark.parametrize("n_layers", [0, 2])
@pytest.mark.parametrize("cosine", [False, True])
def test_scores_are_one_by_one_what_they_are_for_all(tiny, n_layers, cosine):
    run = tiny("AdvInfoNCE", n_layers=n_layers, cosine_predict=cosine)
    batch, parameters = run.batch(), set(dict(run.model.named_parameters()))
    run.model.eval()
    scores = run.model.full_sort_predict(batch).view(len(batch), -1)
    picked = scores.gather(1, batch["item_id"].unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(run.model.predict(batch), picked)
    assert set(dict(run.model.named_parameters())) == parameters
    if cosine:
        assert scores.abs().max() <= 1 + 1e-6
    run.model.load_other_parameter(run.model.other_parameter())
