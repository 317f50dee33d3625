"""What an attack leaves alone, and what else it must work with."""

import pytest
import torch
from recbole.model.general_recommender import BPR
from torch import nn

from recbole_adv.errors import ConfigError
from recbole_adv.technique.attack.functional import loss_at

ROW = {"preset": "apr", "start_epoch": 0, "epsilon": 0.2}
KEYS = {"techniques": ["embedding_attack"], "embedding_attack_start_epoch": 0}
VAE = {"train_neg_sample_args": None, "mlp_hidden_size": [16], "latent_dimension": 8}


def attack_of(run):
    return run.trainer.techniques["min"]["embedding_attack"]


# --- counters, statistics, caches (adversarial_models 11.3) -----------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
def test_the_annealing_counter_of_multivae_advances_once_a_batch(frozen, attacked):
    settings = {**ROW, "targets": [r"decoder\.2\.weight"], "frozen_state": frozen, "steps": 3}
    run = attacked("MultiVAE", settings, **VAE)
    run.audited(run.batch)
    before = run.model.update
    run.gradients()
    assert run.model.update - before == (1 if frozen else 4)


def test_a_vae_is_attacked_at_the_weights_that_are_named(attacked):
    run = attacked("MultiVAE", {**ROW, "targets": [r"decoder\.2\.weight"]}, **VAE)
    clean = run.plain()
    direction = torch.nn.functional.normalize(clean["decoder.2.weight"], dim=1)
    direction[0] = 0  # its rows are the items, 0 is padding
    delta = {"decoder.2.weight": 0.2 * direction}
    there = run.plain(loss=lambda batch: loss_at(run.model, delta, run.loss, batch))
    _, gradients = run.gradients()
    for name, gradient in gradients.items():
        expected = clean[name] + there[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_diffrec_sees_the_same_timesteps_and_notes_its_losses_once(attacked):
    """Its loss reads and writes a history: from the state after the first pass, the second one would
    be another loss."""
    settings = {**ROW, "epsilon": 0.0, "targets": [r"mlp_layers\.mlp_layers\.4\.weight"]}
    diffusion = {"train_neg_sample_args": None, "dims_dnn": [16], "steps": 5}
    run = attacked("DiffRec", settings, **diffusion)
    clean = run.plain()
    start = {n: v.clone() for n, v in vars(run.model).items() if n.startswith("Lt_")}
    counted = run.model.Lt_count.sum().item()
    _, gradients = run.gradients()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, 2 * clean[name], rtol=1e-4, atol=1e-7)
    n_rows = run.model.Lt_count.sum().item() - counted
    assert n_rows == len(run.batch) or not run.model.Lt_history.equal(start["Lt_history"])
    plain = attacked("DiffRec", {**settings, "start_epoch": 9}, epoch=0, **diffusion)
    plain.trainer.loop.engine.gradients.of(plain.turn, plain.batch)
    assert run.model.Lt_count.equal(plain.model.Lt_count)
    assert run.model.Lt_history.equal(plain.model.Lt_history)


@pytest.mark.parametrize("frozen", [True, False])
def test_batchnorm_counts_a_batch_once(frozen, attacked, settings_of):
    settings = {**settings_of("DeepFM"), "dropout_prob": 0.0}
    run = attacked("NFM", {**ROW, "frozen_state": frozen}, **settings)
    run.audited(run.batch)
    norms = [m for m in run.model.modules() if isinstance(m, nn.BatchNorm1d)]
    before = [m.num_batches_tracked.item() for m in norms]
    run.gradients()
    passes = [m.num_batches_tracked.item() - b for m, b in zip(norms, before)]
    assert norms and passes == [1 if frozen else 2] * len(norms)
    start, once = norms[0].running_mean.clone(), attacked("NFM", ROW, epoch=-1, **settings)
    once.gradients()
    mean = next(m.running_mean for m in once.model.modules() if isinstance(m, nn.BatchNorm1d))
    assert start.equal(mean) == frozen


def test_an_evaluation_after_an_attack_ranks_with_the_weights_themselves(attacked):
    run = attacked("LightGCN", ROW)
    run.model.eval()
    run.model.full_sort_predict(run.batch)  # its caches are full
    run.model.train()
    run.gradients()
    run.model.eval()
    after = run.model.full_sort_predict(run.batch)
    fresh = attacked("LightGCN", ROW)
    fresh.model.load_state_dict(run.model.state_dict())
    fresh.model.eval()
    assert after.equal(fresh.model.full_sort_predict(run.batch))


def test_a_perturbed_evaluation_needs_its_caches_cleared(attacked):
    """Else it ranks with the vectors of the weights themselves."""
    from recbole_adv.model_state import clear_caches

    run = attacked("LightGCN", ROW)
    place = run.audited(run.batch)
    run.model.eval()
    with torch.no_grad():
        plain = run.model.full_sort_predict(run.batch).clone()
        with place.at([torch.ones_like(t.parameter) for t in place.tables], [1.0, 1.0]):
            assert run.model.full_sort_predict(run.batch).equal(plain)
            clear_caches(run.model)
            assert not run.model.full_sort_predict(run.batch).equal(plain)
            clear_caches(run.model)
        assert run.model.full_sort_predict(run.batch).equal(plain)


# --- sparse gradients -------------------------------------------------------------------------------


class SparseBPR(BPR):
    """The same with row-sparse gradients."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.user_embedding.sparse = self.item_embedding.sparse = True


@pytest.mark.parametrize("preset", ["apr", "pgd", "freelb", "freeat"])
@pytest.mark.parametrize("rows", ["touched", "all"])
def test_sparse_gradients_are_attacked_as_dense_ones(preset, rows, attacked):
    settings = {"preset": preset, "start_epoch": 0, "scope": "row", "epsilon": 0.2, "rows": rows}
    found = []
    for model in (BPR, SparseBPR):
        run = attacked(model, settings)
        found.append((run, run.gradients()[1]))
    (dense, expected), (sparse, gradients) = found
    for name, gradient in gradients.items():
        assert gradient.is_sparse and not expected[name].is_sparse
        torch.testing.assert_close(gradient.to_dense(), expected[name], rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(sparse.seen[-1][name], dense.seen[-1][name])


# --- mixed precision --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_scaled_gradient_has_the_same_direction(dtype, attacked):
    amp = {"enable_amp": True, "enable_scaler": True, "amp_dtype": dtype}
    # BPR has no product that autocast lowers, so only the scaler makes a difference.
    plain, scaled = attacked("BPR", ROW), attacked("BPR", ROW, **amp)
    _, expected = plain.gradients()
    _, gradients = scaled.gradients()
    scale = scaled.turn.scaler.get_scale()
    assert scale == 65536
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, scale * expected[name], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(scaled.seen[-1][name], plain.seen[-1][name])


@pytest.mark.parametrize(
    "dtype, preset",
    [("bfloat16", "apr"), *(("float16", p) for p in ("apr", "freelb", "fast", "vat"))],
)
def test_mixed_precision_trains(dtype, preset, tiny):
    amp = {"enable_amp": True, "enable_scaler": True, "amp_dtype": dtype}
    keys = {**KEYS, "embedding_attack_preset": preset, "embedding_attack_scope": "row"}
    run = tiny("NeuMF", epochs=2, eval_step=0, **keys, **amp)
    run.trainer.scalers["min"] = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run.fit(saved=False)
    assert run.trainer.scalers["min"].get_scale() == 1024.0  # no step was left out
    figures = run.trainer.report._line
    assert figures["min/embedding_attack_skipped"] == 0
    assert figures["min/embedding_attack_delta_max"] > 0
    assert all(p.isfinite().all() for p in run.model.parameters())


class Overflow(BPR):
    """The gradient of one user is infinite under the scale."""

    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction) + 1e34 * self.user_embedding.weight[3].sum()


def test_rows_that_overflow_do_not_move_and_the_others_do(attacked):
    amp = {"enable_amp": True, "enable_scaler": True}
    run = attacked(Overflow, {**ROW, "rows": "all"}, **amp)
    with torch.no_grad():
        run.model.user_embedding.weight[3] = 0
    run.gradients()
    norms = run.deltas()["user_embedding.weight"].norm(dim=1)
    assert norms[3] == 0 and norms.count_nonzero() > 5 and norms.isfinite().all()


# --- accumulation, games, special trainers ----------------------------------------------------------


def test_with_accumulation_each_batch_has_its_own_direction(attacked, tiny):
    run = attacked("BPR", ROW)
    first, second = list(run.run.train)[:2]
    alone = [run.gradients(batch)[1] for batch in (first, second)]
    both = tiny(
        "BPR",
        techniques=["embedding_attack", "gradient_accumulation"],
        gradient_accumulation_batches=2,
        eval_step=0,
        **{f"embedding_attack_{key}": value for key, value in ROW.items()},
    )
    both.model.load_state_dict(run.model.state_dict())
    both.batch()
    for technique in both.trainer.techniques.all():
        technique.before_epoch(0)
    both.model.train()
    engine, turn = both.trainer.loop.engine, both.trainer._turns()["min"]
    engine.run(turn, first)
    assert turn.waiting == 1
    engine.run(turn, second)
    for name, p in both.model.named_parameters():
        expected = (alone[0][name] + alone[1][name]) / 2
        torch.testing.assert_close(p.grad, expected, rtol=1e-5, atol=1e-8)


GAME = {"max_start_epoch": 0, "penalty_start": 0, "max_interval": 1, "backbone": "BPR"}


@pytest.mark.parametrize("mode", ["shared_graph", "separate_forward"])
def test_in_a_game_only_the_player_s_own_tables_move(mode, tiny):
    run = tiny("EIIL", game_update=mode, eval_step=0, epochs=1, **GAME, **KEYS)
    attack, seen = attack_of(run), []
    run.batch()
    names = [table.name for table in attack.tables]
    assert names == ["backbone.user_embedding.weight", "backbone.item_embedding.weight"]
    theirs = list(run.model.env_generator.parameters())
    loss = run.model.calculate_loss

    def spied(batch):
        seen.append([p.detach().clone() for p in theirs])
        return loss(batch)

    object.__setattr__(run.trainer.players[0], "loss", spied)
    before = [p.detach().clone() for p in theirs]
    run.trainer.loop.run(
        [run.batch()],
        0,
        _begun(run),
        run.trainer._joint(),
        False,
        False,
    )
    assert attack._n_attacked == 1
    # The generator is where it was in each pass of the recommender, and moves by its own step.
    assert all(now.equal(b) for each in seen for now, b in zip(each, before))
    assert not all(p.equal(b) for p, b in zip(theirs, before))


def _begun(run):
    run.model.train()
    run.trainer.loop.begin_epoch()
    for technique in run.trainer.techniques.all():
        technique.before_epoch(0)
    return run.trainer._turns()


@pytest.mark.parametrize("mode", ["shared_graph", "separate_forward"])
def test_a_game_trains_under_attack_and_resumes_exactly(mode, tiny):
    settings = {"game_update": mode, "eval_step": 0, "check_gradients": True, **GAME, **KEYS}
    whole = tiny("EIIL", epochs=4, run_dir="whole", **settings).fit()
    tiny("EIIL", epochs=2, run_dir="half", **settings).fit()
    rest = tiny("EIIL", epochs=4, run_dir="half", **settings)
    rest.trainer.resume_checkpoint("half/last.pth")
    rest.fit()
    for mine, other in zip(rest.model.parameters(), whole.model.parameters()):
        assert mine.equal(other)
    assert whole.report._line["min/embedding_attack_gap"] > 0
    assert "max/embedding_attack_gap" not in whole.report._line


def test_the_max_player_can_be_attacked_if_it_has_tables(tiny):
    with pytest.raises(
        ConfigError, match="embedding_attack finds no embedding table in EIIL; write"
    ):
        tiny("EIIL", max_techniques=["embedding_attack"], eval_step=0, **GAME).fit(saved=False)


@pytest.mark.parametrize("on, attacked_kinds", [("interactions", 1), ("triples", 1), ("all", 2)])
def test_triples_of_a_knowledge_graph_are_attacked_if_asked_for(
    on, attacked_kinds, tiny, settings_of
):
    settings = settings_of("CKE", embedding_attack_on=on, epochs=2, eval_step=0, **KEYS)
    settings.pop("kg_embedding_size")
    run = tiny("KTUP", train_rec_step=1, train_kg_step=1, **settings)
    run.fit(saved=False)
    kinds = [place for place in attack_of(run)._places.values() if place is not None]
    assert len(kinds) == attacked_kinds
    assert attack_of(run)._n_attacked > 0


def test_recvae_is_attacked_in_the_half_that_has_the_target(tiny):
    settings = {**KEYS, "embedding_attack_targets": [r"decoder\.weight"], "hidden_dimension": 16}
    run = tiny(
        "RecVAE", epochs=1, eval_step=0, latent_dimension=8, **settings, train_neg_sample_args=None
    )
    run.fit(saved=False)
    places = attack_of(run)._places
    assert {kind[1]: place is not None for kind, place in places.items()} == {
        True: True,
        False: False,
    }
    assert run.trainer.report._line["min/embedding_attack_gap"] > 0
    with pytest.raises(
        ConfigError, match="reset_optimizer works for the first player's one optimizer"
    ):
        reset = {**settings, "embedding_attack_reset_optimizer": True, "latent_dimension": 8}
        tiny("RecVAE", train_neg_sample_args=None, **reset).fit(saved=False)


# --- what is attacked -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, given, sentence",
    [
        (
            "MultiVAE",
            {},
            r"finds no embedding table in MultiVAE; write .*targets: \['decoder\\.2\\.weight'\]; there "
            r"are encoder.0.weight \[16, ",
        ),
        (
            "BPR",
            {"targets": ["usr"]},
            "'usr' is found in the name of no matrix; there are user_embed",
        ),
        (
            "BPR",
            {"exclude": ["embedding"]},
            "exclude leaves none of user_embedding.weight, item_embed",
        ),
        ("NeuMF", {"targets": ["predict_layer.bias"]}, "is found in the name of no matrix"),
    ],
)
def test_nothing_to_attack_is_one_sentence(model, given, sentence, tiny):
    keys = {f"embedding_attack_{key}": value for key, value in given.items()}
    extra = VAE if model == "MultiVAE" else {}
    run = tiny(model, techniques=["embedding_attack"], **keys, **extra)
    with pytest.raises(ConfigError, match=sentence):
        run.fit(saved=False)


def test_targets_and_exclusions(tiny, settings_of):
    def names(model, **given):
        keys = {f"embedding_attack_{key}": value for key, value in given.items()}
        run = tiny(model, techniques=["embedding_attack"], **keys)
        run.batch()
        return [table.name for table in attack_of(run).tables]

    assert names("SASRec") == ["item_embedding.weight"]
    both = ["item_embedding.weight", "position_embedding.weight"]
    assert names("SASRec", exclude=[]) == both == names("SASRec", targets=["embedding"])
    assert names("SASRec", targets=["embedding"], exclude=["position"]) == both[:1]
    assert names("DeepFM") == ["token_embedding_table.embedding.weight"]
    assert names("NeuMF", targets=["^item"])[0] == "item_mf_embedding.weight"


@pytest.mark.parametrize(
    "model, expected",
    [
        ("BPR", [True, True]),
        ("LightGCN", [False, False]),
        ("SASRec", [False]),
        ("NeuMF", [True] * 4),
    ],
)
def test_the_first_batch_tells_which_rows_to_write(model, expected, attacked):
    run = attacked(model, ROW)
    assert run.audited(run.batch).by_lookup == expected


def test_a_full_softmax_can_be_attacked_at_the_rows_that_are_looked_up(attacked):
    run = attacked("SASRec", {**ROW, "rows": "looked_up"})
    run.gradients()
    norms = run.deltas()["item_embedding.weight"].norm(dim=1)
    looked_up = run.batch["item_id_list"].unique()
    looked_up = looked_up[looked_up > 0]
    assert norms.nonzero().flatten().equal(looked_up)
    assert run.attack.figures()["gap"] > 0
