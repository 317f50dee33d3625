"""No batch makes the host wait for the device, in the path that is taken where that is no CPU.

Tensors on torch's ``meta`` device have no values: whatever would be read on the host (``item``,
``bool``, ``tolist``, a shape that depends on values) raises. What looks at the first batch only has
had it on the CPU before; the loss, which is read in every 50th step, is left out here.
"""

import pytest
import torch
from recbole.model.general_recommender import BPR

from recbole_adv.trainer import trainer_class

META = torch.device("meta")
GAME = {"max_start_epoch": 0, "penalty_start": 0, "max_interval": 1}
KEYS = {"gradient_centralization_embeddings": True, "clippy_embeddings": "rows"}
# Those left out: embedding_attack waits once for each attacked batch, and where it finds the rows that
# a batch looks up; divergence_guard reads a block of losses at a time; torch has no generator of
# random numbers on this device for gradient_noise. test_gpu.py has the last two.
TECHNIQUES = [
    "sam", "asam", "awp", "label_smoothing", "ema", "lr_schedule", "clip_norm", "clip_value", "agc",
    "clippy", "gradient_accumulation", "gradient_centralization", "monitor",
]  # fmt: skip


def an_epoch_on_meta(tiny, model, **settings):
    """The batches of an epoch, as the trainer plays them; returns the trainer."""
    keys = {"monitor_interval": 0, "epochs": 1, "eval_step": 0, "train_batch_size": 256}
    run = tiny(model, **{**keys, **settings})
    run.trainer._before_fit(run.train)
    run.model.train()
    for player in run.trainer.players:
        if player.move is None:
            player.loss(run.batch())
    run.config["device"] = META
    run.model.to(META)
    for module in run.model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, (torch.Tensor, torch.device)):
                vars(module)[name] = value.to(META) if isinstance(value, torch.Tensor) else META
    trainer = trainer_class(run.config.model_class)(run.config, run.model)
    train = trainer._before_fit(run.train)
    trainer.loop.engine.gradients.check_every = 10**9
    trainer.loop.steps_taken = dict.fromkeys(trainer.loop.steps_taken, 1)
    for technique in trainer.techniques.all():
        technique.before_epoch(0)
        if hasattr(technique, "_tried"):
            technique._tried = True  # r_drop, on the first batch
    trainer.loop.run(train, 0, trainer._turns(), trainer._joint(), False, False)
    assert trainer.loop.steps_taken[trainer.loop.first] > 1
    return trainer


@pytest.mark.parametrize("model", ["BPR", "AdvInfoNCE", "InvPref"])
def test_models(model, tiny):
    an_epoch_on_meta(tiny, model)


@pytest.mark.parametrize("game_update", ["shared_graph", "separate_forward"])
@pytest.mark.parametrize("objective", ["irm", "irm_raw", "rex"])
def test_eiil(objective, game_update, tiny):
    keys = {"inference_objective": objective, "game_update": game_update, **GAME}
    trainer = an_epoch_on_meta(tiny, "EIIL", **keys)
    assert trainer.loop.steps_taken["max"] == trainer.loop.steps_taken["min"]


@pytest.mark.parametrize("model", ["IRM", "VREx", "GroupDRO"])
def test_environments(model, tiny):
    an_epoch_on_meta(tiny, model, n_environments=2, **GAME)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_techniques(technique, tiny):
    """Of one player and of two, whose techniques make each a forward pass of its own."""
    an_epoch_on_meta(tiny, "NeuMF", techniques=[technique], **KEYS)
    if technique not in ("label_smoothing", "gradient_centralization"):
        an_epoch_on_meta(tiny, "EIIL", techniques=[technique], **KEYS, **GAME)


def test_r_drop(tiny):
    an_epoch_on_meta(tiny, "SASRec", techniques=["r_drop"])


@pytest.mark.parametrize("keys", [{"learner_foreach": True}, {"learner": "adagrad"}])
def test_optimizers(keys, tiny):
    an_epoch_on_meta(tiny, "BPR", **keys)


class Looks(BPR):
    """Reads a value in the third batch."""

    n_batches = 0

    def calculate_loss(self, interaction):
        loss = super().calculate_loss(interaction)
        self.n_batches += 1
        return loss * 2 if self.n_batches == 3 and loss > 1 else loss


def test_a_model_that_looks_is_caught(tiny):
    with pytest.raises(RuntimeError, match="meta"):
        an_epoch_on_meta(tiny, Looks)
