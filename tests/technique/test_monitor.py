"""Figures against numbers worked by hand and against a dense Hessian; training does not notice."""

import json
from pathlib import Path

import pytest
import torch
from recbole.model.general_recommender import BPR
from torch import nn
from torch.func import functional_call

from recbole_adv import Technique, run_recbole_adv
from recbole_adv.errors import ConfigError
from recbole_adv.model_state import random_state, replayed
from recbole_adv.objective.curvature import hessian_product, largest_eigenvalue
from recbole_adv.objective.parts import total
from recbole_adv.technique.parameter_groups import by_pattern, by_submodule
from recbole_adv.technique.sharpness import LossSurface

EIIL = {"backbone": "NeuMF", "dropout_prob": 0.3, "max_start_epoch": 0, "penalty_start": 0}
EIIL |= {"mf_embedding_size": 8, "mlp_embedding_size": 8}
EACH = {"monitor_every": 1, "monitor_sharpness_interval": 1, "monitor_sharpness_batches": 2}
EACH |= {"monitor_sharpness_iterations": 3}
VAE = {"train_neg_sample_args": None, "train_batch_size": 64}


# --- the largest eigenvalue -----------------------------------------------------------------------


def eigenvalue_of(matrix, iterations=2000, tolerance=1e-9):
    """Of a matrix, its vectors in two tensors."""

    def product(vector):
        image = matrix @ torch.cat([vector[0].flatten(), vector[1]])
        return [image[:4].view(2, 2), image[4:]]

    torch.manual_seed(1)
    start = [torch.randn(2, 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    return largest_eigenvalue(product, start, iterations, tolerance)


@pytest.mark.parametrize(
    "diagonal, largest",
    [
        ([5.0, 1, 0, -1, 2, 3, 4], 5.0),
        ([-9.0, 1, 0, -1, 2, 3, 4], 4.0),  # the one of largest absolute value is negative
        ([-9.0, -1, -2, -3, -4, -5, -6], -1.0),
        ([0.0] * 7, 0.0),
    ],
)
def test_largest_eigenvalue_by_hand(diagonal, largest):
    found = eigenvalue_of(torch.diag(torch.tensor(diagonal, dtype=torch.float64)))
    assert found.value == pytest.approx(largest, abs=1e-7) and found.residual < 1e-7


def test_largest_eigenvalue_of_random_matrices():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(7, 7, generator=generator, dtype=torch.float64)
        matrix = matrix + matrix.t()
        assert eigenvalue_of(matrix, 5000).value == pytest.approx(
            torch.linalg.eigvalsh(matrix)[-1].item(), rel=1e-6
        )


def test_too_few_iterations_give_a_lower_bound_and_say_how_far_an_eigenvalue_is():
    matrix = torch.diag(torch.tensor([5.0, 4.9, 4.8, 1, 0, 2, 3], dtype=torch.float64))
    found = eigenvalue_of(matrix, iterations=5)
    assert 3.0 < found.value < 5.0
    assert (matrix.diagonal() - found.value).abs().min() <= found.residual


def test_hessian_product_by_hand():
    """x^3 + x y + z: Hessian ((6 x, 1), (1, 0)); the loss does not bend in z and has no w."""
    x, y, z, w = (torch.tensor(v, requires_grad=True) for v in (2.0, 3.0, 1.0, 1.0))
    vector = [torch.tensor(v) for v in (1.0, 10.0, 100.0, 1000.0)]
    product = hessian_product(x**3 + x * y + z, [x, y, z, w], vector)
    assert [p.item() for p in product] == [22.0, 1.0, 0.0, 0.0]
    assert [p.item() for p in hessian_product(3 * x, [x], [vector[0]])] == [0.0]


# --- of a model -----------------------------------------------------------------------------------


def surface_of(run, n_batches=2):
    """The surface of the first player's loss, in float64, and the names of its weights."""
    batches = [batch for batch, _ in zip(run.train, range(n_batches))]
    run.model.double()
    if hasattr(run.model, "norm_adj_matrix"):
        run.model.norm_adj_matrix = run.model.norm_adj_matrix.double()
    run.model.train()
    weights = dict(run.model.named_parameters())
    return LossSurface(run.model, weights, run.model.calculate_loss, batches), weights


def dense_loss(run, surface, weights):
    """The mean loss as a function of all weights in one vector, by functional_call."""
    state = random_state()
    sizes = [w.numel() for w in weights.values()]

    class CallsLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = run.model

        def forward(self, batch):
            return total(self.model.calculate_loss(batch))

    def loss(vector):
        values = zip(weights.items(), vector.split(sizes))
        named = {f"model.{name}": value.view_as(w) for (name, w), value in values}
        with replayed(run.model, state):
            losses = [functional_call(CallsLoss(), named, (b,)) for b in surface.batches]
        return sum(losses) / len(losses)

    return loss


SMALL = {"embedding_size": 2, "train_batch_size": 40}


@pytest.mark.parametrize(
    "model, settings",
    [
        ("BPR", {}),
        ("NeuMF", {"mf_embedding_size": 2, "mlp_embedding_size": 2, "dropout_prob": 0.3}),
        ("LightGCN", {"n_layers": 1}),
    ],
)
def test_sharpness_and_rises_equal_a_dense_hessian_and_a_functional_loss(model, settings, tiny):
    run = tiny(model, **{**SMALL, **settings, "mlp_hidden_size": [3]})
    torch.manual_seed(0)
    with torch.no_grad():  # away from the start, where nothing bends
        for weight in run.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    surface, weights = surface_of(run)
    loss = dense_loss(run, surface, weights)
    vector = torch.cat([w.detach().flatten() for w in weights.values()])
    hessian = torch.autograd.functional.hessian(loss, vector)
    found = surface.sharpness(iterations=300, tolerance=1e-3)
    largest = torch.linalg.eigvalsh(hessian)[-1].item()
    assert 0.99 * largest < found["sharpness"] < (1 + 1e-9) * largest
    assert largest - found["sharpness"] <= found["sharpness_residual"] < 0.02 * largest
    (gradient,) = torch.autograd.grad(loss(vector.requires_grad_()), vector)
    uphill = gradient / gradient.norm()
    rises = surface.rises([0.05, 0.5])
    for radius in (0.05, 0.5):
        rise = (loss(vector + radius * uphill) - loss(vector)).item()
        assert rise > 0 and rises[f"rise_{radius}"] == pytest.approx(rise, rel=1e-6)


def test_a_surface_leaves_no_trace(tiny):
    run = tiny("NeuMF", dropout_prob=0.3)
    batches = [batch for batch, _ in zip(run.train, range(2))]
    weights = dict(run.model.named_parameters())
    surface = LossSurface(run.model, weights, run.model.calculate_loss, batches)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    state = random_state()
    assert surface.value() == surface.value()  # the same dropout masks
    surface.rises([0.1]), surface.sharpness(3, 0.1)
    assert all(torch.equal(before[name], weight) for name, weight in weights.items())
    assert all(weight.grad is None for weight in weights.values())
    now = random_state()
    assert torch.equal(now["torch"], state["torch"]) and now["python"] == state["python"]
    assert (now["numpy"][1] == state["numpy"][1]).all() and now["numpy"][2] == state["numpy"][2]


# --- norms ----------------------------------------------------------------------------------------


class Note(Technique):
    """What the monitor sees, noted by other means."""

    def __init__(self):
        self.gradients, self.updates, self.ratios, self.losses = [], [], [], []

    def attach(self, trainer, player):
        self.weight = trainer.model.item_embedding.weight

    def edit_gradients(self, turn):
        self.gradients.append(self.weight.grad.pow(2).sum().sqrt().item())
        self.before = self.weight.detach().clone()

    def after_step(self, turn, outcome):
        update = (self.weight.detach() - self.before).pow(2).sum().sqrt().item()
        self.updates.append(update)
        self.ratios.append(update / self.before.pow(2).sum().sqrt().item())
        self.losses.append(outcome.parts[0].item())


@pytest.mark.parametrize("every", [1, 3])
def test_norms_are_those_of_every_nth_step(every, tiny):
    run = tiny("BPR", techniques=["monitor", Note], monitor_every=every, epochs=1, eval_step=0)
    run.fit(saved=False)
    note = run.trainer.techniques["min"]["note"]
    line = run.trainer.report._line
    expected = {
        "gradient_norm/item_embedding": note.gradients,
        "update_norm/item_embedding": note.updates,
        "update_ratio/item_embedding": note.ratios,
        "loss": note.losses,
    }
    for name, values in expected.items():
        sampled = values[::every]
        assert line[f"min/monitor_{name}"] == pytest.approx(sum(sampled) / len(sampled), rel=1e-5)
    assert line["min/monitor_nonfinite"] == 0


def test_its_place_in_the_list_decides_whose_gradients_it_sees(tiny):
    seen = {}
    for techniques in (["monitor", "clip_norm"], ["clip_norm", "monitor"]):
        run = tiny("BPR", techniques=techniques, clip_norm_max_norm=1e-4, epochs=1, eval_step=0,
                   monitor_groups=["weight"], monitor_every=1)  # fmt: skip
        run.fit(saved=False)
        seen[techniques[0]] = run.trainer.report._line["min/monitor_gradient_norm/weight"]
    assert seen["clip_norm"] == pytest.approx(1e-4, rel=0.02) and seen["monitor"] > 1e-2


class Spoil(Technique):
    """The gradient of the second step is nan."""

    def edit_gradients(self, turn):
        if turn.steps == 1 and turn.scaler.get_scale() == 65536.0:
            turn.parameters[0].grad[0] = float("nan")


def test_gradients_that_are_no_numbers_are_counted(tiny):
    # A scaler leaves out the step, so training goes on.
    amp = {"enable_amp": True, "enable_scaler": True, "amp_dtype": "bfloat16"}
    run = tiny("BPR", techniques=[Spoil, "monitor"], epochs=1, eval_step=0, monitor_every=1, **amp)
    run.fit(saved=False)
    assert run.trainer.report._line["min/monitor_nonfinite"] == pytest.approx(1 / len(run.train))


def test_parts_of_a_loss_are_apart(tiny):
    run = tiny("CKE", techniques=["monitor"], epochs=1, eval_step=0, monitor_every=1)
    run.fit(saved=False)
    line = run.trainer.report._line
    for part in ("loss1", "loss2"):
        assert line[f"min/monitor_{part}"] == pytest.approx(line[f"min/{part}"], rel=1e-5)


class Nested(nn.Module):
    """Layers with a table among them, a table by itself, and a bare parameter."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
        self.item_embedding = nn.Embedding(3, 2)
        self.scale = nn.Parameter(torch.ones(1))


def test_groups_by_submodule_and_by_pattern(tiny):
    model = Nested()
    names = dict(model.named_parameters())
    assert by_submodule(model, names) == {
        "encoder.tables": ["encoder.0.weight"],
        "encoder": ["encoder.1.weight", "encoder.1.bias"],
        "item_embedding": ["item_embedding.weight"],
        "scale": ["scale"],
    }
    assert by_pattern(names, ["^encoder", "bias", "nothing"]) == {
        "^encoder": ["encoder.0.weight", "encoder.1.weight", "encoder.1.bias"],
        "rest": ["scale", "item_embedding.weight"],
    }
    run = tiny("EIIL", techniques=["monitor"])
    run.trainer._before_fit(run.train)
    groups = {player: run.trainer.techniques[player]["monitor"].groups for player in ("min", "max")}
    assert list(groups["min"]) == ["user_embedding", "item_embedding"]  # of the backbone
    assert list(groups["max"]) == ["env_generator"]


# --- it changes nothing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, settings",
    [
        ("BPR", {}),
        ("SASRec", {}),  # dropout
        ("SGL", {}),  # drops edges by numpy's numbers
        ("CKE", {}),  # two loaders
        ("MultiVAE", VAE),  # counts forward passes
        ("RecVAE", VAE),  # two optimizers
        ("EIIL", {**EIIL, "game_update": "shared_graph"}),
        ("EIIL", {**EIIL, "game_update": "separate_forward"}),
    ],
)
def test_training_does_not_notice(model, settings, tiny):
    runs = []
    for techniques in ([], ["monitor"]):
        run = tiny(model, techniques=techniques, eval_step=1, **{**EACH, **settings})
        run.fit(saved=False)
        runs.append(run)
    plain, monitored = runs
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, monitored.model.state_dict()[name]), name
    assert plain.trainer.train_loss_dict == monitored.trainer.train_loss_dict
    assert plain.trainer.best_valid_result == monitored.trainer.best_valid_result
    line = monitored.trainer.report._line
    assert line["min/monitor_rise_0.1"] > 0 and line["min/monitor_sharpness"] > 0


def test_in_a_game_each_player_has_its_own(tiny):
    run = tiny("EIIL", techniques=["monitor"], **{**EACH, **EIIL}, epochs=2, eval_step=0)
    run.fit(saved=False)
    line = run.trainer.report._line
    assert line["max/monitor_loss"] == pytest.approx(-line["max/objective"], rel=1e-4)
    assert line["max/monitor_rise_0.1"] > 0
    assert {"min/monitor_loss1", "min/monitor_loss2"} <= set(line)


def test_sharpness_comes_in_the_epochs_asked_for(settings_of):
    given = {"techniques": ["monitor"], "monitor_sharpness_interval": 2, "epochs": 5}
    given |= {"monitor_sharpness_iterations": 2, "monitor_sharpness_radii": []}
    done = run_recbole_adv("BPR", "checkerboard", config_dict=settings_of("BPR", **given))
    lines = map(json.loads, Path(done["run_dir"], "metrics.jsonl").read_text().splitlines())
    assert [line["epoch"] for line in lines if "min/monitor_sharpness" in line] == [1, 3]


class DistanceBPR(BPR):
    """torch has no second derivative of this distance."""

    def calculate_loss(self, interaction):
        tables = self.user_embedding.weight[:3], self.item_embedding.weight[:3]
        return super().calculate_loss(interaction) + torch.cdist(*tables, p=1).mean()


def test_a_loss_without_second_derivative_is_reported_once(tiny, caplog):
    run = tiny(DistanceBPR, techniques=["monitor"], **EACH, epochs=3, eval_step=0)
    with caplog.at_level("WARNING"):
        run.fit(saved=False)
    said = [r.getMessage() for r in caplog.records if "monitor" in r.getMessage()]
    assert len(said) == 1 and "cannot be differentiated twice" in said[0]
    assert "min/monitor_sharpness" not in run.trainer.report._line


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"monitor_groups": ["(a"]}, "must hold regular expressions, got '\\(a'"),
        ({"monitor_groups": [3]}, "must hold regular expressions, got 3"),
        ({"monitor_sharpness_radii": [0.1, -1]}, "must hold numbers > 0"),
        ({"monitor_every": 0}, "monitor_every must be a whole number >= 1, got 0"),
    ],
)
def test_mistakes(keys, words, tiny):
    with pytest.raises(ConfigError, match=words):
        tiny("BPR", techniques=["monitor"], **keys)
