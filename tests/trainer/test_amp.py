"""Mixed precision on the CPU: autocast, and one GradScaler for each player."""

import pytest
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.general_recommender import BPR
from recbole.utils import InputType
from torch import nn

from recbole_adv import checkpoint

MODES = ["shared_graph", "separate_forward"]
AMP = {"enable_amp": True}
SCALED = {"enable_amp": True, "enable_scaler": True}
# NeuMF's layers and the generator's are matrix products, which autocast lowers; BPR has none.
EIIL = {
    "backbone": "NeuMF",
    "mf_embedding_size": 8,
    "mlp_embedding_size": 8,
    "dropout_prob": 0.0,
    "max_start_epoch": 0,
    "penalty_start": 0,
    "max_interval": 2,
    "train_batch_size": 512,
    "eval_step": 0,
    "epochs": 2,
}


def dtypes_of(module):
    """The dtypes of the outputs of the linear layers of a module, noted in training passes.

    Not in the look at a generator before training, which is without gradients.
    """
    seen = set()

    def note(layer, args, output):
        if torch.is_grad_enabled():
            seen.add(output.dtype)

    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(note)
    return seen


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_trains_eiil(mode, tiny):
    plain = tiny("EIIL", game_update=mode, **EIIL)
    plain.fit(saved=False)
    low = tiny("EIIL", game_update=mode, **EIIL, **AMP)
    start = {name: weight.clone() for name, weight in low.model.named_parameters()}
    seen = {name: dtypes_of(getattr(low.model, name)) for name in ("backbone", "env_generator")}
    low.fit(saved=False)
    assert seen == {"backbone": {torch.bfloat16}, "env_generator": {torch.bfloat16}}
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    assert low.trainer.scalers == {}
    for epoch, loss in plain.trainer.train_loss_dict.items():
        # bfloat16 has 8 bits, 0.4 %; the errors of single rows average out.
        assert low.trainer.train_loss_dict[epoch] == pytest.approx(loss, rel=0.01)
        assert low.trainer.train_loss_dict[epoch] != loss
    moved = {name for name, w in low.model.named_parameters() if not w.equal(start[name])}
    assert {name.partition(".")[0] for name in moved} == {"backbone", "env_generator"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scalers_of_both_players_are_kept_in_the_checkpoint(dtype, tiny):
    run = tiny("EIIL", **EIIL, **SCALED, amp_dtype=dtype)
    seen = dtypes_of(run.model.backbone)
    assert set(run.trainer.scalers) == {"min", "max"}
    # So that the two differ from each other and from a new one, and float16 does not overflow.
    run.trainer.scalers = {
        name: torch.amp.GradScaler("cpu", init_scale=scale)
        for name, scale in {"min": 1024.0, "max": 512.0}.items()
    }
    run.fit()
    assert seen == {getattr(torch, dtype)}
    taken = run.trainer.loop.steps_taken
    assert taken["min"] == 2 * len(run.train) and taken["max"] == len(run.train)
    saved = checkpoint.load(run.trainer.saved_model_file)["recbole_adv"]["scalers"]
    assert {name: (s["scale"], s["_growth_tracker"]) for name, s in saved.items()} == {
        "min": (1024.0, taken["min"]),
        "max": (512.0, taken["max"]),
    }
    other = tiny("EIIL", **EIIL, **SCALED, amp_dtype=dtype)
    other.trainer.resume_checkpoint(run.trainer.saved_model_file)
    assert other.trainer.scalers["max"].get_scale() == 512.0
    assert other.trainer.scalers["min"].get_scale() == 1024.0
    assert other.trainer.scalers["max"].state_dict() == run.trainer.scalers["max"].state_dict()
    assert other.trainer.scalers["min"].state_dict() == run.trainer.scalers["min"].state_dict()


def test_no_scaler_unless_asked_for(tiny):
    assert tiny("BPR", **AMP).trainer.scalers == {}
    assert tiny("BPR", enable_scaler=True).trainer.scalers == {}
    assert set(tiny("BPR", **SCALED).trainer.scalers) == {"min"}


class Loud(BPR):
    """A loss so large that its gradient is clipped."""

    def calculate_loss(self, interaction):
        return 1000 * super().calculate_loss(interaction)


def update_of(run):
    """The change of all weights by one step."""
    weights = list(run.model.parameters())
    start = [weight.detach().clone() for weight in weights]
    run.fit(saved=False)
    return torch.cat([(w.detach() - s).flatten() for w, s in zip(weights, start)])


def test_clipping_sees_true_gradients_unless_recboles_order_is_asked_for(tiny):
    one_step = {
        "epochs": 1,
        "train_batch_size": 10**6,
        "eval_step": 0,
        "learner": "sgd",
        "learning_rate": 0.5,
        "clip_grad_norm": {"max_norm": 1},
    }
    plain = update_of(tiny(Loud, **one_step))
    assert plain.norm().item() == pytest.approx(0.5, rel=1e-4)  # learning rate x max_norm
    # BPR has no product that autocast lowers, so only the scaler makes a difference.
    scaled = update_of(tiny(Loud, **one_step, **SCALED))
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-7)
    stock = update_of(tiny(Loud, **one_step, **SCALED, clip_before_unscale=True))
    assert stock.norm().item() == pytest.approx(0.5 / 65536, rel=1e-2)


class Point(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))


class Overflow(GeneralRecommender):
    """The max objective is finite, but 65536 times its gradient is not, in the second batch."""

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.body, self.env_generator = Point(2.0), Point(-1.5)
        self.batches = 0

    def calculate_loss(self, interaction):
        return self.body.value**2

    def calculate_max_objective(self, interaction):
        self.batches += 1
        return self.env_generator.value * (3e37 if self.batches == 2 else 1.0)

    def calculate_joint(self, interaction):
        return self.calculate_loss(interaction), self.calculate_max_objective(interaction)


@pytest.mark.parametrize("mode", MODES)
def test_an_infinite_gradient_skips_the_step_and_halves_that_players_scale(mode, tiny):
    sgd = {"learner": "sgd", "learning_rate": 0.125, "epochs": 1, "eval_step": 0}
    run = tiny(
        Overflow, game_update=mode, train_batch_size=300, monitor_interval=0, **sgd, **SCALED
    )
    n = len(run.train)
    assert n >= 3
    run.fit(saved=False)
    x, y = run.model.body.value.item(), run.model.env_generator.value.item()
    assert x == pytest.approx(2.0 * 0.75**n)
    assert y == pytest.approx(-1.5 + 0.125 * (n - 1))  # every batch but the second
    assert run.trainer.scalers["min"].get_scale() == 65536
    assert run.trainer.scalers["max"].get_scale() == 32768


class TwoModules(GeneralRecommender):
    """Part of the max player has no gradient in every other batch; it takes every third one."""

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.body = Point(2.0)
        self.env_generator = nn.ModuleList([Point(0.0), Point(0.0)])
        self.batches = 0

    def calculate_loss(self, interaction):
        return self.body.value**2

    def calculate_max_objective(self, interaction):
        self.batches += 1
        return self.env_generator[self.batches % 2].value


def test_a_player_without_a_gradient_does_not_stop_the_scaler(tiny):
    """Stock: "No inf checks were recorded for this optimizer"."""
    sgd = {"learner": "sgd", "learning_rate": 1.0, "epochs": 1, "eval_step": 0}
    run = tiny(TwoModules, max_interval=3, train_batch_size=64, monitor_interval=0, **sgd, **SCALED)
    run.fit(saved=False)
    turns = run.trainer.loop.turns_taken["max"]
    assert turns == len(run.train) // 3 >= 2
    even, odd = (point.value.item() for point in run.model.env_generator)
    assert (odd, even) == ((turns + 1) // 2, turns // 2)


def test_a_move_in_closed_form_needs_no_scaler(tiny):
    run = tiny("GroupDRO", n_environments=3, epochs=1, eval_step=0, **SCALED)
    run.fit(saved=False)
    assert run.model.weight.sum().item() == pytest.approx(1)
    assert len(set(run.model.weight.tolist())) == 3
    assert run.trainer.loop.steps_taken["max"] == len(run.train)
