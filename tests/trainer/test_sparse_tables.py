"""Which tables have row-sparse gradients, and that training on them is exact."""

import logging
from pathlib import Path

import pytest
import torch
from recbole.model.general_recommender import BPR
from torch import nn, optim

from recbole_adv import run_recbole_adv
from recbole_adv.errors import CheckpointError, ConfigError
from recbole_adv.game.lazy_rows import LazyRows
from recbole_adv.trainer.sparse_tables import sparse_parameters
from tests.trainer.test_resume import same, state_of

SPARSE = {"sparse_embeddings": True}
UNIFORM = {"distribution": "uniform", "sample_num": 1}
PAIRS = {"loss_type": "BPR", "train_neg_sample_args": UNIFORM}


def sparse_names(run):
    """The names of the parameters with sparse gradients, after training."""
    named = dict(run.model.named_parameters())
    sparse = {id(p) for p in sparse_parameters(run.model, run.model.parameters())}
    found = {name for name, p in named.items() if id(p) in sparse}
    with_gradient = {n: p.grad for n, p in named.items() if p.grad is not None}
    assert all(gradient.is_sparse == (n in found) for n, gradient in with_gradient.items())
    return found


class WholeUserNorm(BPR):
    """BPR with the norm of the whole table of users in its loss."""

    def calculate_loss(self, interaction):
        norm = self.user_embedding.weight.square().sum()
        return super().calculate_loss(interaction) + 0.01 * norm


class TiedItems(BPR):
    """BPR whose items are looked up by a second module too, which shares their table."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.other = nn.Embedding(self.n_items, self.embedding_size)
        self.other.weight = self.item_embedding.weight

    def calculate_loss(self, interaction):
        again = self.other(interaction[self.ITEM_ID])
        return super().calculate_loss(interaction) + 0.01 * again.square().mean()


class NoTable(BPR):
    """BPR over a table that is no nn.Embedding."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.users = nn.Parameter(self.user_embedding.weight.detach().clone())
        self.items = nn.Parameter(self.item_embedding.weight.detach().clone())
        del self.user_embedding, self.item_embedding

    def calculate_loss(self, interaction):
        users = self.users[interaction[self.USER_ID]]
        items = self.items[interaction[self.ITEM_ID]]
        return -(users * items).sum(-1).sigmoid().log().mean()


BOTH = {"user_embedding.weight", "item_embedding.weight"}


@pytest.mark.parametrize(
    "model, settings, sparse",
    [
        ("BPR", {}, BOTH),
        ("BPR", {"train_loader": "tensor"}, BOTH),
        (WholeUserNorm, {}, {"item_embedding.weight"}),
        (TiedItems, {}, BOTH),
        ("SASRec", PAIRS, {"item_embedding.weight"}),
        ("EIIL", {"backbone": "BPR"}, {f"backbone.{name}" for name in BOTH}),
        (
            "EIIL",
            {"backbone": "BPR", "check_gradients": True, "game_update": "separate_forward"}
            | {"max_start_epoch": 0, "penalty_start": 0},
            {f"backbone.{name}" for name in BOTH},
        ),
    ],
)
def test_tables_that_lookups_alone_read_are_sparse(model, settings, sparse, tiny):
    run = tiny(model, epochs=1, eval_step=0, **SPARSE, **settings)
    start = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.fit(saved=False)
    assert sparse_names(run) == sparse
    assert isinstance(run.trainer.optimizer, LazyRows)
    for name, parameter in run.model.named_parameters():
        assert parameter.isfinite().all()
        assert name not in sparse or not torch.equal(parameter, start[name])


def test_both_losses_of_a_knowledge_graph(tiny):
    run = tiny("CKE", epochs=1, eval_step=0, **SPARSE).fit(saved=False)
    tables = run.loop.engine.gradients.sparse_tables
    assert {"user_embedding.weight", "entity_embedding.weight"} <= set(tables.sparse["min"])


@pytest.mark.parametrize(
    "model, settings, words",
    [
        ("LightGCN", {}, r"LightGCN that lookups alone read \(user_embedding.weight is read as a"),
        ("SASRec", {}, "item_embedding.weight is read as a whole, position_embedding.weight is"),
        (NoTable, {}, "NoTable that lookups alone read, which has no nn.Embedding"),
        ("RecVAE", {"train_neg_sample_args": None}, "RecVAE that lookups alone read"),
        ("Pop", {}, "Pop is not trained by gradient descent, so sparse gradients have no effect"),
        ("BPR", {"learner": "sparse_adam"}, "sparse_adam has no step for dense gradients"),
        ("BPR", {"sparse_embeddings": "yes"}, "sparse_embeddings must be True or False"),
    ],
)
def test_what_has_no_use_is_refused(model, settings, words, tiny):
    with pytest.raises(ConfigError, match=words):
        tiny(model, eval_step=0, **{**SPARSE, **settings}).fit(saved=False)


def test_nothing_is_sparse_unless_asked_for(tiny):
    run = tiny("BPR", epochs=1, eval_step=0)
    run.fit(saved=False)
    assert type(run.trainer.optimizer) is optim.Adam
    assert sparse_names(run) == set()


def test_the_log_names_the_tables_once(tiny, caplog):
    run = tiny("SASRec", eval_step=0, **SPARSE, **PAIRS)
    with caplog.at_level(logging.INFO):
        run.fit(saved=False)
    found = [r.getMessage() for r in caplog.records if "sparse_embeddings," in r.getMessage()]
    assert len(found) == 1 and "player min: item_embedding.weight; position_embedding" in found[0]


@pytest.mark.parametrize("learner", ["sgd", "adagrad", "row_adagrad"])
def test_where_no_moment_fades_sparse_training_equals_dense(learner, tiny):
    keys = {"learner": learner, "learning_rate": 0.5, "eval_step": 0}
    dense = tiny("BPR", **keys).fit(saved=False)
    sparse = tiny("BPR", **keys, **SPARSE).fit(saved=False)
    for mine, other in zip(sparse.model.parameters(), dense.model.parameters()):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model, settings",
    [
        ("EIIL", {"penalty_start": 0, "max_start_epoch": 0, "generator": "table"}),
        ("IRM", {"penalty_start": 0, "n_environments": 3}),  # differentiates twice
    ],
)
def test_games_and_penalties_equal_dense_ones(model, settings, tiny):
    keys = {"backbone": "BPR", "learner": "sgd", "learning_rate": 0.5, "eval_step": 0, **settings}
    dense = tiny(model, **keys).fit(saved=False)
    sparse = tiny(model, **keys, **SPARSE).fit(saved=False)
    tables = sparse.loop.engine.gradients.sparse_tables.sparse
    assert tables.get("max", []) == (["env_generator.logit.weight"] if model == "EIIL" else [])
    for mine, other in zip(sparse.model.parameters(), dense.model.parameters()):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_a_row_of_every_batch_moves_as_under_dense_adam(tiny):
    """All 60 users and items are in each batch of 256 rows and their negatives, but for padding."""
    keys = {"learner_eps": 1e-4, "learner_fused": False, "eval_step": 0, "train_batch_size": 1024}
    dense = tiny("BPR", **keys).fit(saved=False)
    sparse = tiny("BPR", **keys, **SPARSE).fit(saved=False)
    for mine, other in zip(sparse.model.parameters(), dense.model.parameters()):
        torch.testing.assert_close(mine[1:], other[1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_skips_and_steps(fused, tiny):
    """The gradient of a loss times 65536 is unscaled before the step; one of inf is no step."""
    keys = {"learner": "sgd", "learning_rate": 0.5, "eval_step": 0, "learner_fused": fused}
    plain = tiny("BPR", **keys, **SPARSE).fit(saved=False)
    amp = {"enable_amp": True, "enable_scaler": True, "amp_dtype": "bfloat16"}
    scaled = tiny("BPR", **keys, **amp, **SPARSE)
    scaled.fit(saved=False)
    for mine, other in zip(scaled.model.parameters(), plain.model.parameters()):
        torch.testing.assert_close(mine, other, rtol=0.05, atol=0.01)
    before = [p.detach().clone() for p in scaled.model.parameters()]
    trainer = scaled.trainer
    turn = trainer._turns()["min"]
    own = turn.loss
    turn.loss = lambda batch: own(batch) * 3e38  # times the scale: inf
    trainer.loop.engine.gradients.tolerates_nonfinite = True
    trainer.loop.engine.run(turn, scaled.batch())
    assert all(torch.equal(a, b) for a, b in zip(before, scaled.model.parameters()))


@pytest.mark.parametrize(
    "model, settings",
    [
        ("BPR", {"techniques": ["ema", "lr_schedule", "clip_norm"], "clip_norm_max_norm": 0.01}),
        ("BPR", {"learner": "row_adagrad", "train_loader": "tensor", "weight_decay": 0.01}),
        (
            "EIIL",
            {"backbone": "BPR", "max_start_epoch": 1, "penalty_start": 1, "techniques": ["ema"]},
        ),
        ("CKE", {}),
        # A table that is looked up in all its rows stays dense, though a batch of the rest might not be.
        ("SASRec", {**PAIRS, "train_batch_size": 128}),
        ("InvPref", {"train_batch_size": 128}),
    ],
)
def test_four_epochs_are_two_and_two(model, settings, settings_of):
    given = settings_of(model, epochs=4, lr_schedule_total=8, **SPARSE, **settings)
    whole = run_recbole_adv(model, "checkerboard", config_dict=given)
    half = run_recbole_adv(model, "checkerboard", config_dict={**given, "epochs": 2})
    rest = run_recbole_adv(resume=half["run_dir"], config_dict={"epochs": 4})
    for key in ("best_valid_score", "best_valid_result", "test_result"):
        assert rest[key] == whole[key]
    same(state_of(rest["run_dir"]), state_of(whole["run_dir"]))


def test_a_checkpoint_of_dense_training_is_not_continued(tiny, settings_of):
    done = run_recbole_adv("BPR", "checkerboard", config_dict=settings_of("BPR", epochs=1))
    last = str(Path(done["run_dir"], "last.pth"))
    with pytest.raises(CheckpointError, match="is Adam, but the configuration makes LazyAdam; use"):
        tiny("BPR", **SPARSE).trainer.resume_checkpoint(last)
