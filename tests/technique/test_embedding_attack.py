"""APR in full, and what every attack must keep: gradients, weights, the other parameters."""

import dataclasses

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import BPR

from recbole_adv.errors import TrainingError
from recbole_adv.options import properties_dir, read_options
from recbole_adv.technique.attack.functional import loss_at
from recbole_adv.technique.embedding_attack import EmbeddingAttack

ROW = {"preset": "apr", "start_epoch": 0}
MODELS = {  # every way in which a loss reads its tables
    "BPR": {},
    "LightGCN": {},
    "NeuMF": {"dropout_prob": 0.3},
    "SASRec": {"hidden_dropout_prob": 0.3},
    "DeepFM": {"dropout_prob": 0.3},
    "CKE": {},
}


def triples(*rows):
    """A batch of (user, item, sampled item)."""
    users, items, sampled = zip(*rows)
    return Interaction(
        {
            "user_id": torch.tensor(users),
            "item_id": torch.tensor(items),
            "neg_item_id": torch.tensor(sampled),
        }
    )


def bpr_tables(run):
    return run.model.user_embedding.weight.detach(), run.model.item_embedding.weight.detach()


# --- 1. APR's closed form (adversarial_models 1.2): delta_u = -eps (q_i - q_j) / |.|, and so on ----


def test_closed_form_of_apr(attacked):
    run, eps = attacked("BPR", {**ROW, "epsilon": 0.5}, double=True), 0.5
    batch = triples((1, 2, 3), (4, 5, 6), (7, 8, 9))
    p, q = (table.clone() for table in bpr_tables(run))
    u, i, j = batch["user_id"], batch["item_id"], batch["neg_item_id"]
    unit = torch.nn.functional.normalize
    loss, _ = run.gradients(batch)
    delta = run.deltas()
    user, item = delta["user_embedding.weight"], delta["item_embedding.weight"]
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(user[u], -eps * unit(q[i] - q[j]), **exact)
    torch.testing.assert_close(item[i], -eps * unit(p[u]), **exact)
    torch.testing.assert_close(item[j], eps * unit(p[u]), **exact)
    x = (p[u] * (q[i] - q[j])).sum(1)
    cosine = torch.nn.functional.cosine_similarity(p[u], q[i] - q[j])
    lengths = 2 * p[u].norm(dim=1) + (q[i] - q[j]).norm(dim=1)
    x_adv = x - eps * lengths + 2 * eps**2 * cosine
    assert loss.item() == pytest.approx(
        -torch.log(1e-10 + torch.sigmoid(x)).mean().item(), abs=1e-12
    )
    figures = run.attack.figures()
    expected = -torch.log(1e-10 + torch.sigmoid(x_adv)).mean().item()
    assert figures["loss"] == pytest.approx(expected, abs=1e-12)
    assert figures["gap"] == pytest.approx(expected - loss.item(), abs=1e-12)
    assert figures["delta_mean"] == pytest.approx(eps) == figures["delta_max"]
    rows = torch.cat([p[1:].norm(dim=1).mean().expand(3), q[1:].norm(dim=1).mean().expand(6)])
    assert figures["delta_relative"] == pytest.approx((eps / rows).mean().item())
    assert figures["idle_rows"] == 0 == figures["skipped"]


def test_a_row_that_occurs_twice_is_summed_before_it_is_normalised(attacked):
    run = attacked("BPR", {**ROW, "epsilon": 0.5}, double=True)
    batch = triples((1, 2, 3), (1, 4, 2))  # user 1 twice; item 2 as positive and as sampled
    p, q = (table.clone() for table in bpr_tables(run))
    run.gradients(batch)
    delta = run.deltas()
    x = torch.stack([p[1] @ (q[2] - q[3]), p[1] @ (q[4] - q[2])])
    s = torch.sigmoid(x)
    slope = s * (1 - s) / (1e-10 + s)  # minus the derivative of -log(1e-10 + sigmoid)
    g_user = -slope[0] * (q[2] - q[3]) - slope[1] * (q[4] - q[2])
    g_item = (-slope[0] + slope[1]) * p[1]
    exact = {"rtol": 0, "atol": 1e-10}
    expected = {"user_embedding.weight": (1, g_user), "item_embedding.weight": (2, g_item)}
    for name, (row, gradient) in expected.items():
        torch.testing.assert_close(delta[name][row], 0.5 * gradient / gradient.norm(), **exact)


# --- 2. norms ---------------------------------------------------------------------------------------


class TenTimes(BPR):
    """The same loss, ten times as large."""

    def calculate_loss(self, interaction):
        return 10 * super().calculate_loss(interaction)


def test_touched_rows_move_by_epsilon_and_no_other_row_at_all(attacked):
    batch = triples((1, 2, 3), (4, 2, 6), (1, 8, 0))  # row 0 is padding
    run = attacked("BPR", {**ROW, "epsilon": 0.7})
    run.gradients(batch)
    delta = run.deltas()
    norms = {name: d.norm(dim=1) for name, d in delta.items()}
    for name, rows in (("user_embedding.weight", [1, 4]), ("item_embedding.weight", [2, 3, 6, 8])):
        assert norms[name][rows].tolist() == pytest.approx([0.7] * len(rows), abs=1e-6)
        assert norms[name].count_nonzero() == len(rows)  # padding and others: bit for bit
    large = attacked(TenTimes, {**ROW, "epsilon": 0.7})
    large.model.load_state_dict(run.model.state_dict())
    large.gradients(batch)
    for name, other in large.deltas().items():
        torch.testing.assert_close(other, delta[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_the_row_norm_is_epsilon_in_every_kind_of_model(model, attacked):
    run = attacked(model, {**ROW, "epsilon": 0.3}, **MODELS[model])
    run.gradients()
    for table, delta in zip(run.attack.tables, run.deltas().values()):
        norms = delta.norm(dim=1)
        moved = norms[norms > 0]
        assert len(moved) > 5
        torch.testing.assert_close(moved, torch.full_like(moved, 0.3), rtol=0, atol=1e-5)
        assert table.padding is None or norms[table.padding] == 0


# --- 3. two batches; the gradient of the step -------------------------------------------------------


def test_each_batch_has_a_perturbation_of_its_own_from_the_weights_of_the_moment(attacked):
    """Elliot's port attacks with the perturbation of the batch before, QRec's is always zero."""
    run = attacked("BPR", {**ROW, "epsilon": 0.5}, learner="sgd", learning_rate=5.0)
    batches = list(run.run.train)[:2]
    found = []
    for batch in batches:
        run.audited(batch)
        gradient = run.plain(batch)
        start = run.tables()
        run.trainer.loop.engine.run(run.turn, batch)
        found.append({name: run.seen[-1][name] - start[name] for name in start})
        for name, delta in found[-1].items():
            expected = 0.5 * torch.nn.functional.normalize(gradient[name], dim=1)
            expected[0] = 0
            assert delta.norm() > 1
            torch.testing.assert_close(delta, expected, rtol=0, atol=2e-5)
    assert (found[0]["user_embedding.weight"] - found[1]["user_embedding.weight"]).norm() > 1


@pytest.mark.parametrize("model", MODELS)
def test_the_gradient_is_the_clean_one_plus_weight_times_that_at_the_perturbed_weights(
    model, attacked
):
    """By autograd through ``functional_call``, which writes no weight; the same dropout masks.

    caoymg's port follows the clean gradient twice."""
    run = attacked(model, {**ROW, "epsilon": 0.2, "weight": 0.7}, **MODELS[model])
    clean = run.plain()
    delta = {}
    for table in run.attack.tables:
        delta[table.name] = 0.2 * torch.nn.functional.normalize(clean[table.name], dim=1)
        if table.padding is not None:
            delta[table.name][table.padding] = 0
    adversarial = run.plain(loss=lambda b: loss_at(run.model, delta, run.loss, b))
    _, gradients = run.gradients()
    assert set(gradients) == set(clean) and set(delta) <= set(clean)
    for name, gradient in gradients.items():
        expected = clean[name] + 0.7 * adversarial[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    for name in delta:
        doubled = 2 * clean[name] + 0.7 * adversarial[name]
        expected = clean[name] + 0.7 * adversarial[name]
        assert (gradients[name] - expected).norm() < 1e-3 * (gradients[name] - doubled).norm()


@pytest.mark.parametrize("model", MODELS)
def test_without_a_radius_the_gradient_is_the_loss_s_twice(model, attacked):
    """The second pass sees the dropout masks of the first."""
    run = attacked(model, {**ROW, "epsilon": 0.0, "weight": 1.5}, **MODELS[model])
    clean = run.plain()
    _, gradients = run.gradients()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, 2.5 * clean[name], rtol=1e-4, atol=1e-6)


def test_without_the_same_random_numbers_the_second_pass_has_masks_of_its_own(attacked):
    settings = {"epsilon": 0.0, "same_random": False}
    run = attacked("SASRec", {**ROW, **settings}, hidden_dropout_prob=0.5)
    clean = run.plain()["item_embedding.weight"]
    gradient = run.gradients()[1]["item_embedding.weight"]
    assert (gradient - 2 * clean).norm() > 0.1 * clean.norm()


# --- 4. the gap -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "SASRec"])
def test_a_small_perturbation_raises_the_loss_of_every_batch(model, attacked):
    run = attacked(model, {**ROW, "epsilon": 0.05, "relative": True}, train_batch_size=64)
    for batch in list(run.run.train)[:12]:
        run.trainer.loop.engine.run(run.turn, batch)
        assert run.attack.figures()["gap"] > 0


def test_a_random_direction_of_the_same_length_hardly_matters(attacked):
    """The control: what raises the loss is the direction."""
    run = attacked("BPR", {**ROW, "epsilon": 0.1})
    run.gradients()
    gap = run.attack.figures()["gap"]
    torch.manual_seed(0)
    clean, gaps = run.loss(run.batch).item(), []
    for _ in range(30):
        delta = {
            name: 0.1 * torch.nn.functional.normalize(torch.randn_like(table), dim=1)
            for name, table in run.tables().items()
        }
        gaps.append(loss_at(run.model, delta, run.loss, run.batch).item() - clean)
    gaps = torch.tensor(gaps)
    assert gaps.mean().abs() < 3 * gaps.std() / 30**0.5 + 0.02 * gap
    assert gaps.max() < 0.5 * gap


# --- 5. nothing is left behind ----------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["apr", "pgd", "freelb", "freeat", "fast", "vat"])
@pytest.mark.parametrize("model", ["BPR", "LightGCN", "SASRec"])
def test_weights_come_back_bit_for_bit(model, preset, attacked):
    settings = {"preset": preset, "start_epoch": 0, "scope": "row", "epsilon": 0.3}
    run = attacked(model, settings)
    before = run.weights()
    run.gradients()
    if preset not in ("vat", "freeat"):  # the one has passes of its own, the other begins at zero
        assert all(delta.abs().max() > 1e-3 for delta in run.deltas().values())
    assert all(value.equal(before[name]) for name, value in run.model.state_dict().items())
    assert all(p.grad.isfinite().all() for p in run.model.parameters() if p.grad is not None)


class Fragile(BPR):
    """Raises in the pass of this number, counted over its life."""

    raises_in = None
    passes = 0

    def calculate_loss(self, interaction):
        self.passes += 1
        if self.passes == self.raises_in:
            raise ValueError("the pass broke")
        return super().calculate_loss(interaction)


@pytest.mark.parametrize("preset", ["apr", "pgd", "freelb", "fast"])
@pytest.mark.parametrize("rows", ["touched", "all"])
def test_weights_come_back_when_a_pass_raises(preset, rows, attacked):
    settings = {"preset": preset, "start_epoch": 0, "scope": "row", "rows": rows, "epsilon": 0.4}
    run = attacked(Fragile, {**settings, "frozen_state": False})
    run.audited(run.batch)
    n_passes = run.model.passes
    run.gradients()
    n_passes = run.model.passes - n_passes
    assert n_passes >= 2
    before = run.weights()
    for number in range(1, n_passes + 1):
        run.model.raises_in = run.model.passes + number
        with pytest.raises(ValueError, match="the pass broke"):
            run.gradients()
        assert all(v.equal(before[name]) for name, v in run.model.state_dict().items())
        hooks = [m._forward_pre_hooks or m._forward_hooks for m in run.model.modules()]
        assert not any(hooks)


def test_the_ascent_fills_no_gradient(attacked):
    """Between the clean pass and the last one ``.grad`` stays as it is, of targets and of others."""
    run = attacked("NeuMF", {"preset": "pgd", "start_epoch": 0, "steps": 4})
    seen, inner = [], run.turn.gradient

    def gradient(batch, tensors):
        before = [p.grad.clone() for p in run.model.parameters()]
        found = inner(batch, tensors)
        seen.append(all(p.grad.equal(b) for p, b in zip(run.model.parameters(), before)))
        return found

    run.turn.gradient = gradient
    run.gradients()
    assert seen == [True] * 3


def test_the_gradient_of_earlier_batches_is_no_part_of_the_direction(attacked):
    """What an outer technique, or accumulation, has put into ``.grad``."""
    run = attacked("BPR", {**ROW, "epsilon": 0.5})
    _, alone = run.gradients()
    delta = run.deltas()

    class Before:
        def wrap_loss(self, loss, turn):
            return loss

        def wrap_backward(self, backward, turn):
            def twice(batch):
                for p in turn.parameters:
                    p.grad = torch.randn_like(p)
                self.noise = [p.grad.clone() for p in turn.parameters]
                return backward(batch)

            return twice

    outer = Before()
    run.turn.techniques = [outer, *run.turn.techniques]
    _, gradients = run.gradients()
    assert all(run.deltas()[name].equal(delta[name]) for name in delta)
    for name, noise in zip(gradients, outer.noise):
        torch.testing.assert_close(gradients[name], alone[name] + noise)


# --- 6. off is off ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "SASRec", "DeepFM"])
@pytest.mark.parametrize("off", [{"start_epoch": 9}, {"start_epoch": 0, "weight": 0.0}])
def test_off_trains_bit_for_bit_as_without(model, off, tiny):
    keys = {f"embedding_attack_{key}": value for key, value in off.items()}
    off = tiny(model, techniques=["embedding_attack"], **keys).fit(saved=False)
    plain = tiny(model).fit(saved=False)
    assert off.train_loss_dict == plain.train_loss_dict
    for mine, other in zip(off.model.parameters(), plain.model.parameters()):
        assert mine.equal(other)


def test_start_stop_and_interval(tiny):
    keys = {"start_epoch": 1, "stop_epoch": 3, "interval": 3}
    keys = {f"embedding_attack_{key}": value for key, value in keys.items()}
    run = tiny("BPR", techniques=["embedding_attack"], epochs=4, eval_step=0, **keys)
    attack, seen = run.trainer.techniques["min"]["embedding_attack"], []
    figures = attack.figures
    attack.figures = lambda: seen.append(attack._figures.n_batches) or figures()
    run.fit(saved=False)
    n = len(run.train)
    attacks = [number for number in range(2 * n) if number % 3 == 0]
    assert seen == [0, sum(a < n for a in attacks), sum(a >= n for a in attacks), 0]


def test_apr_begins_at_half_of_the_epochs_and_an_attack_that_never_came_is_named(tiny, monkeypatch):
    run = tiny("BPR", techniques=["embedding_attack"], epochs=5, eval_step=0)
    said = []
    # The logger is that of the whole process.
    monkeypatch.setattr(
        run.trainer.logger, "warning", lambda text, *v: said.append(text % v if v else text)
    )
    run.fit(saved=False)
    assert run.trainer.techniques["min"]["embedding_attack"].start_epoch == 2 and not said
    late = {"embedding_attack_start_epoch": 7}
    run = tiny("BPR", techniques=["embedding_attack"], eval_step=0, **late)
    run.fit(saved=False)
    assert said == [
        "embedding_attack never acted: training ended in epoch 1, and it was to act from "
        "embedding_attack_start_epoch 7 on, on interactions"
    ]


def test_a_new_optimizer_at_the_start(tiny):
    keys = {"embedding_attack_start_epoch": 1, "embedding_attack_reset_optimizer": True}
    run = tiny("BPR", techniques=["embedding_attack"], epochs=2, eval_step=0, **keys)
    first = run.trainer.optimizer
    run.fit(saved=False)
    assert run.trainer.optimizer is not first
    steps = {int(state["step"]) for state in run.trainer.optimizer.state.values()}
    assert steps == {len(run.train)}  # those of the second epoch alone


# --- a loss that is not finite ----------------------------------------------------------------------


class Overflows(BPR):
    """Not finite at perturbed weights."""

    limit = None

    def calculate_loss(self, interaction):
        loss = super().calculate_loss(interaction)
        total = self.user_embedding.weight.detach().double().sum().item()
        if self.limit is None:
            self.limit = total
        return loss if total == self.limit else loss * float("inf")


@pytest.mark.parametrize("preset", ["apr", "freelb", "freeat", "fast"])
def test_an_adversarial_loss_that_is_not_finite_is_left_out_and_counted(preset, attacked):
    settings = {"preset": preset, "start_epoch": 0, "scope": "row", "frozen_state": False}
    run = attacked(Overflows, {**settings, "epsilon": 0.4})
    clean = run.plain()
    _, gradients = run.gradients()
    if preset == "freeat":  # the first perturbation is zero, and so is its row
        _, gradients = run.gradients()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, clean[name], rtol=1e-5, atol=1e-8)
    assert run.attack.figures()["skipped"] == (0.5 if preset == "freeat" else 1.0)


def test_the_loss_itself_still_stops_the_run(attacked):
    run = attacked("BPR", ROW)
    with torch.no_grad():
        run.model.user_embedding.weight[1:] = torch.nan
    with pytest.raises(TrainingError, match="not finite|nan"):
        run.trainer.loop.engine.run(run.turn, run.batch)


# --- keys -------------------------------------------------------------------------------------------


def test_defaults_of_keys_and_arguments_agree():
    import yaml

    file = properties_dir() / "technique" / "embedding_attack.yaml"
    keys = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert set(keys) == set(read_options(file))
    for field in dataclasses.fields(EmbeddingAttack):
        assert keys[f"embedding_attack_{field.name}"] == field.default, field.name
