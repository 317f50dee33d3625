"""SAM and ASAM: the published step by an independent computation; what they must leave alone."""

import math

import pytest
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.general_recommender import BPR, MultiVAE
from recbole.utils import InputType
from torch import nn

from recbole_adv import Technique
from recbole_adv.errors import ConfigError, TrainingError
from recbole_adv.technique.weight_ascent import moved, touched

ONE_STEP = {"epochs": 1, "train_batch_size": 10**6, "eval_step": 0}
SGD = {"learner": "sgd", "learning_rate": 1.0}
NO_NEGATIVES = {"train_neg_sample_args": None}
EIIL = {"max_start_epoch": 0, "penalty_start": 0, "max_interval": 1, "n_environments": 2}


class Toy(GeneralRecommender):
    """Half the squared length of two parameters, times a factor of the batch; notes what it saw."""

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.table = nn.Embedding.from_pretrained(torch.tensor([[3.0]]), freeze=False)
        self.bias = nn.Parameter(torch.tensor([4.0]))
        self.seen, self.fail_at = [], None

    def half(self):
        return (self.table.weight.square().sum() + self.bias.square().sum()) / 2

    def calculate_loss(self, interaction):
        self.seen.append((self.table.weight.item(), self.bias.item()))
        if len(self.seen) == self.fail_at:
            raise ZeroDivisionError("the loss fails")
        return self.half()


def weights(run):
    return [p.detach().clone() for p in run.model.parameters()]


def fitted(run):
    run.fit(saved=False)
    return weights(run)


# --- the step, by hand ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "techniques, settings, there",
    [
        # g = (3, 4), ||g|| = 5, e = 0.5 g / 5
        ("sam", {"sam_rho": 0.5}, (3.3, 4.4)),
        ("sam", {"sam_rho": 0.5, "sam_scope": "embeddings"}, (3.5, 4.0)),
        ("sam", {"sam_rho": 0.5, "sam_scope": "dense"}, (3.0, 4.5)),
        ("sam", {"sam_rho": 0.5, "sam_per_parameter": True}, (3.5, 4.5)),
        # T g = (9, 16), e = 0.5 T^2 g / ||T g|| = 0.5 (27, 64) / sqrt(337)
        (
            "asam",
            {"asam_rho": 0.5, "asam_eta": 0.0},
            (3 + 13.5 / math.sqrt(337), 4 + 32 / math.sqrt(337)),
        ),
        # T = (4, 5): T g = (12, 20), e = 0.5 (48, 100) / sqrt(544)
        (
            "asam",
            {"asam_rho": 0.5, "asam_eta": 1.0},
            (3 + 24 / math.sqrt(544), 4 + 50 / math.sqrt(544)),
        ),
    ],
)
def test_the_gradient_is_that_of_the_second_point_alone(tiny, techniques, settings, there):
    """The gradient of half a square is the point itself, so SGD at rate 1 takes w to w - (w + e)."""
    run = tiny(Toy, techniques=[techniques], **settings, **SGD, **ONE_STEP)
    run.fit(saved=False)
    assert run.model.seen[0] == (3.0, 4.0)
    assert run.model.seen[1] == pytest.approx(there, rel=1e-6)
    after = run.model.table.weight.item(), run.model.bias.item()
    assert after == pytest.approx((3 - there[0], 4 - there[1]), abs=1e-6)
    figures = run.trainer.report._line
    moved_by = math.dist((3, 4), there)
    rise = (there[0] ** 2 + there[1] ** 2) / 2 - 12.5
    assert figures[f"min/{techniques}_perturbation_norm"] == pytest.approx(moved_by, rel=1e-5)
    assert figures[f"min/{techniques}_sharpness"] == pytest.approx(rise, rel=1e-5)
    assert figures[f"min/{techniques}_skipped"] == 0
    assert figures["min/loss"] == 12.5  # at the weights themselves


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("model", ["BPR", "LightGCN"])
def test_step_of_the_reference_code(tiny, model, adaptive):
    """One step by the formulas of davda54/sam, computed here with torch.autograd.grad."""
    name, rho = ("asam", 0.5) if adaptive else ("sam", 0.05)
    given = {f"{name}_rho": rho, **({"asam_eta": 0.0} if adaptive else {})}
    run = tiny(model, techniques=[name], **given, **SGD, **ONE_STEP)
    batch = run.batch()
    run.model.train()
    start = weights(run)
    parameters = list(run.model.parameters())

    def gradients():
        return torch.autograd.grad(run.model.calculate_loss(batch), parameters)

    g = gradients()
    norm = sum(((p.abs() if adaptive else 1) * d).square().sum() for p, d in zip(start, g)).sqrt()
    moves = [(p**2 if adaptive else 1) * d * rho / (norm + 1e-12) for p, d in zip(start, g)]
    with torch.no_grad():
        for p, e in zip(parameters, moves):
            p.add_(e)
    expected = [p - d for p, d in zip(start, gradients())]
    with torch.no_grad():
        for p, old in zip(parameters, start):
            p.copy_(old)
    run.trainer.loop.engine.run(run.trainer._turns()["min"], batch)
    for mine, other, old in zip(parameters, expected, start):
        torch.testing.assert_close(mine.detach(), other, rtol=1e-6, atol=1e-8)
        assert not mine.equal(old)


# --- rho 0, epochs, intervals ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, settings",
    [
        ("BPR", {}),
        ("SASRec", {}),
        ("RecVAE", NO_NEGATIVES),
        ("EIIL", {**EIIL, "backbone": "NeuMF", "dropout_prob": 0.3}),
    ],
)
def test_rho_0_is_plain_training(tiny, model, settings):
    plain = fitted(tiny(model, **settings))
    off = {"sam_rho": 0, "asam_rho": 0, "awp_gamma": 0}
    mine = fitted(tiny(model, techniques=["sam", "asam", "awp"], **off, **settings))
    assert all(a.equal(b) for a, b in zip(plain, mine))


@pytest.mark.parametrize(
    "settings, twice",
    [
        ({"sam_start_epoch": 2}, [0, 0, 1, 1]),
        ({"sam_stop_epoch": 1}, [1, 0, 0, 0]),
        ({"sam_start_epoch": 1, "sam_stop_epoch": 3}, [0, 1, 1, 0]),
        ({"sam_interval": 2}, [1, 0, 1, 0]),
    ],
)
def test_when_there_are_two_passes(tiny, settings, twice):
    run = tiny(Toy, techniques=["sam"], **settings, **{**ONE_STEP, "epochs": 4})
    run.fit(saved=False)
    at_the_weights = [index for index, p in enumerate(run.model.seen) if _is_first(run, index)]
    passes = [b - a for a, b in zip(at_the_weights, [*at_the_weights[1:], len(run.model.seen)])]
    assert passes == [1 + n for n in twice]


def _is_first(run, index):
    """The weights fall in each step; a second pass is made at larger ones than the first."""
    return index == 0 or run.model.seen[index] < run.model.seen[index - 1]


# --- what is left alone ---------------------------------------------------------------------------


def test_weights_come_back_to_the_last_bit(tiny):
    run = tiny("BPR")
    torch.manual_seed(0)
    for p in run.model.parameters():
        p.grad = torch.randn_like(p)
    start = weights(run)
    places = [touched(p) for p in run.model.parameters()]
    moves = [torch.randn_like(p) for p in run.model.parameters()]
    inexact = [(p + e - e).equal(p) for p, e in zip(start, moves)]
    assert not all(inexact)  # subtracting would not do
    with pytest.raises(ZeroDivisionError), moved(places, moves):
        assert all((p - e).abs().max() < 10 for p, e in zip(run.model.parameters(), moves))
        assert not any(p.equal(old) for p, old in zip(run.model.parameters(), start))
        raise ZeroDivisionError
    assert all(p.equal(old) for p, old in zip(run.model.parameters(), start))


@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_loss_that_raises_leaves_no_trace(tiny, fail_at):
    run = tiny(Toy, techniques=["sam"], sam_rho=0.3, **ONE_STEP)
    run.model.fail_at = fail_at
    batch = run.batch()
    turn = run.trainer._turns()["min"]
    turn.waiting = 1  # the gradient of an earlier batch
    run.model.bias.grad = torch.tensor([7.0])
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError, match="the loss fails"):
        run.trainer.loop.engine.run(turn, batch)
    assert (run.model.table.weight.item(), run.model.bias.item()) == (3.0, 4.0)
    assert run.model.bias.grad.item() == 7.0
    assert torch.get_rng_state().equal(before)
    assert run.trainer.optimizer.state == {}


def test_the_ascent_does_not_count_as_a_step(tiny):
    run = tiny("BPR", techniques=["sam"], learner="adam", **ONE_STEP)
    run.fit(saved=False)
    assert {int(state["step"]) for state in run.trainer.optimizer.state.values()} == {1}
    assert run.trainer.loop.steps_taken["min"] == 1


def test_both_passes_see_the_same_masks_and_the_stream_goes_on_once(tiny):
    states, masks = [], []
    for techniques in ([], ["sam"]):
        run = tiny("SASRec", techniques=techniques, **ONE_STEP)
        batch = run.batch()
        run.model.train()
        torch.manual_seed(5)
        layers = [m for m in run.model.modules() if isinstance(m, nn.Dropout)]
        for layer in layers:
            layer.register_forward_hook(lambda m, x, out: masks.append((x[0] != 0, out != 0)))
        run.trainer.loop.engine.run(run.trainer._turns()["min"], batch)
        states.append(torch.get_rng_state())
    assert states[0].equal(states[1])
    n = len(masks) // 3
    plain, first, second = masks[:n], masks[n : 2 * n], masks[2 * n :]
    for (alive, kept), again, (alive_there, kept_there) in zip(plain, first, second):
        assert kept.equal(again[1]) and not kept.equal(alive)
        both = alive & alive_there  # what is 0 before the dropout does not show its mask
        assert kept[both].equal(kept_there[both]) and both.float().mean() > 0.2


def test_batchnorm_counts_once(tiny):
    settings = {"load_col": None, "mlp_hidden_size": [8], "dropout_prob": 0.2}
    settings |= {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
    settings |= {"eval_args": {"mode": "full"}, "metrics": ["Recall"], "valid_metric": "Recall@10"}
    buffers = []
    for techniques in ([], ["sam"]):
        run = tiny("NFM", techniques=techniques, **settings, **ONE_STEP)
        run.fit(saved=False)
        buffers.append(dict(run.model.named_buffers()))
    tracked = [b for name, b in buffers[1].items() if "num_batches_tracked" in name]
    assert tracked and all(count == 1 for count in tracked)
    assert all(value.equal(buffers[0][name]) for name, value in buffers[1].items())


class Annealed(MultiVAE):
    """Notes at which count of its own a loss was taken."""

    def calculate_loss(self, interaction):
        self.__dict__.setdefault("counts", []).append(self.update)
        return super().calculate_loss(interaction)


def test_the_annealing_counter_of_multivae_advances_once(tiny):
    run = tiny(
        Annealed, techniques=["sam"], train_batch_size=16, eval_step=0, epochs=1, **NO_NEGATIVES
    )
    run.fit(saved=False)
    steps = run.trainer.loop.steps_taken["min"]
    assert run.model.update == steps > 2
    assert run.model.counts == [n for n in range(steps) for _ in range(2)]


class Steep(Toy):
    """The gradient of a square root at 0 is inf, and 0 where the bias would be squared."""

    def half(self):
        return (
            (self.bias - self.bias.detach()).sqrt().sum() if self.infinite else 0 * self.bias.sum()
        )


@pytest.mark.parametrize("infinite", [False, True])
def test_without_a_direction_the_clean_gradient_is_left(tiny, infinite):
    run = tiny(Steep, techniques=["sam"], **SGD, **ONE_STEP)
    run.model.infinite = infinite
    batch = run.batch()
    turn = run.trainer._turns()["min"]
    run.trainer.loop.engine.gradients.of(turn, batch)
    assert run.model.bias.grad.item() == (math.inf if infinite else 0)
    assert run.model.seen == [(3.0, 4.0), (3.0, 4.0)]
    assert run.trainer.techniques["min"]["sam"].figures()["skipped"] == 1


def test_a_loss_that_is_no_number_uphill_stops_with_the_weights_where_they_were(tiny):
    class Cliff(Toy):
        def half(self):
            return self.bias.sum() if self.bias.item() <= 4 else self.bias.sum() * math.nan

    run = tiny(Cliff, techniques=["sam"], **ONE_STEP)
    with pytest.raises(TrainingError, match="the loss of player 'min' is nan"):
        run.fit(saved=False)
    assert run.model.bias.item() == 4.0


# --- sparse gradients, mixed precision, accumulation, a game --------------------------------------


class SparseBPR(BPR):
    """BPR whose tables have sparse gradients."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.user_embedding.sparse = self.item_embedding.sparse = True


@pytest.mark.parametrize(
    "name, given",
    [("sam", {}), ("sam", {"sam_per_parameter": True}), ("asam", {}), ("awp", {"awp_gamma": 0.1})],
)
def test_sparse_gradients_give_what_dense_ones_give(tiny, name, given):
    settings = {"techniques": [name], **given, "learner": "sgd", "learning_rate": 0.5, "epochs": 2}
    dense, sparse = fitted(tiny(BPR, **settings)), fitted(tiny(SparseBPR, **settings))
    plain = fitted(tiny(BPR, **{**settings, "techniques": []}))
    for mine, other, without in zip(sparse, dense, plain):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)
        assert (mine - without).abs().max() > 1e-5


def test_a_scaler_changes_nothing(tiny):
    """The gradient's direction has no scale; BPR has no product that autocast would lower."""
    given = {"learner": "sgd", "learning_rate": 0.5, "epochs": 2, "sam_rho": 0.1}
    plain = fitted(tiny("BPR", techniques=["sam"], **given))
    scaled = tiny("BPR", techniques=["sam"], enable_amp=True, enable_scaler=True, **given)
    for mine, other in zip(fitted(scaled), plain):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    figures = scaled.trainer.report._line
    assert figures["min/sam_perturbation_norm"] == pytest.approx(0.1, rel=1e-5)


def test_an_overflow_is_skipped_by_technique_and_scaler(tiny):
    class Loud(Toy):
        def half(self):
            return 3e37 * self.bias.sum()

    run = tiny(Loud, techniques=["sam"], enable_amp=True, enable_scaler=True, **ONE_STEP)
    run.fit(saved=False)
    assert run.model.bias.item() == 4.0 and run.model.seen == [(3.0, 4.0)] * 2
    assert run.trainer.scalers["min"].get_scale() == 32768
    assert run.trainer.report._line["min/sam_skipped"] == 1


class Numbered(Toy):
    """The k-th batch has the loss k (bias^2 / 2) + table: another direction each time."""

    def calculate_loss(self, interaction):
        self.k = interaction["k"]
        self.seen.append((self.table.weight.item(), self.bias.item()))
        return self.k * self.bias.square().sum() / 2 + self.table.weight.sum()


class Thrice(Technique):
    """Takes the gradient three times, in different weights."""

    def wrap_backward(self, backward, turn):
        def thrice(batch, weight=1.0):
            backward(batch, weight)
            backward(batch, 0.5 * weight)
            return backward(batch, 1.5 * weight)

        return thrice


def test_an_outer_technique_gets_as_many_gradients_as_it_asks_for(tiny):
    """Each at (3.3, 4.4), whatever waits in ``.grad``: w - (1 + 0.5 + 1.5) (w + e)."""
    run = tiny(Toy, techniques=[Thrice, "sam"], sam_rho=0.5, **SGD, **ONE_STEP)
    run.fit(saved=False)
    assert run.model.seen[1::2] == [pytest.approx((3.3, 4.4))] * 3
    after = run.model.table.weight.item(), run.model.bias.item()
    assert after == pytest.approx((3 - 9.9, 4 - 13.2), rel=1e-6)


def test_accumulated_batches_have_a_perturbation_each(tiny):
    """k = 1: g = (1, 4); k = 2: g = (1, 8). The gradient at w + e is (1, k (4 + e_bias))."""
    techniques = ["gradient_accumulation", "sam"]
    given = {"gradient_accumulation_batches": 2, "sam_rho": 0.5, "techniques": techniques}
    run = tiny(Numbered, **given, **SGD, **ONE_STEP)
    run.batch()
    engine, turn = run.trainer.loop.engine, run.trainer._turns()["min"]
    for k in (1.0, 2.0):
        engine.run(turn, {"k": k})
    there = [4 + 0.5 * 4 / math.sqrt(17), 4 + 0.5 * 8 / math.sqrt(65)]
    assert [bias for _, bias in run.model.seen] == pytest.approx([4, there[0], 4, there[1]])
    assert turn.steps == 1 and turn.waiting == 0
    assert run.model.table.weight.item() == pytest.approx(3 - 1)
    assert run.model.bias.item() == pytest.approx(4 - (there[0] + 2 * there[1]) / 2, abs=1e-6)


@pytest.mark.parametrize("mode", ["shared_graph", "separate_forward"])
@pytest.mark.parametrize("backbone", ["BPR", "NeuMF"])
def test_in_a_game_only_the_recommender_is_moved(tiny, mode, backbone):
    given = {"backbone": backbone, "game_update": mode, "sam_rho": 0.1, "check_gradients": True}
    run = tiny("EIIL", techniques=["sam"], **given, **EIIL)
    seen = {"backbone": set(), "env_generator": set()}
    calculate = run.model.rows

    def noted(interaction):
        for name, found in seen.items():
            module = getattr(run.model, name)
            found.add(sum(p.detach().double().sum().item() for p in module.parameters()))
        return calculate(interaction)

    run.model.rows = noted
    run.fit(saved=False)
    steps = run.trainer.loop.steps_taken
    assert steps["min"] == steps["max"] > 2
    # Each step's weights, and those uphill; apart, max sees those after the last step.
    assert len(seen["backbone"]) == 2 * steps["min"] + (mode == "separate_forward")
    assert len(seen["env_generator"]) == steps["max"]
    assert run.trainer.report._line["min/sam_sharpness"] > 0
    assert list(run.trainer.techniques["max"]) == []


@pytest.mark.parametrize(
    "model, name, settings",
    [
        ("BPR", "sam", {}),
        ("LightGCN", "sam", {}),
        ("SASRec", "asam", {}),
        ("NeuMF", "awp", {}),
        ("DeepFM", "asam", {}),
        ("CKE", "sam", {}),
        ("CKE", "awp", {}),
        ("RecVAE", "sam", NO_NEGATIVES),
        ("MultiVAE", "awp", NO_NEGATIVES),
    ],
)
def test_models(tiny, model, name, settings):
    settings = {**settings, "eval_step": 0, "epochs": 1}
    plain = fitted(tiny(model, **settings))
    run = tiny(model, techniques=[name], **settings)
    mine = fitted(run)
    assert all(p.isfinite().all() for p in mine)
    assert any(not a.equal(b) for a, b in zip(plain, mine))
    figures = {k.split("_", 1)[1]: v for k, v in run.trainer.report._line.items() if name in k}
    # Small steps along the gradient on the same random numbers raise the loss.
    assert figures["sharpness"] > 0 and figures["skipped"] == 0
    if name == "sam":
        assert figures["perturbation_norm"] == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("model", ["SASRec", "CKE"])
def test_resumes_exactly(tiny, model):
    given = {
        "techniques": ["sam"],
        "sam_interval": 2,
        "sam_start_epoch": 1,
        "train_batch_size": 100,
    }
    whole = tiny(model, run_dir="whole", epochs=2, **given)
    whole.fit()
    half = tiny(model, run_dir="half", epochs=1, **given)
    half.fit()
    rest = tiny(model, run_dir="rest", epochs=2, **given)
    rest.trainer.resume_checkpoint(half.trainer.last_file)
    rest.fit()
    assert all(a.equal(b) for a, b in zip(weights(whole), weights(rest)))
    assert whole.trainer.best_valid_result == rest.trainer.best_valid_result


@pytest.mark.parametrize(
    "model, settings, sentence",
    [
        ("BPR", {"sam_scope": "dense"}, "sam has nothing to act on in BPR.*write sam_scope: all"),
        (
            "MultiVAE",
            {"sam_scope": "embeddings", **NO_NEGATIVES},
            "sam has nothing to act on in MultiVAE.*write sam_scope: all",
        ),
        (
            "BPR",
            {"sam_start_epoch": 3, "sam_stop_epoch": 3},
            "sam_stop_epoch must be above sam_sta",
        ),
        ("BPR", {"sam_rho": -1}, "sam_rho must be a number >= 0, got -1"),
        ("BPR", {"sam_scope": "tables"}, "sam_scope must be one of all, embeddings, dense"),
    ],
)
def test_what_cannot_work_is_refused(tiny, model, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        tiny(model, techniques=["sam"], **settings).fit(saved=False)
