"""RecBole's own code on today's stack, as it is after ``import recbole_adv``."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
import textwrap
import warnings
from collections import OrderedDict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse

import recbole_adv
from recbole_adv import compat, compat_quick_start
from recbole_adv.errors import RecBoleAdvError

ROOT = Path(recbole_adv.__file__).parents[1]


def write_toy(folder: Path) -> dict:
    """A dataset of 12 users and 10 items, each user with 5 of them; the settings to use it."""
    (folder / "toy").mkdir()
    lines = ["user_id:token\titem_id:token"]
    lines += [f"u{u}\ti{(u + 2 * k) % 10}" for u in range(12) for k in range(5)]
    (folder / "toy" / "toy.inter").write_text("\n".join(lines))
    return {
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id"]},
        "gpu_id": "",
        "embedding_size": 4,
        "epochs": 2,
        "topk": [3],
        "valid_metric": "MRR@3",
        "show_progress": False,
        "state": "ERROR",
    }


@pytest.fixture
def stock(tmp_path):
    """``stock(model)``: RecBole's own trainer of it, and its train, valid and test data."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.trainer.trainer import PretrainTrainer
    from recbole.utils import get_model

    settings = write_toy(tmp_path) | {"pretrain_epochs": 1, "save_step": 1, "reg_weight": 1.0}

    def make(name):
        config = Config(name, "toy", config_dict=dict(settings))
        data = data_preparation(config, create_dataset(config))
        model = get_model(name)(config, data[0].dataset)
        return PretrainTrainer(config, model), *data  # Trainer, and one method more

    return make


def run_python(code: str, folder: Path) -> dict:
    """Run ``code`` in a fresh interpreter; the JSON that it prints last."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


# --- apply --------------------------------------------------------------------------------------


def test_a_second_apply_changes_nothing():
    from recbole.model.abstract_recommender import AbstractRecommender
    from recbole.trainer import hyper_tuning
    from recbole.trainer.trainer import Trainer

    def patched():
        return (
            list(sys.meta_path),
            sparse.dok_matrix._update,
            Trainer._save_checkpoint,
            AbstractRecommender.load_other_parameter,
            hyper_tuning.exhaustive_search,
        )

    before = patched()
    compat.apply()
    assert patched() == before


def test_pandas_3_is_refused(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "3.0.1" if name == "pandas" else version(name)
    )
    with pytest.raises(RecBoleAdvError, match="found pandas 3.0.1; run: pip install 'pandas<3'"):
        compat.apply()


def test_a_torch_that_reads_pickles_needs_no_plain_checkpoints(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.5.1")
    compat.write_plain_checkpoints(SimpleNamespace())  # would look for Trainer
    compat.read_plain_other_parameter(SimpleNamespace())


def test_a_hyperopt_without_generators_needs_no_other_search(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.2.5")
    compat.mend_exhaustive_search(SimpleNamespace())  # would look for exhaustive_search


def test_importing_us_imports_nothing_heavy(tmp_path):
    seen = run_python(
        """
        import json, sys
        import recbole_adv
        heavy = ["ray", "hyperopt", "matplotlib", "plotly", "recbole.quick_start", "thop"]
        from recbole.data.interaction import Interaction  # before any Config
        value = Interaction({"a": [1.5, 2.0]})["a"].tolist()
        print(json.dumps({"loaded": [m for m in heavy if m in sys.modules], "value": value}))
        """,
        tmp_path,
    )
    assert seen == {"loaded": [], "value": [1.5, 2.0]}


# --- numpy and scipy ----------------------------------------------------------------------------


def test_the_names_that_recbole_wants_of_numpy_are_what_they_were():
    assert (np.float_, np.complex_, np.unicode_) == (np.float64, np.complex128, np.str_)
    assert (np.float, np.str, np.object) == (np.float64, np.str_, np.object_)


def test_no_name_that_numpy_has_is_replaced(monkeypatch):
    monkeypatch.setattr(np, "float_", "numpy's own", raising=False)
    compat.restore_numpy_names()
    assert np.float_ == "numpy's own"


def test_a_dok_matrix_takes_a_dict_as_it_used_to():
    rows, cols = np.array([0, 2, 2], dtype=np.int32), np.array([1, 0, 2], dtype=np.int32)
    matrix = sparse.dok_matrix((3, 3), dtype=np.float32)
    matrix._update(dict(zip(zip(rows, cols), [1] * 3)))
    matrix._update({(2, 0): 5})
    expected = sparse.coo_matrix((np.float32([1, 5, 1]), (rows, cols)), shape=(3, 3)).tocsr()
    assert matrix.nnz == 3 and matrix.dtype == np.float32
    assert (matrix.tocsr() != expected).nnz == 0
    assert (matrix > 0).sum(axis=1).tolist() == [[1], [0], [2]]


def test_lightgcn_gets_the_normalised_adjacency(stock):
    trainer, train_data, _, _ = stock("LightGCN")
    model = trainer.model
    links = train_data.dataset.inter_matrix(form="csr").toarray()
    n_users = len(links)
    adjacency = np.zeros((sum(links.shape),) * 2)
    adjacency[:n_users, n_users:], adjacency[n_users:, :n_users] = links, links.T
    scale = (adjacency.sum(1) + 1e-7) ** -0.5
    expected = torch.tensor(scale[:, None] * adjacency * scale, dtype=torch.float32)
    assert torch.allclose(model.norm_adj_matrix.to_dense(), expected, rtol=1e-6)
    assert expected.count_nonzero() > 0


# --- checkpoints of stock trainers --------------------------------------------------------------


def test_a_stock_trainer_reads_back_what_it_wrote(stock):
    trainer, train_data, valid_data, _ = stock("BPR")
    _, best = trainer.fit(train_data, valid_data, verbose=False)
    raw = torch.load(trainer.saved_model_file, weights_only=True)
    assert raw["config"]["model"] == "BPR" and type(raw["best_valid_score"]) is float
    for parameter in trainer.model.parameters():
        parameter.data.zero_()
    assert trainer.evaluate(valid_data, load_best_model=True) == best
    trainer.resume_checkpoint(trainer.saved_model_file)
    assert trainer.start_epoch == raw["epoch"] + 1
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, raw["state_dict"][name]) and weight.any()


@pytest.mark.parametrize("name", ["EASE", "ItemKNN"])
def test_a_model_made_of_matrices_is_evaluated_from_its_file(name, stock):
    trainer, train_data, valid_data, _ = stock(name)
    trainer.eval_collector.data_collect(train_data)
    expected = trainer.evaluate(valid_data, load_best_model=False)
    trainer._save_checkpoint(0, verbose=False)
    kinds = {key: type(value) for key, value in trainer.model.other_parameter().items()}
    for key in trainer.model.other_parameter_name:
        setattr(trainer.model, key, None)
    assert trainer.evaluate(valid_data, load_best_model=True) == expected
    assert {key: type(value) for key, value in trainer.model.other_parameter().items()} == kinds
    assert any(value > 0 for value in expected.values())


def test_a_pretrained_model_is_written_as_data(stock, tmp_path):
    trainer, *_ = stock("BPR")
    trainer.save_pretrained_model(4, str(tmp_path / "pre.pth"))
    assert trainer.saved_model_file == str(tmp_path / "pre.pth")
    raw = torch.load(tmp_path / "pre.pth", weights_only=True)
    assert raw["epoch"] == 4
    weight = trainer.model.user_embedding.weight
    assert torch.equal(raw["state_dict"]["user_embedding.weight"], weight)


def test_only_the_first_of_several_processes_writes(stock, tmp_path):
    trainer, *_ = stock("BPR")
    trainer.config["single_spec"], trainer.config["local_rank"] = False, 1
    trainer._save_checkpoint(0, saved_model_file=str(tmp_path / "a.pth"))
    assert not (tmp_path / "a.pth").exists()


# --- hyper-parameter search ---------------------------------------------------------------------


def test_exhaustive_search_tries_every_combination(tmp_path, monkeypatch):
    import webbrowser

    from recbole.trainer import HyperTuning

    monkeypatch.setattr(webbrowser, "open", lambda *args, **kwargs: True)
    tried = []

    def objective(config_dict, config_file_list):
        tried.append((config_dict["a"], config_dict["b"]))
        score = config_dict["a"] + config_dict["b"]
        result = {"best_valid_result": {}, "test_result": {}, "valid_score_bigger": True}
        return {"model": "BPR", "best_valid_score": score, **result}

    tuning = HyperTuning(
        objective,
        params_dict={"choice": {"a": [1, 2, 3], "b": [10, 20]}},
        display_file=str(tmp_path / "plot.html"),
    )
    tuning.run()
    assert sorted(tried) == [(a, b) for a in (1, 2, 3) for b in (10, 20)]
    assert tuning.best_score == 23
    assert (tmp_path / "plot.html").stat().st_size > 1000


# --- recbole.quick_start ------------------------------------------------------------------------


def test_quick_start_is_mended_when_it_is_imported(monkeypatch):
    import recbole.quick_start as package

    module = importlib.import_module("recbole.quick_start.quick_start")
    assert isinstance(module.tune, compat_quick_start.ForgivingTune)
    assert package.load_data_and_model is module.load_data_and_model
    assert "def run_recbole" in inspect.getsource(module)
    assert type(module.__spec__.loader).__name__ == "SourceFileLoader"

    ours = ModuleType("recbole_adv.quick_start")
    ours.load_data_and_model = lambda model_file: ("ours", model_file)
    monkeypatch.setitem(sys.modules, "recbole_adv.quick_start", ours)
    assert package.load_data_and_model("a.pth") == ("ours", "a.pth")


def test_a_quick_start_imported_before_us_is_mended_in_place():
    package = importlib.import_module("recbole.quick_start")
    module = importlib.import_module("recbole.quick_start.quick_start")
    mended = module.load_data_and_model
    module.load_data_and_model = package.load_data_and_model = mended.__wrapped__
    module.tune = module.tune._tune
    compat.apply()
    assert module.load_data_and_model is not mended.__wrapped__
    assert package.load_data_and_model is module.load_data_and_model
    assert isinstance(module.tune, compat_quick_start.ForgivingTune)
    flops = module.get_flops
    compat.apply()
    assert module.get_flops is flops


def test_a_report_outside_a_trial_is_silent():
    module = importlib.import_module("recbole.quick_start.quick_start")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module.tune.report(**{"recall@10": 0.5}) is None


def test_a_report_reaches_ray_as_one_dict():
    reports = []
    tune = compat_quick_start.ForgivingTune(SimpleNamespace(report=reports.append, grid_search=3))
    tune.report(**OrderedDict({"recall@10": 0.5, "mrr@10": 0.25}))
    tune.report({"epoch": 1})
    assert reports == [{"recall@10": 0.5, "mrr@10": 0.25}, {"epoch": 1}]
    assert tune.grid_search == 3


def test_a_failure_to_count_flops_is_no_failure():
    def no_thop():
        raise ModuleNotFoundError("No module named 'thop'")

    def broken():
        raise ValueError("something else")

    assert compat_quick_start.forgiving_flops(no_thop)() == "n/a"
    with pytest.raises(ValueError, match="something else"):
        compat_quick_start.forgiving_flops(broken)()


def test_stock_run_recbole_works_without_ray_kmeans_and_thop(tmp_path):
    settings = write_toy(tmp_path)
    seen = run_python(
        f"""
        import json, sys, torch, warnings
        warnings.simplefilter("ignore")

        class Absent:
            names = {{"ray", "kmeans_pytorch", "thop"}}
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in self.names:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Absent())
        import recbole_adv
        from recbole.quick_start import run_recbole
        result = run_recbole("BPR", "toy", config_dict={settings!r})
        from recbole.model.general_recommender import ldiffrec
        try:
            ldiffrec.AutoEncoder(torch.ones(4, 2), 2, [4], [4], "cpu", "tanh")
        except ImportError as error:
            message = str(error)
        print()
        print(json.dumps({{
            "left": [name for name in sys.modules if name.split(".")[0] in Absent.names],
            "metrics": sorted(result["test_result"]),
            "kmeans": message,
        }}))
        """,
        tmp_path,
    )
    assert seen["left"] == []
    assert "mrr@3" in seen["metrics"]
    assert "kmeans_pytorch" in seen["kmeans"]


def test_importing_sequential_models_leaves_anomaly_detection_alone():
    """RecBole's SINE switches it on for the whole process."""
    code = (
        "import recbole_adv, torch\n"
        "import recbole.model.sequential_recommender.sasrec\n"
        "import sys; assert 'recbole.model.sequential_recommender.sine' in sys.modules\n"
        "print(torch.is_anomaly_enabled())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["False"], done.stderr
