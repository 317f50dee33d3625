"""Smoothed targets: the loss and the step of torch's own forms, in training only."""

import pytest
import torch
from recbole.model.general_recommender import BPR
from torch import nn
from torch.nn import functional as F

from recbole_adv.errors import ConfigError
from recbole_adv.objective.parts import total

ONE_STEP = {"epochs": 1, "train_batch_size": 10**6, "eval_step": 0}
SGD = {"learner": "sgd", "learning_rate": 1.0}
EIIL = {"max_start_epoch": 0, "penalty_start": 0, "max_interval": 1, "n_environments": 2}
BPR_LOSS = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}


def weights(run):
    return [p.detach().clone() for p in run.model.parameters()]


def fitted(run):
    run.fit(saved=False)
    return weights(run)


def loss_of(run, batch, seed=0):
    """The recommender's loss as it is minimised, without and with the technique."""
    turn = run.trainer._turns()["min"]
    (technique,) = run.trainer.techniques["min"].values()
    technique.attach(run.trainer, run.trainer.players[0])
    values = []
    for loss in (turn.loss, technique.wrap_loss(turn.loss, turn)):
        torch.manual_seed(seed)  # dropout
        values.append(loss(batch))
    return values


def ready(run):
    batch = run.batch()
    run.model.train()
    return batch


def recorded_inputs(module):
    """What a loss module is given, by a hook of the test's own."""
    seen = []
    module.register_forward_hook(lambda m, args, value: seen.append(args))
    return seen


def gradients(run, value):
    found = torch.autograd.grad(value, list(run.model.parameters()), allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


def in_place_of(run, module, smoothed):
    """The expected loss: the module's value replaced by that of torch's own form."""
    batch = ready(run)
    seen = recorded_inputs(module)
    plain, mine = loss_of(run, batch)
    own, there = module(*seen[0]), smoothed(*seen[0])
    expected = total(plain) - own + there
    torch.testing.assert_close(total(mine), expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(run, total(mine)), gradients(run, expected)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    assert not torch.isclose(there, own, rtol=1e-4)
    assert isinstance(mine, tuple) and len(mine) == 1 + len(
        plain if isinstance(plain, tuple) else (plain,)
    )
    return batch


# --- the forms ------------------------------------------------------------------------------------


def shifted(run):
    """Weights at which scores differ, so that smoothing shows."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in run.model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return run


def test_softmax_is_torchs_label_smoothing(tiny):
    run = shifted(tiny("SASRec", techniques=["label_smoothing"], label_smoothing_epsilon=0.2))
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.2)
    in_place_of(run, run.model.loss_fct, smoothed)


@pytest.mark.parametrize("model", ["NeuMF", "DeepFM"])
def test_coins_are_bce_at_soft_labels(tiny, model):
    run = shifted(tiny(model, techniques=["label_smoothing"], label_smoothing_epsilon=0.2))

    def smoothed(logit, label):
        assert set(label.tolist()) == {0.0, 1.0}
        return F.binary_cross_entropy_with_logits(logit, label * 0.8 + 0.1)

    in_place_of(run, run.model.loss, smoothed)


@pytest.mark.parametrize("model, module", [("BPR", "loss"), ("LightGCN", "mf_loss")])
def test_pairs_are_bce_of_the_difference(tiny, model, module):
    run = shifted(tiny(model, techniques=["label_smoothing"], label_smoothing_epsilon=0.2))

    def smoothed(positive, negative):
        difference = positive - negative
        return F.binary_cross_entropy_with_logits(difference, torch.full_like(difference, 0.9))

    in_place_of(run, getattr(run.model, module), smoothed)


class ProbBPR(BPR):
    """Ends in a sigmoid; its rows are not averaged by the module, and weighed by the model."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.loss = nn.BCELoss(reduction="none")

    def calculate_loss(self, interaction):
        pairs = (interaction[self.USER_ID], interaction[self.ITEM_ID])
        logit = (self.get_user_embedding(pairs[0]) * self.get_item_embedding(pairs[1])).sum(dim=-1)
        label = (interaction[self.ITEM_ID] % 2).float()
        self.row_weight = torch.linspace(0, 1, len(logit))
        return (self.loss(torch.sigmoid(logit), label) * self.row_weight).sum()


def test_probabilities_and_rows_that_the_model_weighs(tiny):
    run = shifted(tiny(ProbBPR, techniques=["label_smoothing"], label_smoothing_epsilon=0.2))
    batch = ready(run)
    seen = recorded_inputs(run.model.loss)
    _, mine = loss_of(run, batch)
    prob, label = seen[0]
    rows = F.binary_cross_entropy(prob, label * 0.8 + 0.1, reduction="none")
    torch.testing.assert_close(total(mine), (rows * run.model.row_weight).sum())


class Doubled(BPR):
    """Takes its ranking loss twice."""

    def calculate_loss(self, interaction):
        return 2 * super().calculate_loss(interaction)


def test_the_smoothed_loss_has_the_factor_of_the_plain_one(tiny):
    given = {"techniques": ["label_smoothing"], "train_batch_size": 64, "eval_step": 0}
    once = fitted(tiny(BPR, **given, learner="sgd", learning_rate=0.2))
    twice = fitted(tiny(Doubled, **given, learner="sgd", learning_rate=0.1))
    for mine, other in zip(twice, once):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


class Masked(BPR):
    """Softmax over all items; rows of item 1 are to be ignored, item 3 is never a candidate."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.loss = nn.CrossEntropyLoss(ignore_index=1)

    def calculate_loss(self, interaction):
        user = self.get_user_embedding(interaction[self.USER_ID])
        score = 10 * user @ self.item_embedding.weight.t()
        target = interaction[self.ITEM_ID].masked_fill(interaction[self.ITEM_ID] == 3, 4)
        never = torch.arange(self.n_items) == 3
        return self.loss(score.masked_fill(never, -torch.inf), target)


@pytest.mark.parametrize("exclude_padding", [False, True])
def test_padding_masked_items_and_ignored_rows_get_no_share(tiny, exclude_padding):
    given = {"label_smoothing_epsilon": 0.2, "label_smoothing_exclude_padding": exclude_padding}
    run = shifted(tiny(Masked, techniques=["label_smoothing"], **given))
    batch = ready(run)
    seen = recorded_inputs(run.model.loss)
    _, mine = loss_of(run, batch)
    score, target = seen[0]
    candidates = [
        k for k in range(run.model.n_items) if k != 3 and not (exclude_padding and k == 0)
    ]
    log_prob = score.log_softmax(dim=-1)
    rows = -0.8 * log_prob.gather(1, target[:, None])[:, 0]
    rows = rows - 0.2 * log_prob[:, candidates].mean(dim=1)
    assert 0 < (target == 1).sum() < len(target)
    torch.testing.assert_close(total(mine), rows[target != 1].mean())


# --- off, evaluation, errors ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, settings",
    [("BPR", {}), ("SASRec", {}), ("CKE", {}), ("EIIL", {**EIIL, "backbone": "NeuMF"})],
)
def test_epsilon_0_is_plain_training(tiny, model, settings):
    plain = fitted(tiny(model, **settings))
    off = {"techniques": ["label_smoothing"], "label_smoothing_epsilon": 0}
    assert all(a.equal(b) for a, b in zip(plain, fitted(tiny(model, **off, **settings))))


def test_only_the_loss_in_training_is_smoothed(tiny):
    run = tiny("SASRec", techniques=["label_smoothing"], epochs=1)
    before = {name: vars(m).copy() for name, m in run.model.named_modules()}
    run.fit(saved=False)
    batch = next(iter(run.train))
    run.model.eval()
    seen = recorded_inputs(run.model.loss_fct)
    with torch.no_grad():
        value = run.model.calculate_loss(batch)
    torch.testing.assert_close(value, F.cross_entropy(*seen[0]))
    assert run.model.loss_fct.label_smoothing == 0
    for name, module in run.model.named_modules():
        assert vars(module).keys() == before[name].keys(), name


class Failing(BPR):
    def calculate_loss(self, interaction):
        super().calculate_loss(interaction)
        raise ZeroDivisionError


def test_a_loss_that_raises_leaves_the_modules_as_they_were(tiny):
    run = tiny(Failing, techniques=["label_smoothing"])
    with pytest.raises(ZeroDivisionError):
        run.fit(saved=False)
    assert not run.model.loss._forward_hooks and not run.model.loss._forward_pre_hooks
    assert type(run.model.loss).forward is type(BPR(run.config, run.dataset).loss).forward


class OwnSmoothing(Masked):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)


class Weighted(Masked):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0))


class SoftTargets(Masked):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.loss = nn.CrossEntropyLoss()

    def calculate_loss(self, interaction):
        user = self.get_user_embedding(interaction[self.USER_ID])
        score = user @ self.item_embedding.weight.t()
        return self.loss(score, torch.full_like(score, 1 / score.shape[1]))


class Unused(BPR):
    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction).detach() + self.user_embedding.weight.sum()


@pytest.mark.parametrize(
    "model, settings, sentence",
    [
        (
            "MultiVAE",
            {"train_neg_sample_args": None},
            "MultiVAE has none of BPRLoss, BCEWithLogits",
        ),
        (
            OwnSmoothing,
            {},
            "cannot change the CrossEntropyLoss of OwnSmoothing, which has weights or",
        ),
        (Weighted, {}, "cannot change the BCEWithLogitsLoss of Weighted, which has weights or"),
        (SoftTargets, {}, "SoftTargets gives its CrossEntropyLoss probabilities; leave label_smoo"),
        (Unused, {}, "label_smoothing has no effect on Unused, whose loss does not use"),
        (
            BPR,
            {"label_smoothing_exclude_padding": True},
            "needs a softmax over all items, which BPR",
        ),
        (BPR, {"label_smoothing_epsilon": 1}, "label_smoothing_epsilon must be a number >= 0 < 1"),
        (
            "EIIL",
            {**EIIL, "techniques": [], "max_techniques": ["label_smoothing"]},
            "label_smoothing is about the recommender's loss and cannot be given to player 'max'",
        ),
    ],
)
def test_what_cannot_work_is_refused(tiny, model, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        tiny(model, **{"techniques": ["label_smoothing"], **settings}).fit(saved=False)


# --- with others ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["BPR", "NeuMF", "SASRec"])
@pytest.mark.parametrize("model", ["EIIL", "GroupDRO"])
def test_over_a_backbone_environments_see_plain_rows(tiny, model, backbone):
    """What smoothing adds is what it adds to the backbone alone."""
    settings = {**EIIL, "backbone": backbone, "label_smoothing_epsilon": 0.2}
    run = shifted(tiny(model, techniques=["label_smoothing"], **settings))
    batch = ready(run)
    plain, mine = loss_of(run, batch)
    (module,) = (
        m
        for m in run.model.modules()
        if type(m).__name__.endswith("Loss") and "Emb" not in type(m).__name__
    )
    seen = recorded_inputs(module)
    torch.manual_seed(0)
    run.model.calculate_loss(batch)
    first, second = seen[0]
    expected = {
        "BPR": lambda: F.binary_cross_entropy_with_logits(
            first - second, torch.full_like(first, 0.9)
        ),
        "NeuMF": lambda: F.binary_cross_entropy_with_logits(first, second * 0.8 + 0.1),
        "SASRec": lambda: F.cross_entropy(first, second, label_smoothing=0.2),
    }[backbone]()
    added = total(mine) - total(plain)
    torch.testing.assert_close(added, expected - module(first, second), rtol=1e-4, atol=1e-6)
    run.trainer._attached = False
    fitted(run)


@pytest.mark.parametrize("technique", ["label_smoothing", "r_drop"])
def test_a_trainer_that_puts_losses_into_a_tuple_of_its_own(tiny, technique):
    """MKRTrainer returns (losses of interactions, loss of triples)."""
    columns = {"inter": ["user_id", "item_id", "timestamp"], "link": ["item_id", "entity_id"]}
    columns["kg"] = ["head_id", "relation_id", "tail_id"]
    given = {"load_col": columns, "dropout_prob": 0.2, "kge_interval": 2, "eval_step": 0}
    losses = []
    for techniques in ([], [technique]):
        run = tiny("MKR", techniques=techniques, label_smoothing_epsilon=1e-6, **given)
        run.fit(saved=False)
        losses.append(list(run.trainer.train_loss_dict.values()))
    # That of triples, in the first epoch only, is negative.
    assert losses[1] == pytest.approx(losses[0], rel=0.01) and losses[0][0] < 0 < losses[0][1]


@pytest.mark.parametrize("mode", ["shared_graph", "separate_forward"])
def test_in_a_game_the_adversary_keeps_its_loss(tiny, mode):
    """Where the recommender stands still the adversary ends where it does without the technique."""
    settings = {**EIIL, "backbone": "NeuMF", "dropout_prob": 0.0, "game_update": mode}
    settings |= {"learning_rate": 0.0, "max_learning_rate": 0.1}
    ends = []
    for techniques in ([], ["label_smoothing"]):
        run = tiny("EIIL", techniques=techniques, label_smoothing_epsilon=0.5, **settings)
        start = [p.detach().clone() for p in run.model.env_generator.parameters()]
        run.fit(saved=False)
        ends.append(list(run.model.env_generator.parameters()))
        assert not ends[-1][0].equal(start[0])
    assert all(a.equal(b) for a, b in zip(*ends))


def test_a_knowledge_graphs_batches_are_left_alone(tiny):
    run = tiny("CKE", techniques=["label_smoothing"])
    turn = run.trainer._turns()["min"]
    turn.on_triples = True
    (technique,) = turn.techniques
    assert technique.wrap_loss(turn.loss, turn) == turn.loss


def test_resumes_exactly(tiny):
    given = {"techniques": ["label_smoothing"]}
    whole = tiny("SASRec", run_dir="whole", epochs=2, **given)
    whole.fit()
    half = tiny("SASRec", run_dir="half", epochs=1, **given)
    half.fit()
    rest = tiny("SASRec", run_dir="rest", epochs=2, **given)
    rest.trainer.resume_checkpoint(half.trainer.last_file)
    rest.fit()
    assert all(a.equal(b) for a, b in zip(weights(whole), weights(rest)))


@pytest.mark.parametrize("model", ["NeuMF", "SASRec", "BPR"])
def test_mixed_precision(tiny, model):
    """Scores are lowered, what is added to the loss is not."""
    given = {"techniques": ["label_smoothing"], "train_batch_size": 512}
    plain = tiny(model, **given)
    low = tiny(model, enable_amp=True, enable_scaler=True, **given)
    fitted(plain)
    fitted(low)
    for epoch, losses in plain.trainer.train_loss_dict.items():
        assert low.trainer.train_loss_dict[epoch] == pytest.approx(losses, rel=0.02)
    assert all(p.isfinite().all() for p in weights(low))
