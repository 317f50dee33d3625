"""EIIL: the adversary finds what the closed forms say, and both ways to play are one game."""

import pytest
import torch

from recbole_adv.errors import ConfigError
from recbole_adv.model.invariant_recommender.eiil import EIIL
from recbole_adv.model.row_reader import Rows
from recbole_adv.objective import bpr, kmeans_1d, sign_split
from recbole_adv.objective.parts import total

FULL_BATCH = {"train_batch_size": 10**6, "eval_step": 0, "epochs": 1, "monitor_interval": 0}
ORACLE = {
    **FULL_BATCH,
    "learning_rate": 0.0,  # a frozen reference
    "generator": "table",
    "n_environments": 2,
    "penalty_estimator": "plain",
    "balance_weight": 0.0,
    "penalty_start": 0,
    "max_start_epoch": 0,
    "max_interval": 1,
    "max_first": True,
    "max_learning_rate": 0.3,
}


def spread(backbone):
    """Scores of all sizes and both signs: at the start of training they are all nearly 0."""
    generator = torch.Generator().manual_seed(3)
    for table in (backbone.user_embedding, backbone.item_embedding):
        table.weight.data.normal_(generator=generator)


def rows_of(net, batch):
    """Loss and slope of each pair of the batch, from the embeddings."""
    user = net.user_embedding.weight[batch["user_id"]]
    positive = (user * net.item_embedding.weight[batch["item_id"]]).sum(dim=1)
    negative = (user * net.item_embedding.weight[batch["neg_item_id"]]).sum(dim=1)
    return bpr(positive.detach(), negative.detach())


def ascended(run, steps):
    """One batch with all rows, on which the real engine moves the adversary; its rows."""
    spread(run.model.backbone)
    batch = run.batch()
    assert torch.equal(batch["inter_idx"].sort().values, torch.arange(len(run.train._dataset)))
    turn = run.trainer._turns()["max"]
    for _ in range(steps):
        run.trainer.loop.engine.run(turn, batch)
    with torch.no_grad():
        q = run.model.membership(batch, batch["inter_idx"]).t()
    return q, rows_of(run.model.backbone, batch)


def agreement(found, oracle, k):
    """Share of rows on which two partitions agree, under the best relabelling of up to 3 labels."""
    confusion = torch.zeros(k, k)
    confusion.index_put_((found, oracle), torch.ones(len(found)), accumulate=True)
    orders = [order for order in torch.cartesian_prod(*[torch.arange(k)] * k).tolist()]
    orders = [order for order in orders if len(set(order)) == k]
    return max(sum(confusion[i, j] for i, j in enumerate(order)) for order in orders) / len(found)


def test_irm_raw_finds_the_signs(tiny):
    """Any row, however small its slope: the objective is convex, and best at a vertex."""
    run = tiny("EIIL", **ORACLE, inference_objective="irm_raw", max_learner_eps=1e-16)
    q, rows = ascended(run, 150)
    assert 0.2 < (rows.gradient > 0).float().mean() < 0.8
    assert agreement(q.argmax(dim=1), sign_split(rows.gradient), 2) == 1
    assert q.max(dim=1).values.mean() > 0.99


@pytest.mark.parametrize("k, share", [(2, 0.995), (3, 0.97)])
@pytest.mark.parametrize("objective", ["irm", "rex"])
def test_irm_and_rex_find_the_best_intervals(objective, k, share, tiny):
    """The k-means of slopes (losses); rows at a cut gain next to nothing by changing sides."""
    # A step of nearly one size wherever a row stands, else those that saturate early stay there.
    steady = {"max_learner_eps": 1e-16, "max_learner_betas": [0.0, 0.5]}
    settings = {**ORACLE, **steady, "inference_objective": objective, "n_environments": k}
    run = tiny("EIIL", **settings)
    q, rows = ascended(run, 350)
    oracle = kmeans_1d(rows.gradient if objective == "irm" else rows.loss, k)
    assert agreement(q.argmax(dim=1), oracle, k) > share
    best = torch.nn.functional.one_hot(oracle, k).float()
    found, most = (_inferred(run.model, rows, each.t()) for each in (q, best))
    assert found > 0.998 * most


def _inferred(net, row_loss, q):
    rows = Rows(row_loss.loss, row_loss.gradient, torch.arange(len(row_loss.loss)))
    return net.inferred(rows, q, net._statistics(rows, q))


def test_the_balance_keeps_environments_from_emptying(tiny):
    """In a reference that knows its training data by heart all slopes are one number."""
    shares = {}
    for weight in (0.0, 10.0):
        settings = {**ORACLE, "inference_objective": "irm_raw", "balance_weight": weight}
        run = tiny("EIIL", **settings, max_learner_eps=1e-16, embedding_size=61)
        batch, net = run.batch(), run.model.backbone
        net.item_embedding.weight.data.copy_(torch.eye(61))
        net.user_embedding.weight.data.zero_()[batch["user_id"], batch["item_id"]] = 1.0
        assert rows_of(net, batch).gradient.unique().numel() == 1
        turn = run.trainer._turns()["max"]
        for _ in range(80):
            run.trainer.loop.engine.run(turn, batch)
        shares[weight] = run.model.mass.min().item()
    assert shares[0.0] < 0.05
    assert shares[10.0] == pytest.approx(0.5, abs=0.02)


# --- one game, two ways to play it --------------------------------------------------------------

GAME = {
    "penalty_start": 0,
    "penalty_weight": 5.0,
    "max_start_epoch": 0,
    "max_interval": 1,
    "train_batch_size": 256,
    "eval_step": 0,
    "epochs": 1,
}


@pytest.mark.parametrize("generator", ["mlp", "table"])
@pytest.mark.parametrize("objective", ["irm", "irm_raw", "rex"])
def test_both_modes_have_the_same_gradients(objective, generator, tiny):
    settings = {"inference_objective": objective, "generator": generator, "entropy_weight": 0.2}
    run = tiny("EIIL", **GAME, **settings)
    spread(run.model.backbone)
    batch, net = run.batch(), run.model
    low, high = list(net.backbone.parameters()), list(net.env_generator.parameters())
    loss, value = net.calculate_joint(batch)
    shared = [
        *torch.autograd.grad(total(loss), low, retain_graph=True),
        *torch.autograd.grad(value, high),
    ]
    apart_loss, apart_value = net.calculate_loss(batch), net.calculate_max_objective(batch)
    apart = [
        *torch.autograd.grad(total(apart_loss), low),
        *torch.autograd.grad(apart_value, high),
    ]
    torch.testing.assert_close(total(loss), total(apart_loss), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(value, apart_value, rtol=1e-6, atol=1e-6)
    for a, b in zip(shared, apart):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert a.abs().max() > 0
    # The min player's loss does not see that the memberships could be moved.
    assert not any(p.grad is not None for p in net.parameters())
    reached = torch.autograd.grad(total(net.calculate_loss(batch)), high, allow_unused=True)
    assert all(gradient is None for gradient in reached)


@pytest.mark.parametrize("generator", ["mlp", "table"])
@pytest.mark.parametrize("mode", ["shared_graph", "separate_forward"])
def test_an_ascent_step_raises_the_objective(mode, generator, tiny):
    sgd = {"max_learner": "sgd", "max_learning_rate": 0.05, "monitor_interval": 1}
    run = tiny("EIIL", game_update=mode, generator=generator, **GAME, **sgd)
    spread(run.model.backbone)
    run.fit(saved=False)
    gains = run.trainer.loop.statistics["max"]._samples["gain"]
    assert len(gains) == len(run.train)
    assert min(gains) > 0


@pytest.mark.parametrize("generator", ["mlp", "table"])
@pytest.mark.parametrize("backbone", ["BPR", "NeuMF"])
def test_the_generator_leaves_the_backbones_start_alone(backbone, generator, tiny):
    alone = tiny(backbone)
    game = tiny("EIIL", backbone=backbone, generator=generator)
    weights = game.model.backbone.state_dict()
    assert weights.keys() == alone.model.state_dict().keys()
    for name, weight in alone.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    # And the random numbers that follow: the same masks of dropout.
    alone_next = (tiny(backbone), torch.rand(3))[1]
    assert torch.equal(
        (tiny("EIIL", backbone=backbone, generator=generator), torch.rand(3))[1], alone_next
    )


# --- the paper's three stages -------------------------------------------------------------------


@pytest.mark.parametrize("generator", ["mlp", "table"])
def test_one_shot(generator, tiny):
    keys = {"inference": "one_shot", "max_start_epoch": 2, "one_shot_epochs": 3, "epochs": 4}
    quick = {"max_learning_rate": 0.1, "penalty_start": 2, "train_batch_size": 256, "eval_step": 0}
    run = tiny("EIIL", generator=generator, **keys, **quick)
    net, trainer, log, found = run.model, run.trainer, [], []

    def snapshot():
        weights = {name: value.clone() for name, value in net.state_dict().items()}
        return weights, trainer.optimizer

    start = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    before_epoch, on_phase_end = net.before_epoch, net.on_phase_end
    net.before_epoch = lambda *a: (log.append(("epoch", *snapshot())), before_epoch(*a))
    net.on_phase_start = lambda player, epoch: log.append(("start", *snapshot()))
    net.after_epoch = lambda *a: log.append(("after", *snapshot()))

    def noted(player, epoch):
        log.append(("ascended", *snapshot()))
        # An mlp reads the backbone's embeddings, which will not be these any more.
        found.append(net.env_generator.of_all_rows().argmax(dim=1))
        renew = on_phase_end(player, epoch)
        log.append(("reset", *snapshot()))
        return renew

    net.on_phase_end = noted
    run.fit(saved=False)
    stages = [entry[0] for entry in log]
    assert stages == ["epoch", "after"] * 2 + [
        "epoch",
        "start",
        "ascended",
        "reset",
        "after",
        "epoch",
        "after",
    ]
    states = [entry[1] for entry in log]
    reference, ascended, reset, trained = states[5], states[6], states[7], states[-1]
    backbones = [name for name in reference if name.startswith("backbone.")]
    generators = [name for name in reference if name.startswith("env_generator.")]
    # The reference has learnt, and stands still in the ascent, in which the generator moves.
    assert any(not torch.equal(reference[n], start[n.removeprefix("backbone.")]) for n in backbones)
    assert all(torch.equal(reference[n], ascended[n]) for n in backbones)
    assert all(torch.equal(states[0][n], reference[n]) for n in generators)
    assert any(not torch.equal(reference[n], ascended[n]) for n in generators)
    assert reference["hard_environment"].unique().tolist() == [-1]
    # Then the environments are hard, and the backbone is new.
    assert torch.equal(reset["hard_environment"], found[0])
    assert set(reset["hard_environment"].tolist()) <= {0, 1}
    counts = reset["hard_environment"].bincount(minlength=2)
    torch.testing.assert_close(reset["mass"], counts / counts.sum())
    assert all(torch.equal(reset[n], start[n.removeprefix("backbone.")]) for n in backbones)
    # From there on only the backbone learns, by an optimizer of its own.
    assert all(torch.equal(ascended[n], trained[n]) for n in generators)
    assert torch.equal(reset["hard_environment"], trained["hard_environment"])
    assert any(not torch.equal(reset[n], trained[n]) for n in backbones)
    optimizers = [entry[2] for entry in log]
    assert all(o is optimizers[0] for o in optimizers[:8])
    assert optimizers[8] is not optimizers[0] and optimizers[8] is optimizers[-1]
    steps = {int(state["step"]) for state in optimizers[-1].state.values()}
    assert steps == {2 * len(run.train)}  # of the last two epochs
    assert trainer.loop.turns_taken["max"] == 1
    assert trainer.loop.steps_taken["max"] == 3 * len(run.train)
    batch = run.batch()
    q = net.membership(batch, batch["inter_idx"]).t()
    assert torch.equal(q.argmax(dim=1), net.hard_environment[batch["inter_idx"]])
    assert q.unique().tolist() == [0, 1]


def test_one_shot_trains_on_the_hard_environments(tiny):
    """The penalty after the ascent is that of the hard partition, by the formula."""
    keys = {"inference": "one_shot", "max_start_epoch": 0, "one_shot_epochs": 1, "epochs": 1}
    plain = {"penalty_estimator": "plain", "penalty_start": 0, "penalty_weight": 2.0}
    run = tiny("EIIL", generator="table", eval_step=0, **keys, **plain)
    run.fit(saved=False)
    batch = run.batch()
    loss, penalty = run.model.calculate_loss(batch)
    rows = rows_of(run.model.backbone, batch)
    hard = run.model.hard_environment[batch["inter_idx"]]
    expected = sum(
        (hard == e).float().mean() * rows.gradient[hard == e].mean().square() for e in (0, 1)
    )
    torch.testing.assert_close(penalty, 2 * expected, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(loss, rows.loss.mean(), rtol=1e-5, atol=1e-6)


def test_graphs_apart_are_freed_each_by_its_own_backward(tiny):
    """EIIL says so of every objective; a subclass with a joint loss of its own does not inherit it."""
    for objective in ("irm", "irm_raw", "rex"):
        run = tiny("EIIL", **GAME, inference_objective=objective, entropy_weight=0.2)
        net, batch = run.model, run.batch()
        assert net.calculate_joint.graphs_are_apart
        loss, value = net.calculate_joint(batch)
        sum(loss).backward(inputs=list(net.backbone.parameters()))
        value.backward(inputs=list(net.env_generator.parameters()))

    class Own(EIIL):
        def calculate_joint(self, interaction):
            return super().calculate_joint(interaction)

    assert not hasattr(Own.calculate_joint, "graphs_are_apart")


class Opposite(EIIL):
    """Changes the max player's objective, and not ``calculate_joint``."""

    def calculate_max_objective(self, interaction):
        return -super().calculate_max_objective(interaction)


class Half(EIIL):
    """Environments that its generator does not know of."""

    def membership(self, interaction, index):
        return torch.full((2, len(index)), 0.5)


def test_a_subclass_is_trained_on_what_it_overrides(tiny, caplog):
    def fitted(model, **settings):
        run = tiny(model, **GAME, **settings)
        run.fit(saved=False)
        return torch.cat([p.flatten() for p in run.model.env_generator.parameters()])

    caplog.set_level("WARNING")
    apart = {"game_update": "separate_forward"}
    found = fitted(Opposite)
    (said,) = {r.getMessage() for r in caplog.records if "calculate_joint" in r.getMessage()}
    assert said.startswith(
        "Opposite overrides calculate_max_objective, but not calculate_joint of EIIL, so each"
    )
    assert torch.equal(found, fitted(Opposite, **apart))
    assert not torch.equal(found, fitted(EIIL, **apart))
    with pytest.raises(ConfigError, match="game_update: shared_graph takes both losses; override"):
        fitted(Opposite, game_update="shared_graph")


def test_environments_may_be_a_subclass_s_own(tiny):
    """Both alike: J is the square of the mean gradient of all rows."""
    run = tiny(Half, penalty_estimator="plain", balance_weight=0.0, **GAME)
    batch = run.batch()
    _, rows = run.model.rows(batch)
    expected = rows.gradient.mean() ** 2
    torch.testing.assert_close(run.model.calculate_max_objective(batch), expected)
    torch.testing.assert_close(run.model.calculate_joint(batch)[1], expected)


def test_a_player_without_a_turn_is_named_at_the_end(tiny, caplog):
    caplog.set_level("WARNING")
    tiny("EIIL", epochs=2, eval_step=0).fit(saved=False)  # from epoch 5 on
    said = "player max has had no turn in 2 epochs (start_epoch 5, interval 3)"
    assert sum(message.startswith(said) for message in caplog.messages) == 1
    caplog.clear()
    tiny("EIIL", **GAME).fit(saved=False)
    assert not caplog.messages
