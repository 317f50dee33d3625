"""IRM, V-REx, GroupDRO and EIIL over RecBole's models."""

import copy
import math

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.model.loss import BPRLoss, EmbLoss
from recbole.utils import KGDataLoaderState
from torch import nn
from torch.nn import functional as F

from recbole_adv.objective.parts import total

MODELS = ["IRM", "VREx", "GroupDRO", "EIIL"]
BACKBONES = ["BPR", "LightGCN", "NeuMF", "SASRec", "GRU4Rec", "DeepFM", "CKE"]
LN2, LN3 = math.log(2), math.log(3)


def settings_for(model, **settings):
    """The penalty, or the adversary, is on from the first batch."""
    own = {"n_environments": 2, "train_batch_size": 256, "eval_step": 0}
    if model != "GroupDRO":
        own |= {"penalty_schedule": "constant", "penalty_weight": 3.0}
    if model in ("IRM", "VREx"):
        own["penalty_reset_optimizer"] = False
    if model == "EIIL":
        own |= {"max_start_epoch": 0, "max_interval": 1}
    return {**own, **settings}


def batch_of(run):
    """A training batch with its row index, on the run's seed."""
    run.trainer._before_fit(run.train)
    if hasattr(run.train, "set_mode"):
        run.train.set_mode(KGDataLoaderState.RSKG)
    run.model.train()
    return next(iter(run.train))


def eval_batch(run):
    """Users, and what else a backbone reads, to predict for."""
    batch = batch_of(run)
    rows = {name: value[:20] for name, value in batch.interaction.items() if len(value) >= 20}
    return Interaction(rows)


def predictions(net, batch):
    net.eval()
    with torch.no_grad():
        result = [net.predict(batch)]
        try:
            result.append(net.full_sort_predict(batch))
        except NotImplementedError:
            result.append(None)
    return result


def same(ours, theirs):
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_over_every_backbone(model, backbone, tiny):
    run = tiny(model, backbone=backbone, **settings_for(model))
    net, batch = run.model, batch_of(run)
    assert type(net.backbone).__name__ == backbone and net.type == net.backbone.type
    # Gradients reach what the backbone's own loss reaches, all of it, and are finite.
    total(net.backbone.calculate_loss(batch)).backward()
    reached = {n for n, p in net.backbone.named_parameters() if p.grad is not None}
    net.zero_grad()
    loss = total(net.calculate_loss(batch))
    assert loss.numel() == 1 and loss.isfinite()  # EmbLoss makes it [1]
    loss.backward()
    assert {n for n, p in net.backbone.named_parameters() if p.grad is not None} == reached
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    assert any(p.grad.abs().sum() > 0 for p in net.backbone.parameters() if p.grad is not None)
    # It trains, and what a checkpoint holds of it is all there is.
    run.trainer._train_epoch(run.train, 0)
    items = eval_batch(run)
    scores = predictions(net, items)
    same(scores, predictions(net.backbone, items))
    other = tiny(model, backbone=backbone, **settings_for(model))  # not trained
    assert not torch.equal(predictions(other.model, items)[0], scores[0])
    other.model.load_state_dict(copy.deepcopy(net.state_dict()))
    other.model.load_other_parameter(net.other_parameter())
    same(predictions(other.model, items), scores)
    assert {n: v.tolist() for n, v in other.model.log_values().items() if torch.is_tensor(v)} == {
        n: v.tolist() for n, v in net.log_values().items() if torch.is_tensor(v)
    }


# --- numbers worked by hand ---------------------------------------------------------------------


def hand_batch(run, differences, environments=None):
    """A batch of pairs whose score differences are given, row i of the batch being row i of N."""
    net, n = run.model.backbone, len(differences)
    net.user_embedding.weight.data.zero_()[:, 0] = 1.0
    net.item_embedding.weight.data.zero_()
    net.item_embedding.weight.data[1 : n + 1, 0] = torch.tensor(differences)
    if environments is not None:
        run.model.environments.environment[:n] = torch.tensor(environments)
    ids = torch.arange(1, n + 1)
    return Interaction(
        {
            "user_id": ids,
            "item_id": ids,
            "neg_item_id": torch.full((n,), n + 1),
            "inter_idx": torch.arange(n),
        }
    )


# softplus(-D) and -D sigma(-D) of a pair ranked right at odds 3 to 1, undecided, and wrong.
RIGHT, EVEN, WRONG = LN3, 0.0, -LN3
LOSS = {RIGHT: math.log(4 / 3), EVEN: LN2, WRONG: math.log(4)}
SLOPE = {RIGHT: -LN3 / 4, EVEN: 0.0, WRONG: 3 * LN3 / 4}


def test_irm_by_hand(tiny):
    pairs, environments = [RIGHT, WRONG, RIGHT, EVEN, WRONG], [0, 0, 1, 1, 1]
    run = tiny("IRM", **settings_for("IRM", penalty_estimator="plain", penalty_rescale=False))
    risk, penalty = run.model.calculate_loss(hand_batch(run, pairs, environments))
    first = (LOSS[RIGHT] + LOSS[WRONG]) / 2
    second = (LOSS[RIGHT] + LOSS[EVEN] + LOSS[WRONG]) / 3
    assert risk.item() == pytest.approx((first + second) / 2, abs=1e-6)
    slopes = (SLOPE[RIGHT] + SLOPE[WRONG]) / 2, (SLOPE[RIGHT] + SLOPE[WRONG]) / 3
    assert penalty.item() == pytest.approx(3 * (slopes[0] ** 2 + slopes[1] ** 2) / 2, abs=1e-6)
    # The unbiased estimate is the mean product of two different rows: of the three pairs of rows
    # of the second environment two have a slope of 0.
    run.model.estimator = "u"
    _, penalty = run.model.calculate_loss(hand_batch(run, pairs, environments))
    product = SLOPE[RIGHT] * SLOPE[WRONG]
    assert penalty.item() == pytest.approx(3 * (product + product / 3) / 2, abs=1e-6)
    # Divided by the weight where that is above 1.
    run.model.rescales = True
    rescaled = run.model.calculate_loss(hand_batch(run, pairs, environments))
    assert [part.item() for part in rescaled] == pytest.approx(
        [risk.item() / 3, penalty.item() / 3]
    )


def test_vrex_by_hand(tiny):
    pairs, environments = [RIGHT, WRONG, RIGHT, EVEN], [0, 0, 0, 1]
    run = tiny("VREx", **settings_for("VREx"))
    risk, penalty = run.model.calculate_loss(hand_batch(run, pairs, environments))
    first, second = (2 * LOSS[RIGHT] + LOSS[WRONG]) / 3, LOSS[EVEN]
    assert risk.item() == pytest.approx((first + second) / 2, abs=1e-6)
    assert penalty.item() == pytest.approx(3 * ((first - second) / 2) ** 2, abs=1e-6)
    # One environment in the batch: no variance, and its own risk.
    risk, penalty = run.model.calculate_loss(hand_batch(run, [RIGHT, WRONG], [1, 1]))
    assert risk.item() == pytest.approx((LOSS[RIGHT] + LOSS[WRONG]) / 2, abs=1e-6)
    assert penalty.item() == 0


def test_group_dro_by_hand(tiny):
    """One move of the weights by the formula, and the loss uses the moved weights."""
    run = tiny("GroupDRO", **settings_for("GroupDRO", group_dro_eta=0.5, n_environments=3))
    net = run.model
    batch = hand_batch(run, [RIGHT, WRONG, WRONG, EVEN], [0, 1, 1, 2])
    risks = [LOSS[RIGHT], LOSS[WRONG], LOSS[EVEN]]
    assert net.calculate_loss(batch).item() == pytest.approx(sum(risks) / 3, abs=1e-6)
    net.max_step(batch)
    factors = [math.exp(0.5 * risk) for risk in risks]
    weights = [factor / sum(factors) for factor in factors]
    assert net.weight.tolist() == pytest.approx(weights, abs=1e-6)
    assert net.running_risk.tolist() == pytest.approx(risks, abs=1e-6)
    expected = sum(w * r for w, r in zip(weights, risks))
    assert net.calculate_loss(batch).item() == pytest.approx(expected, abs=1e-6)
    # Environment 2 is absent from the next batch: it moves by its running risk.
    net.max_step(hand_batch(run, [EVEN, RIGHT], [0, 1]))
    risks[0] += 0.1 * (LOSS[EVEN] - risks[0])
    risks[1] += 0.1 * (LOSS[RIGHT] - risks[1])
    assert net.running_risk.tolist() == pytest.approx(risks, abs=1e-6)
    factors = [w * math.exp(0.5 * r) for w, r in zip(weights, [LOSS[EVEN], LOSS[RIGHT], risks[2]])]
    assert net.weight.tolist() == pytest.approx([f / sum(factors) for f in factors], abs=1e-6)


def test_group_dro_moves_the_weights_before_the_min_player(tiny):
    run = tiny("GroupDRO", **settings_for("GroupDRO", epochs=1, group_dro_eta=0.5))
    net, seen = run.model, []

    def noting(name):
        original = getattr(net, name)

        def noted(interaction):
            seen.append((name, net.weight.tolist()))
            return original(interaction)

        return noted

    net.max_step, net.calculate_loss = noting("max_step"), noting("calculate_loss")
    trainer = type(run.trainer)(run.config, net)  # its players hold the functions above
    trainer.fit(run.train, verbose=False, saved=False)
    assert [name for name, _ in seen] == ["max_step", "calculate_loss"] * len(run.train)
    weights = [weight for _, weight in seen]
    assert weights[0] == [0.5, 0.5] != weights[1] == weights[2] != weights[3]


@pytest.mark.parametrize("backbone", ["BPR", "LightGCN", "NeuMF", "SASRec", "DeepFM"])
def test_irm_is_the_gradient_in_a_dummy_scale(backbone, tiny):
    """The closed form against double backward: the scores that reach the backbone's loss module
    are multiplied by w = 1, and the penalty is the squared derivative in w. Values and gradients.
    """
    plain = {"penalty_estimator": "plain", "penalty_rescale": False, "hidden_dropout_prob": 0.0}
    settings = {**plain, "attn_dropout_prob": 0.0, "dropout_prob": 0.0}
    run = tiny("IRM", backbone=backbone, **settings_for("IRM", **settings))
    net, batch = run.model, batch_of(run)
    weights = list(net.backbone.parameters())
    ours = net.calculate_loss(batch)
    kinds = {BPRLoss, nn.BCEWithLogitsLoss, nn.BCELoss, nn.CrossEntropyLoss}
    (module,) = (m for m in net.backbone.modules() if type(m) in kinds)
    taken = []
    hook = module.register_forward_hook(lambda module, args, output: taken.append(args))
    backbones = total(net.backbone.calculate_loss(batch))
    hook.remove()
    first, second = taken[0]
    w = torch.ones((), requires_grad=True)
    if isinstance(module, BPRLoss):
        rows = F.softplus(-w * (first - second))
    elif isinstance(module, nn.CrossEntropyLoss):
        rows = F.cross_entropy(w * first, second, reduction="none")
    else:
        rows = F.binary_cross_entropy_with_logits(w * first, second, reduction="none")
    tiles = 2 if backbone in ("NeuMF", "DeepFM") else 1
    index = batch["inter_idx"][: len(rows) // tiles]
    rows = rows.reshape(tiles, -1).mean(dim=0)
    environment = net.environments.environment[index]
    risks = [rows[environment == e].mean() for e in (0, 1)]
    slopes = [torch.autograd.grad(risk, w, create_graph=True)[0] for risk in risks]
    penalty = 3 * sum(slope.square() for slope in slopes) / 2
    risk = backbones - rows.mean() + sum(risks) / 2
    torch.testing.assert_close(ours[0], risk, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1], penalty, rtol=1e-4, atol=1e-9)
    got = torch.autograd.grad(total(ours), weights, allow_unused=True)
    want = torch.autograd.grad(risk + penalty, weights, allow_unused=True)
    for a, b in zip(got, want):
        assert (a is None) == (b is None)
        if a is not None:
            # 1e-5 of the largest entry: two ways of summing in float32.
            scale = max(b.abs().max().item(), 1e-4)
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * scale)


# --- where penalties vanish ---------------------------------------------------------------------


def test_equal_environments_have_no_variance(tiny):
    run = tiny("VREx", **settings_for("VREx"))
    pairs = [RIGHT, WRONG, EVEN]
    risk, penalty = run.model.calculate_loss(hand_batch(run, pairs * 2, [0] * 3 + [1] * 3))
    assert penalty.item() == pytest.approx(0, abs=1e-14)
    assert risk.item() == pytest.approx(sum(LOSS[pair] for pair in pairs) / 3, abs=1e-6)


def test_calibrated_scores_are_invariant(tiny):
    """Three of four pairs right at odds 3 to 1: no scale of the scores is better than 1."""
    run = tiny("IRM", **settings_for("IRM", penalty_estimator="plain"))
    pairs = [RIGHT, RIGHT, WRONG, RIGHT, EVEN, EVEN]
    _, penalty = run.model.calculate_loss(hand_batch(run, pairs, [0, 0, 0, 0, 1, 1]))
    assert penalty.item() == pytest.approx(0, abs=1e-12)
    _, penalty = run.model.calculate_loss(hand_batch(run, pairs, [0, 0, 1, 0, 1, 1]))
    assert penalty.item() > 0.01


@pytest.mark.parametrize("backbone", ["BPR", "NeuMF", "CKE"])
def test_eiil_without_a_penalty_is_the_backbone(backbone, tiny):
    settings = settings_for("EIIL", penalty_weight=0.0, dropout_prob=0.0)
    run = tiny("EIIL", backbone=backbone, **settings)
    batch = batch_of(run)
    ours, theirs = run.model.calculate_loss(batch), run.model.backbone.calculate_loss(batch)
    assert type(ours) is type(theirs)  # no part more: RecBole logs them apart
    assert all(map(torch.equal, _parts(ours), _parts(theirs)))
    torch.manual_seed(0)
    assert torch.equal(total(run.model.calculate_joint(batch)[0]), total(theirs))


def _parts(loss):
    return loss if isinstance(loss, tuple) else (loss,)


@pytest.mark.parametrize("model", ["IRM", "VREx", "GroupDRO"])
def test_environments_of_equal_mass_without_a_penalty_are_the_backbone(model, tiny):
    settings = settings_for(model)
    if model != "GroupDRO":
        settings["penalty_weight"] = 0.0
    run = tiny(model, **settings)
    batch = hand_batch(run, [RIGHT, WRONG, EVEN, WRONG], [0, 0, 1, 1])
    ours, theirs = run.model.calculate_loss(batch), run.model.backbone.calculate_loss(batch)
    assert total(ours).item() == pytest.approx(theirs.item(), abs=1e-6)
    # 1e-10 in RecBole's BPRLoss, against softplus.
    gradient = torch.autograd.grad(total(ours), run.model.backbone.item_embedding.weight)[0]
    expected = torch.autograd.grad(theirs, run.model.backbone.item_embedding.weight)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model", ["IRM", "VREx", "GroupDRO"])
def test_the_backbones_regularisation_stays(model, tiny):
    """LightGCN's, made a hundred times as large as its loss, is neither averaged nor penalised."""
    penalty = {} if model == "GroupDRO" else {"penalty_weight": 0.0}
    run = tiny(model, backbone="LightGCN", **settings_for(model, reg_weight=1e4, **penalty))
    net, batch = run.model, batch_of(run)
    light = net.backbone
    loss, rows = net.rows(batch)
    tables = (light.user_embedding, light.item_embedding, light.item_embedding)
    ids = (batch["user_id"], batch["item_id"], batch["neg_item_id"])
    regularisation = 1e4 * EmbLoss()(*(t(i) for t, i in zip(tables, ids)))
    assert regularisation > 10 * rows.loss.mean()
    risk = torch.tensor(7.0)
    expected = (risk + regularisation).item()
    assert net.with_risk(loss, rows, risk).item() == pytest.approx(expected, rel=1e-5)
    q = net.environments.membership(rows.index)
    risks = (q.t() @ rows.loss) / q.sum(dim=0)
    expected = (risks.mean() + regularisation).item()
    assert total(net.calculate_loss(batch)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_learns_the_checkerboard(model, tiny):
    """Of 42 items that a user has not seen he likes 12, and 2 of these are tested: the ten best are
    worth 10 / 12 to who knows the colours, and 10 / 42 to Pop, who does not."""
    quick = {"epochs": 12, "learning_rate": 0.05, "train_batch_size": 256}
    quick |= {"eval_step": 0, "metrics": ["Recall"], "valid_metric": "recall@10"}
    pop = tiny("Pop", **{**quick, "epochs": 1})
    pop.fit()
    settings = {**settings_for(model, penalty_weight=1.0), **quick}
    if model == "GroupDRO":
        settings.pop("penalty_weight")
    run = tiny(model, **settings)
    run.fit()
    recall = run.trainer.evaluate(run.test)["recall@10"]
    assert pop.trainer.evaluate(pop.test)["recall@10"] < 0.4
    assert recall > 0.6


@pytest.mark.parametrize("model", MODELS)
def test_a_deep_copy_is_a_model_of_its_own(model, tiny):
    """RecBole copies a model to count its FLOPs."""
    run = tiny(model, **settings_for(model))
    batch = batch_of(run)
    twin = copy.deepcopy(run.model)
    assert type(twin) is type(run.model)
    assert torch.equal(total(twin.calculate_loss(batch)), total(run.model.calculate_loss(batch)))
    twin.backbone.item_embedding.weight.data.normal_()  # the copy reads its own loss module
    changed = total(twin.calculate_loss(batch))
    assert not torch.equal(changed, total(run.model.calculate_loss(batch)))
