"""R-Drop: the loss of two passes against torch's KL, two masks, and what it cannot be used on."""

import pytest
import torch
from recbole.model.general_recommender import NeuMF
from torch import nn
from torch.nn import functional as F

from recbole_adv.errors import ConfigError
from recbole_adv.objective.parts import total

EIIL = {"max_start_epoch": 0, "penalty_start": 0, "max_interval": 1, "n_environments": 2}
PAIRS = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}, "loss_type": "BPR"}


def weights(run):
    return [p.detach().clone() for p in run.model.parameters()]


def fitted(run):
    run.fit(saved=False)
    return weights(run)


def ready(run):
    batch = run.batch()
    run.model.train()
    torch.manual_seed(3)
    with torch.no_grad():  # scores that differ
        for p in run.model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return batch


def wrapped(run):
    """The recommender's loss with the technique, that without, and the technique."""
    turn = run.trainer._turns()["min"]
    (technique,) = turn.techniques
    return technique.wrap_loss(turn.loss, turn), turn.loss, technique


def two_passes(run, batch, module):
    """Losses and inputs of two ordinary passes from the same random numbers on."""
    seen = []
    handle = module.register_forward_hook(lambda m, args, value: seen.append(args))
    torch.manual_seed(0)
    loss = run.trainer._turns()["min"].loss
    losses = [loss(batch), loss(batch)]
    handle.remove()
    return losses, seen


def mine(run, batch):
    loss, plain, technique = wrapped(run)
    technique._try(plain, batch)
    torch.manual_seed(0)
    return loss(batch)


def kl(p, q):
    """KL(p || q) + KL(q || p) by torch, of log-probabilities [..., K]."""
    forth = F.kl_div(q, p, log_target=True, reduction="none").sum(dim=-1)
    return forth + F.kl_div(p, q, log_target=True, reduction="none").sum(dim=-1)


def coin(logit):
    return torch.stack([F.logsigmoid(logit), F.logsigmoid(-logit)], dim=-1)


def check(run, module, distributions):
    """(L1 + L2) / 2 + weight mean(KL + KL) / 2, distributions taken from the module's inputs."""
    batch = ready(run)
    losses, seen = two_passes(run, batch, module)
    first, second = (distributions(*inputs) for inputs in seen)
    expected = torch.stack([kl(p, q).mean() / 2 for p, q in zip(first, second)]).mean()
    parts = mine(run, batch)
    assert expected > 1e-4
    torch.testing.assert_close(parts[-1], 0.7 * expected, rtol=1e-4, atol=1e-7)
    plain = total(losses[0]) / 2 + total(losses[1]) / 2
    torch.testing.assert_close(sum(parts[:-1]), plain)
    assert not torch.isclose(total(losses[0]), total(losses[1]), rtol=1e-6)


GIVEN = {"techniques": ["r_drop"], "r_drop_weight": 0.7}


# --- the forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("exclude_padding", [True, False])
def test_softmax_over_all_items(tiny, exclude_padding):
    run = tiny("SASRec", r_drop_exclude_padding=exclude_padding, **GIVEN)
    first = int(exclude_padding)
    check(run, run.model.loss_fct, lambda score, target: [score[:, first:].log_softmax(dim=-1)])


@pytest.mark.parametrize("model", ["NeuMF", "DeepFM"])
def test_a_coin_for_each_score(tiny, model):
    run = tiny(model, dropout_prob=0.3, **GIVEN)
    check(run, run.model.loss, lambda logit, label: [coin(logit)])


@pytest.mark.parametrize("form", ["difference", "separate"])
def test_pairs(tiny, form):
    run = tiny("SASRec", r_drop_form=form, **{**PAIRS, **GIVEN})
    coins = {
        "difference": lambda positive, negative: [coin(positive - negative)],
        "separate": lambda positive, negative: [coin(positive), coin(negative)],
    }[form]
    check(run, run.model.loss_fct, coins)


class TwoTasks(NeuMF):
    """Half a click loss of probabilities and twice a softmax whose masked classes are none."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.loss, self.other = nn.BCELoss(), nn.CrossEntropyLoss(ignore_index=0)
        self.head = nn.Linear(1, 5)

    def calculate_loss(self, interaction):
        logit = self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID])
        score = self.head(10 * logit.unsqueeze(-1))
        score = score.masked_fill(torch.arange(5) == 3, -torch.inf)
        kind = interaction[self.ITEM_ID] % 3
        self.scores = logit, score, kind
        click = self.loss(torch.sigmoid(logit), interaction[self.LABEL])
        return click / 2, 2 * self.other(score, kind)


def test_several_losses_count_with_their_factors(tiny):
    run = tiny(TwoTasks, dropout_prob=0.3, **GIVEN)
    batch = ready(run)
    torch.manual_seed(0)
    loss, scores = run.trainer._turns()["min"].loss, []
    for _ in range(2):
        loss(batch)
        scores.append(run.model.scores)
    (logit, score, kind), (other_logit, other_score, _) = scores
    counted, classes = kind != 0, [0, 1, 2, 4]
    assert 0 < counted.sum() < len(counted)
    softmax = kl(*(s[counted][:, classes].log_softmax(dim=-1) for s in (score, other_score)))
    expected = 0.5 * kl(coin(logit), coin(other_logit)).mean() / 2 + 2 * softmax.mean() / 2
    parts = mine(run, batch)
    assert len(parts) == 3
    torch.testing.assert_close(parts[-1], 0.7 * expected, rtol=1e-4, atol=1e-7)
    sum(parts).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in run.model.parameters())


def test_both_passes_have_a_gradient(tiny):
    run = tiny("SASRec", **GIVEN)
    batch = ready(run)
    seen = []

    def keep(module, args):
        args[0].retain_grad()
        seen.append(args[0])

    mine(run, batch)  # the trial is over before the hook is there
    run.model.loss_fct.register_forward_pre_hook(keep)
    loss, _, _ = wrapped(run)
    loss(batch)[-1].backward()
    assert len(seen) == 2 and not seen[0].equal(seen[1])
    assert all(score.grad.abs().sum() > 0 for score in seen)


# --- off and start --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, settings",
    [
        ("SASRec", {}),
        ("NeuMF", {}),
        ("EIIL", {**EIIL, "backbone": "NeuMF", "game_update": "shared_graph"}),
        ("EIIL", {**EIIL, "backbone": "SASRec", "game_update": "separate_forward"}),
    ],
)
def test_weight_0_is_plain_training(tiny, model, settings):
    plain = fitted(tiny(model, **settings))
    off = {"techniques": ["r_drop"], "r_drop_weight": 0}
    assert all(a.equal(b) for a, b in zip(plain, fitted(tiny(model, **off, **settings))))


def test_before_its_first_epoch_it_changes_nothing(tiny):
    plain = tiny("SASRec", epochs=3).fit(saved=False)
    late = tiny("SASRec", epochs=3, r_drop_start_epoch=2, **GIVEN)
    late.fit(saved=False)
    one, other = plain.train_loss_dict, late.trainer.train_loss_dict
    assert one[0] == other[0] and one[1] == other[1] and one[2] != other[2]
    assert late.trainer.report._line["min/r_drop_divergence"] > 0
    assert late.trainer.report._line["min/loss2"] == pytest.approx(
        0.7 * late.trainer.report._line["min/r_drop_divergence"], rel=1e-5
    )


# --- what it leaves alone -------------------------------------------------------------------------


def test_batchnorm_counts_once_and_gradients_are_those_of_two_passes(tiny):
    settings = {"load_col": None, "mlp_hidden_size": [8], "dropout_prob": 0.2, **GIVEN}
    settings |= {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
    settings |= {"eval_args": {"mode": "full"}, "metrics": ["Recall"], "valid_metric": "Recall@10"}
    run = tiny("NFM", **settings)
    batch = ready(run)
    start = {name: b.clone() for name, b in run.model.named_buffers()}
    loss, plain, technique = wrapped(run)
    technique._try(plain, batch)
    assert all(b.equal(start[name]) for name, b in run.model.named_buffers())
    torch.manual_seed(0)
    total(loss(batch)).backward()
    mine_once = {name: b.clone() for name, b in run.model.named_buffers()}
    gradients = [p.grad.clone() for p in run.model.parameters() if p.grad is not None]
    for name, b in run.model.named_buffers():
        b.copy_(start[name])
    torch.manual_seed(0)
    plain(batch)
    assert all(b.equal(mine_once[name]) for name, b in run.model.named_buffers())
    assert any(not b.equal(start[name]) for name, b in run.model.named_buffers())
    # The second pass without the guard, by two ordinary ones.
    run.model.zero_grad()
    (one, other), seen = two_passes(run, batch, run.model.loss)
    divergence = kl(coin(seen[0][0]), coin(seen[1][0])).mean() / 2
    (one / 2 + other / 2 + 0.7 * divergence).backward()
    again = [p.grad for p in run.model.parameters() if p.grad is not None]
    for a, b in zip(gradients, again):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_the_trial_leaves_random_numbers_as_they_were(tiny):
    run = tiny("SASRec", **GIVEN)
    batch = ready(run)
    _, plain, technique = wrapped(run)
    before = torch.get_rng_state()
    technique._try(plain, batch)
    assert torch.get_rng_state().equal(before)
    assert not run.model.loss_fct._forward_hooks


def test_a_knowledge_graphs_batches_are_left_alone(tiny):
    run = tiny("SASRec", **GIVEN)
    turn = run.trainer._turns()["min"]
    turn.on_triples = True
    (technique,) = turn.techniques
    assert technique.wrap_loss(turn.loss, turn) == turn.loss


# --- refusals -------------------------------------------------------------------------------------


class Apart(NeuMF):
    """Its dropout does not reach the scores."""

    def calculate_loss(self, interaction):
        self.mlp_layers.eval()
        return (
            super().calculate_loss(interaction) + 0 * F.dropout(self.user_mf_embedding.weight).sum()
        )


class DrawsLabels(NeuMF):
    def calculate_loss(self, interaction):
        interaction = interaction.cpu()
        interaction.interaction[self.LABEL] = torch.rand(len(interaction)).round()
        return super().calculate_loss(interaction)


class DrawsRows(NeuMF):
    def calculate_loss(self, interaction):
        n = len(interaction) - int(torch.randint(1, 50, ()))
        return super().calculate_loss(interaction[torch.arange(n)])


class WeighsRows(NeuMF):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.loss = nn.BCEWithLogitsLoss(reduction="none")

    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction).mean()


class Unused(NeuMF):
    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction).detach() + self.user_mf_embedding.weight.sum()


@pytest.mark.parametrize(
    "model, settings, sentence",
    [
        ("BPR", {}, "BPR has no dropout with a rate above 0; leave r_drop out, or choose"),
        ("NeuMF", {"dropout_prob": 0.0}, "NeuMF has no dropout.*; set dropout_prob above 0, or"),
        ("CKE", {}, "CKE has no dropout"),
        ("EIIL", {**EIIL, "backbone": "LightGCN"}, "EIIL has no dropout"),
        ("MultiVAE", {"train_neg_sample_args": None}, "r_drop reads.*MultiVAE has none of BPRLoss"),
        (
            Apart,
            {"dropout_prob": 0.3},
            "no effect on Apart: two passes.*dropout does not reach them",
        ),
        (DrawsLabels, {}, "those of DrawsLabels have different targets, so it draws masks or neg"),
        (DrawsRows, {}, "those of DrawsRows have scores of different shapes, so it draws"),
        (WeighsRows, {}, r"WeighsRows has its BCEWithLogitsLoss return \[\d+\] and weighs that"),
        (Unused, {}, "r_drop has no effect on Unused, whose loss does not use what its loss mod"),
        (
            "NeuMF",
            {"r_drop_form": "separate"},
            "r_drop_form: separate is about the pairs of BPRLoss",
        ),
        ("NeuMF", {"r_drop_form": "pairs"}, "r_drop_form must be one of difference, separate"),
        ("NeuMF", {"r_drop_weight": -1}, "r_drop_weight must be a number >= 0, got -1"),
        (
            "EIIL",
            {**EIIL, "backbone": "NeuMF", "techniques": [], "max_techniques": ["r_drop"]},
            "r_drop is about the recommender's loss and cannot be given to player 'max'",
        ),
    ],
)
def test_what_cannot_work_is_refused(tiny, model, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        tiny(model, **{**GIVEN, **settings}).fit(saved=False)


def test_what_is_refused_at_the_first_batch_is_so_before_its_first_epoch(tiny):
    with pytest.raises(ConfigError, match="no effect on Apart"):
        tiny(Apart, dropout_prob=0.3, r_drop_start_epoch=5, **GIVEN).fit(saved=False)


# --- with others ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["NeuMF", "SASRec"])
@pytest.mark.parametrize("mode", ["shared_graph", "separate_forward"])
def test_in_a_game(tiny, mode, backbone):
    given = {"backbone": backbone, "game_update": mode, "check_gradients": True, **EIIL, **GIVEN}
    run = tiny("EIIL", **given)
    fitted(run)
    plain = tiny("EIIL", **{**given, "techniques": []})
    fitted(plain)
    assert run.trainer.report._line["min/r_drop_divergence"] > 0
    assert not run.model.mass.equal(plain.model.mass)
    assert all(p.isfinite().all() for p in weights(run))
    assert list(run.trainer.techniques["max"]) == []


@pytest.mark.parametrize("order", [["r_drop", "label_smoothing"], ["label_smoothing", "r_drop"]])
def test_with_label_smoothing_in_any_order(tiny, order):
    """The losses are those at smoothed targets, the divergence is untouched."""
    given = {"r_drop_weight": 0.7, "label_smoothing_epsilon": 0.2, "techniques": order}
    run = tiny("SASRec", **given)
    batch = ready(run)
    _, seen = two_passes(run, batch, run.model.loss_fct)
    run.trainer._attach_techniques()
    turn = run.trainer._turns()["min"]
    loss = turn.loss
    for technique in reversed(turn.techniques):
        loss = technique.wrap_loss(loss, turn)
        if type(technique).__name__ == "RDrop":
            technique._tried = True
    torch.manual_seed(0)
    value = total(loss(batch))
    smoothed = [F.cross_entropy(*inputs, label_smoothing=0.2) for inputs in seen]
    divergence = kl(*(score[:, 1:].log_softmax(dim=-1) for score, _ in seen)).mean() / 2
    torch.testing.assert_close(value, sum(smoothed) / 2 + 0.7 * divergence, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision(tiny, dtype):
    """The divergence is taken in float32 of scores that were lowered."""
    given = {"enable_amp": True, "enable_scaler": True, "amp_dtype": dtype, "dropout_prob": 0.3}
    run = tiny("NeuMF", **given, **GIVEN)
    seen = []
    run.model.loss.register_forward_hook(lambda m, args, value: seen.append(args[0].dtype))
    run.fit(saved=False)
    assert set(seen) == {getattr(torch, dtype)}
    plain = tiny("NeuMF", dropout_prob=0.3, **GIVEN)
    plain.fit(saved=False)
    for epoch, losses in plain.trainer.train_loss_dict.items():
        assert run.trainer.train_loss_dict[epoch] == pytest.approx(losses, rel=0.02)
    assert all(p.isfinite().all() for p in weights(run))


def test_with_accumulated_batches_and_sam(tiny):
    techniques = ["sam", "gradient_accumulation", "r_drop"]
    run = tiny("SASRec", techniques=techniques, gradient_accumulation_batches=2, epochs=1)
    fitted(run)
    figures = run.trainer.report._line
    assert figures["min/sam_sharpness"] > 0 and figures["min/r_drop_divergence"] > 0


@pytest.mark.parametrize(
    "model, settings", [("SASRec", {}), ("EIIL", {**EIIL, "backbone": "NeuMF"})]
)
def test_resumes_exactly(tiny, model, settings):
    given = {**settings, **GIVEN, "train_batch_size": 512}
    whole = tiny(model, run_dir="whole", epochs=2, **given)
    whole.fit()
    half = tiny(model, run_dir="half", epochs=1, **given)
    half.fit()
    rest = tiny(model, run_dir="rest", epochs=2, **given)
    rest.trainer.resume_checkpoint(half.trainer.last_file)
    rest.fit()
    assert all(a.equal(b) for a, b in zip(weights(whole), weights(rest)))
