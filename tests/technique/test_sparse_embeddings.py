"""Each technique with ``sparse_embeddings``: as without, or refused."""

import pytest
import torch

from recbole_adv.errors import ConfigError
from recbole_adv.options import technique_names
from recbole_adv.trainer.sparse_tables import sparse_parameters

# SGD without momentum moves the same rows by the same amounts, dense or sparse.
PLAIN = {"learner": "sgd", "learning_rate": 0.5, "eval_step": 0, "train_batch_size": 24}
PLAIN |= {"epochs": 1, "monitor_interval": 0}
KEYS = {
    "agc": {"agc_threshold": 1e-3},
    "asam": {},
    "awp": {"awp_gamma": 0.1},
    "clip_norm": {"clip_norm_max_norm": 0.01},
    "clip_value": {"clip_value_max_value": 1e-3},
    "clippy": {"clippy_embeddings": "rows", "clippy_absolute_threshold": 1e-3},
    "divergence_guard": {},
    "ema": {"ema_decay": 0.9},
    "embedding_attack": {},
    "gradient_accumulation": {"gradient_accumulation_batches": 3},
    "gradient_centralization": {"gradient_centralization_embeddings": True},
    "gradient_noise": {"gradient_noise_embeddings": True, "gradient_noise_eta": 1e-4},
    "label_smoothing": {},
    "lr_schedule": {"lr_schedule_warmup": 5},
    "monitor": {"monitor_every": 1, "monitor_sharpness_interval": 1},
    "r_drop": {},
    "sam": {},
}
DRAWS_OTHERWISE = ("gradient_noise",)  # numbers for the touched rows only
WATCHERS = ("monitor", "divergence_guard")
OVER_ROWS = (
    "min/agc_clipped",
    "min/clippy_factor_mean",
)  # means over the rows: dense ones over all


def test_all_techniques_are_here():
    assert set(KEYS) == set(technique_names())


def fitted(tiny, model, techniques, **keys):
    """Evaluated weights, figures and the start of a run."""
    run = tiny(model, techniques=techniques, **{**PLAIN, **keys})
    start = {name: w.clone() for name, w in run.model.state_dict().items()}
    trainer = run.fit(saved=False)
    with trainer._evaluation_weights():
        weights = {name: w.clone() for name, w in run.model.state_dict().items()}
    figures = {n: v for n, v in trainer.report._line.items() if n.startswith("min/")}
    return weights, figures, start, run


@pytest.mark.parametrize("technique", KEYS)
def test_sparse_training_equals_dense_training(technique, tiny):
    keys = KEYS[technique]
    model = "BPR"
    if technique == "r_drop":
        with pytest.raises(ConfigError, match="BPR has no dropout"):
            tiny("BPR", techniques=["r_drop"], **PLAIN, sparse_embeddings=True).fit(saved=False)
        model, keys = "NeuMF", {
            "dropout_prob": 0.3,
            "mf_embedding_size": 8,
            "mlp_embedding_size": 8,
        }
    plain = fitted(tiny, model, [], **keys)[0]
    dense, of_dense, *_ = fitted(tiny, model, [technique], **keys)
    sparse, of_sparse, start, run = fitted(tiny, model, [technique], sparse_embeddings=True, **keys)
    tables = sparse_parameters(run.model, run.model.parameters())
    assert len(tables) == (4 if model == "NeuMF" else 2)
    assert all(table.grad.is_sparse for table in tables)
    for name, weight in sparse.items():
        assert weight.isfinite().all() and not torch.equal(weight, start[name]), name
        if technique not in DRAWS_OTHERWISE:
            torch.testing.assert_close(weight, dense[name], rtol=1e-4, atol=1e-5, msg=name)
    acted = any(not torch.allclose(weight, plain[name]) for name, weight in sparse.items())
    assert acted != (technique in WATCHERS)
    for name, value in of_dense.items():
        if name in OVER_ROWS:
            continue
        assert of_sparse[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("warmup", [True, False])
def test_the_lazy_average_is_the_average(warmup, tiny):
    """Against the recursion over all weights after each step, in float64."""
    keys = {"ema_decay": 0.9, "ema_warmup": warmup, "sparse_embeddings": True}
    run = tiny("BPR", techniques=["ema"], **{**PLAIN, "learner": "adam", "epochs": 2}, **keys)
    named = dict(run.model.named_parameters())
    expected = {name: p.detach().double().clone() for name, p in named.items()}
    ema = run.trainer.techniques["min"]["ema"]
    updates = 0

    def after_step(turn, outcome, own=ema.after_step):
        nonlocal updates
        own(turn, outcome)
        decay = min(0.9, (1 + updates) / (10 + updates)) if warmup else 0.9
        updates += 1
        for name, p in named.items():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach().double()

    ema.after_step = after_step
    run.fit(saved=False)
    assert updates > 50 and set(ema.lazy) == set(named)
    with run.trainer._evaluation_weights():
        for name, p in named.items():
            torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_a_decay_of_zero_evaluates_the_weights(tiny):
    keys = {"ema_decay": 0.0, "sparse_embeddings": True}
    weights, _, _, run = fitted(tiny, "BPR", ["ema"], **keys)
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(weights[name], value)


def test_clippy_shortens_the_state_of_lazy_momentum(tiny):
    """Refused for torch's sparse momentum, which moves every row."""
    keys = {"learner_momentum": 0.9, "clippy_clip_state": True, **KEYS["clippy"]}
    weights, figures, start, run = fitted(
        tiny, "BPR", ["clippy"], sparse_embeddings=True, weight_decay=0.01, **keys
    )
    assert figures["min/clippy_clipped"] > 0
    assert all(w.isfinite().all() for w in weights.values())
    assert run.trainer.optimizer.state[run.model.item_embedding.weight]["momentum_buffer"].any()


def test_all_at_once(tiny):
    names = ["ema", "sam", "label_smoothing", "embedding_attack", "gradient_accumulation", "clippy"]
    names += ["gradient_centralization", "clip_norm", "lr_schedule", "monitor", "divergence_guard"]
    keys = {key: value for name in names for key, value in KEYS[name].items()}
    dense = fitted(tiny, "BPR", names, **keys)[0]
    sparse = fitted(tiny, "BPR", names, sparse_embeddings=True, **keys)[0]
    for name, weight in sparse.items():
        torch.testing.assert_close(weight, dense[name], rtol=1e-3, atol=1e-4)
