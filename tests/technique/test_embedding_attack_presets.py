"""The recipes beyond APR, each against a loop of its own that writes no weight."""

import pytest
import torch
from torch.nn.functional import normalize

from recbole_adv.errors import ConfigError
from recbole_adv.technique.attack.functional import loss_at

EXACT = {"rtol": 1e-6, "atol": 1e-11}  # some constants of RecBole's are float32


def zero_padding(run, moves):
    for table in run.attack.tables:
        if table.padding is not None:
            moves[table.name][table.padding] = 0
    return moves


def gradient_at(run, deltas):
    """Gradients of all parameters at perturbed tables, by name."""
    return run.plain(loss=lambda batch: loss_at(run.model, deltas, run.loss, batch))


def assert_gradients(found, expected):
    assert set(found) == set(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], **EXACT)


# --- FGM, PGD ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["table", "global"])
def test_fgm_has_one_norm_for_a_table(scope, attacked):
    run = attacked("NeuMF", {"preset": "fgm", "scope": scope, "epsilon": 2.0}, double=True)
    run.gradients()
    norms = [delta.norm().item() for delta in run.deltas().values()]
    if scope == "table":
        assert norms == pytest.approx([2.0] * 4)
    else:
        assert sum(norm**2 for norm in norms) == pytest.approx(4.0)


@pytest.mark.parametrize("steps, fires", [(3, False), (4, True)])
@pytest.mark.parametrize("model", ["BPR", "NeuMF"])
def test_pgd_keeps_the_clean_and_the_last_gradient_only(model, steps, fires, attacked):
    settings = {"preset": "pgd", "steps": steps, "weight": 0.6}
    run = attacked(model, settings, double=True, dropout_prob=0.0)
    clean = run.plain()
    gradient, deltas, longest = clean, None, 0.0
    for _ in range(steps):
        step = zero_padding(run, {t.name: gradient[t.name].clone() for t in run.attack.tables})
        moved = {n: (deltas[n] if deltas else 0) + 0.3 * g / g.norm() for n, g in step.items()}
        longest = max(longest, *(m.norm().item() for m in moved.values()))
        deltas = {n: m / max(1.0, m.norm().item()) for n, m in moved.items()}
        gradient = gradient_at(run, deltas)
    _, gradients = run.gradients()
    assert (longest > 1) == fires
    for name, delta in run.deltas().items():
        torch.testing.assert_close(delta, deltas[name], rtol=0, atol=1e-10)
        assert delta.norm() <= 1 + 1e-12
    assert_gradients(gradients, {n: clean[n] + 0.6 * gradient[n] for n in clean})
    assert len(run.seen) == steps + 1  # K + 1 passes


def test_msap_s_box_passes_the_radius_that_the_ball_keeps(attacked):
    """Steps of row norm epsilon / 4, elements within epsilon: realised norms of 2.4 epsilon and more
    were measured on ml-100k."""
    longest = {}
    for projection in ("ball", "box"):
        settings = {"start_epoch": 0, "steps": 20, "step_size": 0.125, "projection": projection}
        run = attacked("BPR", settings)
        run.gradients()
        longest[projection] = run.attack.figures()["delta_max"]
        assert max(delta.abs().max() for delta in run.deltas().values()) <= 0.5 + 1e-6
    assert longest["ball"] == pytest.approx(0.5, abs=1e-6)
    assert 0.6 < longest["box"] <= 0.5 * 8**0.5 + 1e-6


# --- FreeLB -----------------------------------------------------------------------------------------


def test_freelb_on_lookups_against_its_own_loop(attacked):
    """K + 1 passes of equal weight, a perturbation for each occurrence, projected each by itself."""
    settings = {"preset": "freelb", "epsilon": 0.3, "relative": False, "weight": 1.5}
    run = attacked("BPR", settings, double=True)
    batch = run.batch
    ids = [batch["user_id"], batch["item_id"], batch["neg_item_id"]]
    of = ["user_embedding.weight"] + ["item_embedding.weight"] * 2
    tables = run.tables()
    deltas = [torch.zeros(len(i), 8, dtype=torch.double) for i in ids]
    mean = {name: torch.zeros_like(table) for name, table in tables.items()}
    losses, projected = [], False
    for _ in range(4):
        inputs = [
            (tables[name][rows] + delta).requires_grad_()
            for name, rows, delta in zip(of, ids, deltas)
        ]
        user, item, sampled = inputs
        x = (user * item).sum(1) - (user * sampled).sum(1)
        loss = -torch.log(1e-10 + torch.sigmoid(x)).mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, inputs)
        for name, rows, gradient in zip(of, ids, gradients):
            mean[name].index_add_(0, rows, 1.5 * gradient / 4)
        moved = [d + 0.25 * normalize(g, dim=1) for d, g in zip(deltas, gradients)]
        projected |= any(bool((m.norm(dim=1) > 0.3).any()) for m in moved)
        deltas = [m * (0.3 / m.norm(dim=1, keepdim=True)).clamp(max=1) for m in moved]
    loss, found = run.gradients()
    assert projected and len(run.losses) == 4
    assert run.losses == pytest.approx(losses, abs=1e-12)
    assert loss.item() == pytest.approx(sum(losses) / 4)
    assert_gradients(found, mean)
    figures = run.attack.figures()
    assert figures["gap"] == pytest.approx(losses[-1] - losses[0]) and figures["gap"] > 0


@pytest.mark.parametrize("init", ["zero", "random"])
@pytest.mark.parametrize("scope", ["row", "sample"])
def test_freelb_s_weights_sum_to_one(scope, init, attacked):
    settings = {"preset": "freelb", "scope": scope, "epsilon": 0.0, "steps": 5, "init": init}
    run = attacked("NeuMF", settings, double=True, dropout_prob=0.0)
    clean = run.plain()
    assert_gradients(run.gradients()[1], clean)


def test_samples_have_one_norm_over_all_positions_and_none_at_padding(attacked):
    """LoRec's port has a norm over time for each dimension."""
    settings = {"preset": "freelb", "epsilon": 0.4, "relative": False, "steps": 2}
    pairs = {"distribution": "uniform", "sample_num": 1}
    run = attacked("SASRec", settings, loss_type="BPR", train_neg_sample_args=pairs)
    (_, second), _ = run.puts()
    place = next(iter(run.attack._places.values()))
    (history,) = [i for i, delta in enumerate(second) if delta.dim() == 3]
    index = run.batch["item_id_list"]
    assert second[history].shape == (*index.shape, 16)
    assert (index == 0).any() and second[history][index == 0].abs().sum() == 0
    for delta, found in zip(second, place.tables):
        norms = delta.flatten(1).norm(dim=1)
        assert norms.max().item() == pytest.approx(0.4, abs=1e-6), found.name
        assert (norms > 0.39).float().mean() > 0.9
    long = second[history].norm(dim=2) > 0.39  # at most one position can have the whole radius
    assert long.sum(1).max() <= 1 and long.float().mean() < 0.3


def test_hooks_are_refused_where_they_would_miss_part_of_the_gradient(attacked):
    run = attacked("LightGCN", {"preset": "freelb"})
    with pytest.raises(
        ConfigError, match="1 of the gradient of user_embedding.weight does not come"
    ):
        run.gradients()
    run = attacked("SASRec", {"preset": "apr", "scope": "sample", "start_epoch": 0})
    with pytest.raises(
        ConfigError, match=r"0\.\d+ of the gradient of item_embedding.weight does not"
    ):
        run.gradients()


def test_lookups_in_a_game_where_the_backward_names_its_inputs(tiny):
    """The gradient of a lookup is found also when only leaves are asked for."""
    settings = {"embedding_attack_preset": "apr", "embedding_attack_scope": "sample"}
    game = {"backbone": "BPR", "game_update": "separate_forward", "max_start_epoch": 0}
    start = {"embedding_attack_start_epoch": 0}
    run = tiny("EIIL", techniques=["embedding_attack"], eval_step=0, **settings, **game, **start)
    run.fit(saved=False)
    figures = run.trainer.report._line
    assert figures["min/embedding_attack_delta_mean"] == pytest.approx(0.5)
    assert figures["min/embedding_attack_gap"] > 0


# --- Free AT ----------------------------------------------------------------------------------------


def test_free_at_moves_weights_and_perturbation_by_one_pass_and_keeps_the_latter(attacked):
    settings = {"preset": "freeat", "epsilon": 0.05, "relative": False}
    run = attacked("BPR", settings, double=True)
    kept = {name: torch.zeros_like(table) for name, table in run.tables().items()}
    batches = list(run.run.train)[:3]
    assert set(batches[0]["user_id"].tolist()) & set(batches[1]["user_id"].tolist())
    for number, batch in enumerate(batches):
        rows = {"user_embedding.weight": batch["user_id"].unique()}
        rows["item_embedding.weight"] = torch.cat([batch["item_id"], batch["neg_item_id"]]).unique()
        deltas = {
            n: torch.zeros_like(k).index_copy(0, rows[n], k[rows[n]]) for n, k in kept.items()
        }
        run.batch = batch
        expected = gradient_at(run, deltas)
        _, gradients = run.gradients(batch)
        assert_gradients(gradients, expected)  # no clean term
        assert len(run.seen) == 1  # one pass
        for name, k in kept.items():
            moved = (k + 0.05 * expected[name].sign()).clamp(-0.05, 0.05)
            kept[name] = k.index_copy(0, rows[name], moved[rows[name]])
            torch.testing.assert_close(0.05 * run.attack._kept.moves[name], kept[name], **EXACT)
        assert number == 0 or max(d.abs().max() for d in deltas.values()) == pytest.approx(0.05)


def test_free_at_resumes_exactly(tiny):
    settings = {
        "techniques": ["embedding_attack"],
        "embedding_attack_preset": "freeat",
        "embedding_attack_interval": 2,
        "eval_step": 0,
        "learner": "sgd",
        "learning_rate": 1.0,
    }
    whole = tiny("LightGCN", epochs=4, run_dir="whole", **settings).fit()
    tiny("LightGCN", epochs=2, run_dir="half", **settings).fit()
    rest = tiny("LightGCN", epochs=4, run_dir="half", **settings)
    rest.trainer.resume_checkpoint("half/last.pth")
    rest.fit()
    for mine, other in zip(rest.model.parameters(), whole.model.parameters()):
        assert mine.equal(other)
    mine, other = (r.techniques["min"]["embedding_attack"] for r in (rest.trainer, whole))
    for name, moves in mine._kept.moves.items():
        assert moves.abs().max() > 0 and moves.equal(other._kept.moves[name])
    assert mine.state_dict()["n_batches"] == other.state_dict()["n_batches"] > 0


def test_a_batch_is_replayed_by_min_steps(tiny):
    """Free AT's m: every replay moves the weights."""
    settings = {"techniques": ["embedding_attack"], "embedding_attack_preset": "freeat"}
    run = tiny("BPR", epochs=1, eval_step=0, min_steps=3, **settings)
    run.fit(saved=False)
    assert run.trainer.loop.steps_taken["min"] == 3 * len(run.train)


# --- Fast -------------------------------------------------------------------------------------------


def test_fast_steps_once_from_a_random_point_and_drops_the_clean_term(attacked):
    run = attacked("BPR", {"preset": "fast", "epsilon": 0.04, "relative": False}, double=True)
    _, gradients = run.gradients()
    start, end = run.deltas(0), run.deltas(1)
    for delta in start.values():
        touched = delta.abs().sum(1) > 0
        assert touched.any() and delta.abs().max() <= 0.04
        assert delta[touched].abs().mean().item() == pytest.approx(0.02, rel=0.1)  # uniform
    there = gradient_at(run, start)
    for name, delta in end.items():
        rows = start[name].abs().sum(1) > 0
        step = (start[name] + 1.25 * 0.04 * there[name].sign()).clamp(-0.04, 0.04)
        torch.testing.assert_close(delta[rows], step[rows], **EXACT)
        assert delta[~rows].abs().sum() == 0
    assert_gradients(gradients, gradient_at(run, end))
    assert "gap" not in run.attack.figures()


def test_both_passes_of_fast_have_the_same_dropout_masks(attacked):
    run = attacked("SASRec", {"preset": "fast", "epsilon": 0.0}, hidden_dropout_prob=0.5)
    run.gradients()
    assert len(run.losses) == 2 and run.losses[0] == run.losses[1]


@pytest.mark.parametrize("preset", ["fgm", "pgd", "freelb", "freeat", "fast", "vat"])
def test_every_preset_trains_and_reports(preset, tiny):
    settings = {"embedding_attack_preset": preset, "embedding_attack_scope": "row"}
    run = tiny("LightGCN", techniques=["embedding_attack"], epochs=2, **settings)
    run.fit(saved=False)
    figures = run.trainer.report._line
    assert figures["min/embedding_attack_skipped"] == 0
    assert figures["min/embedding_attack_delta_mean"] > 0
    assert run.trainer.train_loss_dict[1] == pytest.approx(run.trainer.train_loss_dict[0], rel=0.3)


# --- keys that contradict each other ----------------------------------------------------------------


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"preset": "pdg"}, "preset must be one of apr, fgm, pgd, freelb, .*, got 'pdg'"),
        ({"epsilon": -1}, "epsilon must be a number >= 0 or None, got -1"),
        ({"targets": ["("]}, r"targets: '\(' is no regular expression"),
        ({"targets": []}, r"targets must name a parameter, got \[\]; None takes every table"),
        ({"targets": "item"}, r"targets must be a list or None, got 'item'; write"),
        ({"start_epoch": 3, "stop_epoch": 3}, "stop_epoch must be above .*start_epoch 3, got 3"),
        ({"preset": "freeat", "scope": "sample"}, "preset: freeat is about rows of tables, which"),
        ({"scope": "sample", "rows": "all"}, "rows: all is about rows of tables, which"),
        ({"user_scale": "vat", "scope": "table"}, "user_scale: vat gives each user a radius, and"),
        ({"preset": "vat", "keep_clean": False}, "preset: vat is a term beside the loss; leave"),
        ({"epsilom": 0.3}, "there is no key 'embedding_attack_epsilom'.*did you mean"),
    ],
)
def test_mistakes_are_one_sentence_before_data_is_loaded(given, sentence, settings_of):
    from recbole_adv import Config

    keys = {f"embedding_attack_{key}": value for key, value in given.items()}
    settings = settings_of("BPR", techniques=["embedding_attack"], **keys)
    with pytest.raises(ConfigError, match=sentence):
        Config("BPR", "checkerboard", config_dict=settings)
