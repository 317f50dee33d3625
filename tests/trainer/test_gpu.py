"""What only a GPU can show; skipped where there is none."""

import pytest
import torch

from recbole_adv import run_recbole_adv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ON_GPU = {"use_gpu": True, "max_start_epoch": 0, "penalty_start": 0, "selection_start_epoch": 0}


@pytest.mark.parametrize("game_update", ["shared_graph", "separate_forward"])
@pytest.mark.parametrize("backbone", ["BPR", "LightGCN", "NeuMF"])
def test_trains_as_on_the_cpu(backbone, game_update, tiny):
    """The same losses to float32 accuracy: negatives and order come from the CPU's generators."""
    settings = {"backbone": backbone, "game_update": game_update, **ON_GPU, "dropout_prob": 0.0}
    gpu = tiny("EIIL", **settings).fit(saved=False)
    cpu = tiny("EIIL", **{**settings, "use_gpu": False}).fit(saved=False)
    assert next(gpu.model.parameters()).device.type == "cuda"
    for epoch, loss in cpu.train_loss_dict.items():
        assert gpu.train_loss_dict[epoch] == pytest.approx(loss, rel=1e-3)


def test_fp16_with_a_scaler_for_each_player(tiny):
    settings = {"enable_amp": True, "enable_scaler": True, "clip_grad_norm": {"max_norm": 1.0}}
    trainer = tiny("EIIL", **ON_GPU, **settings).fit(saved=False)
    assert set(trainer.scalers) == {"min", "max"}
    assert all(scaler.get_scale() > 0 for scaler in trainer.scalers.values())
    assert trainer.train_loss_dict[1] < trainer.train_loss_dict[0]


def test_resumes_exactly(settings_of):
    torch.use_deterministic_algorithms(True, warn_only=True)
    given = settings_of("EIIL", epochs=4, **ON_GPU, backbone="NeuMF", dropout_prob=0.3)
    whole = run_recbole_adv("EIIL", "checkerboard", config_dict=given)
    half = run_recbole_adv("EIIL", "checkerboard", config_dict={**given, "epochs": 2})
    rest = run_recbole_adv(resume=half["run_dir"], config_dict={"epochs": 4})
    assert rest["test_result"] == whole["test_result"]
    assert rest["best_valid_score"] == whole["best_valid_score"]


def test_steps_do_not_wait_for_the_device(tiny):
    """No synchronisation in 20 batches of an epoch beyond those of the loss check."""
    run = tiny("EIIL", **ON_GPU, monitor_interval=0, epochs=1)
    run.trainer._before_fit(run.train)
    run.trainer._train_epoch(run.train, 0)
    batches = [batch.to("cuda") for batch in run.train]
    turns, joint = run.trainer._turns(), run.trainer._joint()
    for turn in turns.values():
        turn.steps = 1  # the loss is read in every 50th step only
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            run.trainer.loop.engine.run_shared(list(turns.values()), joint, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("learner", ["adam", "row_adagrad"])
def test_sparse_embeddings_train_as_on_the_cpu(learner, tiny):
    settings = {**ON_GPU, "backbone": "BPR", "sparse_embeddings": True, "learner": learner}
    gpu = tiny("EIIL", **settings, techniques=["ema", "clip_norm"], clip_norm_max_norm=0.1)
    cpu_settings = {**settings, "use_gpu": False}
    cpu = tiny("EIIL", **cpu_settings, techniques=["ema", "clip_norm"], clip_norm_max_norm=0.1)
    losses = gpu.fit(saved=False).train_loss_dict
    assert gpu.model.backbone.item_embedding.weight.grad.is_sparse
    for epoch, loss in cpu.fit(saved=False).train_loss_dict.items():
        assert losses[epoch] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize(
    "technique",
    ["sam", "asam", "awp", "ema", "lr_schedule", "clip_norm", "clip_value", "agc", "clippy"]
    + ["gradient_accumulation", "gradient_noise", "monitor"],
)
def test_techniques_do_not_wait_for_the_device(technique, tiny):
    """test_no_waiting.py without a device; here torch itself tells of a synchronisation."""
    keys = {"clippy_embeddings": "rows", "gradient_noise_embeddings": True, "monitor_interval": 0}
    run = tiny("EIIL", techniques=[technique], **keys, **ON_GPU, epochs=1)
    run.trainer._before_fit(run.train)
    run.trainer._train_epoch(run.train, 0)
    batches = [batch.to("cuda") for batch in run.train]
    turns, joint = run.trainer._turns(), run.trainer._joint()
    for turn in turns.values():
        turn.steps = 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[:10]:
            run.trainer.loop.engine.run_shared(list(turns.values()), joint, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "SASRec"])
def test_fp16_with_a_scaler_of_one_player(model, tiny):
    """The scaler lets steps through, and the loss falls as in float32."""
    plain = tiny(model, **ON_GPU).fit(saved=False)
    low = tiny(model, **ON_GPU, enable_amp=True, amp_dtype="float16", enable_scaler=True)
    low.fit(saved=False)
    assert low.trainer.loop.steps_taken["min"] > len(low.train)
    for epoch, loss in plain.train_loss_dict.items():
        assert low.trainer.train_loss_dict[epoch] == pytest.approx(loss, rel=0.05)
