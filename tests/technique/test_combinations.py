"""Every pair of techniques on every kind of trainer; all of them together, resumed."""

import itertools
from functools import partial

import pytest
import torch
from recbole.model.general_recommender import BPR, NeuMF
from recbole.utils import KGDataLoaderState
from torch import nn

from recbole_adv.errors import CheckpointError, ConfigError
from recbole_adv.options import technique_names

# Small enough that each technique acts in the first two batches.
KEYS = {
    "embedding_attack_start_epoch": 0,
    "gradient_accumulation_batches": 2,
    "clip_norm_max_norm": 0.01,
    "ema_decay": 0.5,
    "clippy_embeddings": "rows",
    "lr_schedule_total": 40,  # not the epochs, of which a resumed run has more
}
KNOWLEDGE = {
    "inter": ["user_id", "item_id", "timestamp"],
    "kg": ["head_id", "relation_id", "tail_id"],
    "link": ["item_id", "entity_id"],
}
TRAINERS = {
    # dropout and a BCEWithLogitsLoss
    "Trainer": ("NeuMF", {"dropout_prob": 0.2}),
    # two losses by turns; its loss modules are reached by no dropout, and it is all embeddings
    "KGTrainer": ("KTUP", {"load_col": KNOWLEDGE, "train_rec_step": 1, "train_kg_step": 1}),
    # two optimizers; no loss module, no embedding table
    "RecVAETrainer": ("RecVAE", {"train_neg_sample_args": None, "n_enc_epochs": 1}),
    # two players on one graph
    "INVTrainer": ("EIIL", {"backbone": "NeuMF", "dropout_prob": 0.2, "max_start_epoch": 0}),
}
REFUSED = {
    "KGTrainer": {
        "r_drop": "dropout",
        "gradient_centralization": "nothing to act on in KTUP",
        "gradient_noise": "nothing to act on in KTUP",
    },
    "RecVAETrainer": {
        "r_drop": "loss modules",
        "label_smoothing": "loss modules",
        "embedding_attack": "embedding_attack_targets",
    },
}
PAIRS = list(itertools.combinations(technique_names(), 2))


@pytest.fixture(scope="module")
def built():
    """One data set and one model for each trainer, whose weights are put back each time."""
    return {}


def two_batches(built, tiny, kind, techniques, epochs=1):
    """Train a fresh trainer on two batches; returns how far its weights moved."""
    if kind not in built:
        model, settings = TRAINERS[kind]
        run = tiny(model, epochs=1, eval_step=0, train_batch_size=128, **settings, **KEYS)
        run.start = {name: value.clone() for name, value in run.model.state_dict().items()}
        built[kind] = run
    run = built[kind]
    run.model.load_state_dict(run.start)
    run.config["techniques"] = list(techniques)
    trainer = type(run.trainer)(run.config, run.model)
    trainer._before_fit(run.train)
    for technique in trainer.techniques.all():
        technique.before_epoch(0)
    run.model.train()
    for batch, loss in _two(run, trainer):
        turns = trainer._turns(loss)
        if trainer._joint() is None:
            trainer.loop.engine.run(turns["min"], batch)
        else:
            trainer.loop.engine.run_shared(list(turns.values()), trainer._joint(), batch)
        for turn in turns.values():
            trainer.loop.engine.finish(turn)
            trainer.loop.steps_taken[turn.player.name] = turn.steps
    with trainer._evaluation_weights():
        pass
    return run.start, {name: value.clone() for name, value in run.model.state_dict().items()}


def _two(run, trainer):
    """Two batches, each with the loss that RecBole's special trainer hands over."""
    above = type(trainer).__mro__[1].__name__
    if above == "KGTrainer":
        for state, loss in (("RS", None), ("KG", run.model.calculate_kg_loss)):
            run.train.set_mode(KGDataLoaderState[state])
            yield next(iter(run.train)), loss
    elif above == "RecVAETrainer":
        for half, encoder in (("encoder", True), ("decoder", False)):
            trainer.optimizer = getattr(trainer, f"optimizer_{half}")
            yield next(iter(run.train)), partial(run.model.calculate_loss, encoder_flag=encoder)
    else:
        for batch in itertools.islice(run.train, 2):
            yield batch, None


@pytest.mark.parametrize("kind", TRAINERS)
def test_every_pair_is_finite_and_moves(built, tiny, kind):
    refused = REFUSED.get(kind, {})
    for pair in PAIRS:
        if refused.keys() & set(pair):
            continue
        before, after = two_batches(built, tiny, kind, pair)
        assert all(value.isfinite().all() for value in after.values()), pair
        assert any(not value.equal(before[name]) for name, value in after.items()), pair


@pytest.mark.parametrize("kind", TRAINERS)
def test_every_pair_the_other_way_round(built, tiny, kind):
    """The order of nesting; the techniques that wrap are those where it matters."""
    wrapping = ["embedding_attack", "sam", "asam", "awp", "r_drop", "label_smoothing", "clippy"]
    wrapping = [name for name in wrapping if name in technique_names()]
    refused = REFUSED.get(kind, {})
    for first, second in itertools.combinations(wrapping, 2):
        if {first, second} & refused.keys():
            continue
        before, after = two_batches(built, tiny, kind, (second, first))
        assert all(value.isfinite().all() for value in after.values()), (second, first)
        assert any(not value.equal(before[name]) for name, value in after.items())


@pytest.mark.parametrize(
    "kind, technique",
    [
        (kind, name)
        for kind, names in REFUSED.items()
        for name in names
        if name in technique_names()
    ],
)
def test_what_cannot_work_is_refused(built, tiny, kind, technique):
    with pytest.raises(ConfigError, match=REFUSED[kind][technique]):
        two_batches(built, tiny, kind, (technique,))


@pytest.mark.parametrize("kind", TRAINERS)
def test_all_together_resume_exactly(tiny, kind):
    model, settings = TRAINERS[kind]
    techniques = [name for name in technique_names() if name not in REFUSED.get(kind, {})]
    given = {**settings, **KEYS, "techniques": techniques, "train_batch_size": 512}
    whole = tiny(model, run_dir="whole", epochs=2, **given)
    whole.fit()
    half = tiny(model, run_dir="half", epochs=1, **given)
    half.fit()
    rest = tiny(model, run_dir="rest", epochs=2, **given)
    rest.trainer.resume_checkpoint(half.trainer.last_file)
    rest.fit()
    assert_same(*(run.trainer._state(1) for run in (whole, rest)))


def assert_same(first, second, path=""):
    """Two trees of data are equal to the last bit, but for what says when and where."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first.keys() - {"config"}:
            assert_same(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for index, (mine, other) in enumerate(zip(first, second)):
            assert_same(mine, other, f"{path}/{index}")
    elif isinstance(first, torch.Tensor):
        assert first.equal(second), path
    elif hasattr(first, "tobytes"):
        assert first.tobytes() == second.tobytes(), path
    else:
        assert first == second or first != first, path


class TakesGradients(BPR):
    """A loss that takes a gradient itself."""

    def calculate_loss(self, interaction):
        user = self.user_embedding(interaction[self.USER_ID]).detach().requires_grad_()
        score = (user * self.item_embedding(interaction[self.ITEM_ID])).sum()
        (slope,) = torch.autograd.grad(score, user, create_graph=True)
        drawn = nn.functional.dropout(slope, 0.2, self.training).square().mean()
        return super().calculate_loss(interaction) + 0.1 * drawn


@pytest.mark.parametrize("preset", ["apr", "fast", "freeat", "freelb", "pgd", "vat"])
@pytest.mark.parametrize("init", ["zero", "random"])
def test_a_loss_that_takes_gradients_can_be_attacked(preset, init, tiny):
    keys = {"embedding_attack_preset": preset, "embedding_attack_start_epoch": 0, "epochs": 1}
    run = tiny(
        TakesGradients,
        techniques=["embedding_attack"],
        embedding_attack_init=init,
        eval_step=0,
        **keys,
    )
    run.fit(saved=False)
    assert run.trainer.loop.steps_taken["min"] > 0


class TakesGradientsUnderDropout(NeuMF):
    """The same of a model that draws dropout masks."""

    def calculate_loss(self, interaction):
        user = self.user_mf_embedding(interaction[self.USER_ID]).detach().requires_grad_()
        score = (user * self.item_mf_embedding(interaction[self.ITEM_ID])).sum()
        (slope,) = torch.autograd.grad(score, user, create_graph=True)
        return super().calculate_loss(interaction) + 0.1 * slope.square().mean()


def test_a_loss_that_takes_gradients_can_be_dropped_out_twice(tiny):
    keys = {"techniques": ["r_drop"], "dropout_prob": 0.2, "mlp_hidden_size": [16]}
    run = tiny(TakesGradientsUnderDropout, epochs=1, eval_step=0, **keys)
    run.fit(saved=False)
    assert run.trainer.report._line["min/r_drop_divergence"] > 0


class Normalised(BPR):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.norm = nn.BatchNorm1d(self.embedding_size)

    def calculate_loss(self, interaction):
        self.norm(self.user_embedding(interaction[self.USER_ID]))
        return super().calculate_loss(interaction)


ATTACK = {
    "techniques": ["embedding_attack"],
    "embedding_attack_preset": "freeat",
    "embedding_attack_start_epoch": 0,
}


@pytest.mark.parametrize(
    "model, given, before, after, weight",
    [
        (Normalised, {"techniques": ["ema"]}, {"ema_buffers": "average"}, {}, "norm.running_mean"),
        (Normalised, {"techniques": ["ema"]}, {}, {"ema_buffers": "average"}, "norm.running_mean"),
        (BPR, ATTACK, {}, {"embedding_attack_targets": ["user_embedding"]}, "item_embedding"),
    ],
)
def test_a_run_does_not_go_on_with_other_weights_in_a_technique(
    model, given, before, after, weight, tiny
):
    half = tiny(model, epochs=1, run_dir="half", **given, **before)
    half.fit()
    rest = tiny(model, epochs=2, run_dir="rest", **given, **after)
    name = given["techniques"][0]
    with pytest.raises(CheckpointError, match=f"{name} of player 'min' .*{weight}.*keys {name}_"):
        rest.trainer.resume_checkpoint(half.trainer.last_file)
