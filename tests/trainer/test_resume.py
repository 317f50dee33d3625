"""An interrupted run goes on exactly."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recbole_adv import Config, checkpoint, load_data_and_model, run_recbole_adv
from recbole_adv.errors import CheckpointError, ConfigError, DataError
from recbole_adv.prepared_run import prepared_run

EIIL = {
    "backbone": "NeuMF",  # dropout: the random state matters
    "dropout_prob": 0.3,
    "max_start_epoch": 1,
    "penalty_start": 1,
    "penalty_schedule": "linear",
    "penalty_stop": 3,
    "max_interval": 2,
    "selection_start_epoch": 0,
    "learner": "adam",
    "max_learner": "rmsprop",
    "mf_embedding_size": 8,
    "mlp_embedding_size": 8,
}
LOW = {"enable_amp": True, "amp_dtype": "bfloat16"}
TENSOR = {"train_loader": "tensor"}
DYNAMIC = {"distribution": "popularity", "sample_num": 2, "dynamic": True, "candidate_num": 2}


def same(a, b, path=""):
    """Two trees of tensors and numbers are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{path}[{index}]")
    elif hasattr(a, "tobytes"):
        assert a.tobytes() == b.tobytes(), path
    else:
        assert a == b or (a != a and b != b), f"{path}: {a} != {b}"


def state_of(run_dir):
    """A finished run's last checkpoint, without what names the run."""
    state = checkpoint.load(os.path.join(run_dir, "last.pth"))
    del state["config"]
    return state


@pytest.mark.parametrize(
    "model, settings",
    [
        ("EIIL", {**EIIL, "game_update": "shared_graph"}),
        ("EIIL", {**EIIL, "game_update": "separate_forward"}),
        ("EIIL", {**EIIL, "generator": "table", "inference": "one_shot", "one_shot_epochs": 2}),
        ("EIIL", {**EIIL, "max_data": "fresh", "max_unit": "step"}),
        ("EIIL", {**EIIL, **LOW, "game_update": "shared_graph", "learner_fused": True}),
        ("EIIL", {**EIIL, **LOW, "game_update": "separate_forward", "max_learner_foreach": True}),
        ("SASRec", {**LOW, "learner_foreach": True}),
        ("GroupDRO", {"n_environments": 3}),
        ("IRM", {"penalty_start": 3, "n_environments": 3}),
        ("CKE", {}),
        ("RecVAE", {"train_neg_sample_args": None}),
        ("SASRec", {}),
        ("EIIL", {**EIIL, **TENSOR, "max_data": "fresh", "max_unit": "step"}),
        ("CKE", TENSOR),
        ("RecVAE", {**TENSOR, "train_neg_sample_args": None}),
        ("SASRec", TENSOR),
        ("NeuMF", {**TENSOR, "train_neg_sample_args": DYNAMIC, "train_positives": "user_uniform"}),
    ],
)
def test_four_epochs_are_two_and_two(model, settings, settings_of):
    given = settings_of(model, epochs=4, **settings)
    whole = run_recbole_adv(model, "checkerboard", config_dict=given)
    half = run_recbole_adv(model, "checkerboard", config_dict={**given, "epochs": 2})
    rest = run_recbole_adv(resume=half["run_dir"], config_dict={"epochs": 4})
    assert rest["run_dir"] == half["run_dir"]
    for key in ("best_valid_score", "best_valid_result", "test_result"):
        assert rest[key] == whole[key]
    same(state_of(rest["run_dir"]), state_of(whole["run_dir"]))
    lines = Path(half["run_dir"], "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]


@pytest.mark.parametrize("loader", ["recbole", "tensor"])
def test_goes_on_after_kill_in_the_middle_of_an_epoch(loader, settings_of):
    changed = {"dropout_prob": 0.2, "train_batch_size": 24, "train_loader": loader}
    given = settings_of("EIIL", epochs=5, **{**EIIL, **changed})
    whole = run_recbole_adv("EIIL", "checkerboard", config_dict=given)
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from recbole_adv import run_recbole_adv\n"
        f"run_recbole_adv('EIIL', 'checkerboard', config_dict={given!r} | {{'run_dir': 'killed'}})"
    )
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    metrics, deadline = Path("killed/metrics.jsonl"), time.time() + 120
    while time.time() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= 2:
            break
        time.sleep(0.005)
    time.sleep(0.02)  # into the next epoch
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    rest = run_recbole_adv(resume="killed")
    assert rest["test_result"] == whole["test_result"]
    same(state_of("killed"), state_of(whole["run_dir"]))


def test_best_model_can_be_loaded_with_its_data(settings_of):
    done = run_recbole_adv("EIIL", "checkerboard", config_dict=settings_of("EIIL", **EIIL))
    config, model, dataset, train, valid, test = load_data_and_model(f"{done['run_dir']}/model.pth")
    from recbole_adv.trainer import trainer_class

    trainer = trainer_class(config.model_class)(config, model)
    assert trainer.evaluate(test, load_best_model=False) == done["test_result"]


@pytest.mark.parametrize("early", [False, True])
def test_resuming_a_finished_run_only_tests_it_again(early, settings_of):
    """The best model is not the last one, and stays what it is."""
    stop = {"stopping_step": 0, "learning_rate": 1.0, "epochs": 20} if early else {"epochs": 3}
    done = run_recbole_adv("BPR", "checkerboard", config_dict=settings_of("BPR", **stop))
    epochs = Path(done["run_dir"], "metrics.jsonl").read_text().count("\n")
    assert epochs < 20
    best = Path(done["run_dir"], "model.pth").read_bytes()
    assert run_recbole_adv(resume=done["run_dir"])["test_result"] == done["test_result"]
    assert Path(done["run_dir"], "model.pth").read_bytes() == best
    assert Path(done["run_dir"], "metrics.jsonl").read_text().count("\n") == epochs


def test_runs_of_the_same_second_share_no_file(settings_of):
    given = settings_of("BPR", epochs=1)
    first, second = (run_recbole_adv("BPR", "checkerboard", config_dict=given) for _ in range(2))
    assert first["run_dir"] != second["run_dir"]
    shared = {**given, "checkpoint_dir": "mine"}
    for _ in range(2):
        run_recbole_adv("BPR", "checkerboard", config_dict=shared)
    assert len(list(Path("mine").glob("*.pth"))) == 4  # a best and a last of each


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"embedding_size": 16}, "does not fit this model"),
        ({"learner": "sgd"}, "is Adam, but the configuration makes SGD"),
        ({"model": "LightGCN"}, "holds a BPR, not a LightGCN"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(changed, words, tiny, settings_of):
    given = settings_of("BPR", epochs=1)
    done = run_recbole_adv("BPR", "checkerboard", config_dict=given)
    model = changed.pop("model", "BPR")
    other = tiny(model, **{**given, **changed})
    with pytest.raises(CheckpointError, match=words):
        other.trainer.resume_checkpoint(f"{done['run_dir']}/last.pth")


def test_a_failed_write_keeps_the_old_checkpoint(tiny, monkeypatch):
    run = tiny("BPR")
    run.trainer._save_checkpoint(0, verbose=False)
    before = Path(run.trainer.saved_model_file).read_bytes()
    monkeypatch.setattr(
        torch, "save", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space"))
    )
    with pytest.raises(CheckpointError, match="No space"):
        run.trainer._save_checkpoint(1, verbose=False)
    assert Path(run.trainer.saved_model_file).read_bytes() == before
    assert not [f for f in Path(run.trainer.checkpoint_dir).iterdir() if "tmp" in f.name]


def test_a_learning_rate_that_is_given_now_counts(settings_of):
    done = run_recbole_adv("BPR", "checkerboard", config_dict=settings_of("BPR", epochs=1))
    before = checkpoint.load(f"{done['run_dir']}/last.pth")["state_dict"]
    given = {"epochs": 2, "learning_rate": 0.0}
    rest = run_recbole_adv(resume=done["run_dir"], config_dict=given)
    same(checkpoint.load(f"{rest['run_dir']}/last.pth")["state_dict"], before)


def contents(folder):
    """Every file below a directory, byte for byte."""
    return {file: file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def epochs_of(run_dir):
    lines = Path(run_dir, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


@pytest.mark.parametrize("resumed", ["copy", "copy/last.pth"])
def test_a_copied_run_goes_on_in_the_copy(resumed, settings_of):
    given = settings_of("BPR", epochs=4, state="info")
    whole = run_recbole_adv("BPR", "checkerboard", config_dict={**given, "state": "error"})
    run_recbole_adv("BPR", "checkerboard", config_dict={**given, "epochs": 2, "run_dir": "first"})
    shutil.copytree("first", "copy")
    before = contents("first")
    rest = run_recbole_adv(resume=resumed, config_dict={"epochs": 4})
    assert contents("first") == before
    assert rest["run_dir"] == str(Path("copy").absolute())
    assert rest["test_result"] == whole["test_result"]
    assert epochs_of("copy") == [0, 1, 2, 3]
    assert f"the run was at {Path('first').absolute()}" in Path("copy/run.log").read_text()
    shutil.rmtree("first")
    again = run_recbole_adv(resume="copy")
    assert again["test_result"] == whole["test_result"] and not Path("first").exists()


def test_a_run_goes_on_in_another_directory_with_its_best_model(settings_of):
    """Epochs with a rate of zero do not improve: the best model is the first run's."""
    given = settings_of("BPR", epochs=2, run_dir="first")
    done = run_recbole_adv("BPR", "checkerboard", config_dict=given)
    before = contents("first")
    for to, resumed in (("a", "first"), ("b", "first/model.pth")):
        other = {"epochs": 3, "learning_rate": 0.0, "run_dir": to}
        rest = run_recbole_adv(resume=resumed, config_dict=other)
        assert rest["test_result"] == done["test_result"]
        assert Path(rest["run_dir"], "last.pth").exists()
    assert contents("first") == before
    run_recbole_adv("BPR", "checkerboard", config_dict={**given, "run_dir": "second"})
    with pytest.raises(ConfigError, match="run_dir 'second' holds a run of BPR; write --resume="):
        run_recbole_adv(resume="first", config_dict={"run_dir": "second"})


@pytest.mark.parametrize("resumed", ["one", "shared/one.pth", "shared/one-last.pth"])
def test_a_run_whose_checkpoints_are_elsewhere_stays_where_it_is(resumed, settings_of):
    given = settings_of("BPR", epochs=1, run_dir="one", checkpoint_dir="shared")
    run_recbole_adv("BPR", "checkerboard", config_dict=given)
    rest = run_recbole_adv(resume=resumed, config_dict={"epochs": 2})
    assert rest["run_dir"] == str(Path("one").absolute()) and epochs_of("one") == [0, 1]
    assert {file.name for file in Path("shared").iterdir()} == {"one.pth", "one-last.pth"}
    assert not list(Path("one").glob("*.pth"))


def test_data_path_means_the_same_when_a_run_goes_on(settings_of):
    given = settings_of("BPR", epochs=1, run_dir="one")
    shutil.copytree(Path(given["data_path"], "checkerboard"), "moved/checkerboard")
    run_recbole_adv("BPR", "checkerboard", config_dict=given)
    for epochs in (2, 3):  # the key stays in config.yaml as it was given
        run_recbole_adv(resume="one", config_dict={"epochs": epochs, "data_path": "moved"})
        assert "data_path: moved\n" in Path("one/config.yaml").read_text()
    with pytest.raises(DataError, match="data_path to the directory that holds checkerboard"):
        run_recbole_adv(resume="one", config_dict={"data_path": "moved/checkerboard"})


def test_a_factor_of_the_rates_counts_for_those_given_now(tiny, settings_of):
    """What divergence_guard has made of them; only the weight decay is given anew."""
    half = tiny("BPR", epochs=1, run_dir="half").fit()
    half.set_rate_factor(0.5)
    half._save_checkpoint(0, verbose=False, saved_model_file="half.pth")
    given = settings_of("BPR", epochs=2, run_dir="rest", weight_decay=0.125)
    config = Config("BPR", "checkerboard", config_dict=given)
    with prepared_run(config, "half.pth", new_rates=True) as run:
        (group,) = run.trainer.optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (0.005, 0.125)
        run.trainer.set_rate_factor(0.25)
        assert group["lr"] == 0.0025
