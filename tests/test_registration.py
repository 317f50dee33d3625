"""After ``import recbole_adv``, RecBole's own functions know our models and a user's."""

import copy
import importlib
import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from recbole.config import Config as StockConfig
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.general_recommender import BPR
from recbole.utils import InputType, ModelType, get_model, get_trainer
from torch import nn

from recbole_adv import Config, cli, discovery, run_recbole_adv
from recbole_adv.errors import ConfigError
from recbole_adv.model.invariant_recommender.eiil import EIIL
from recbole_adv.quick_start import objective_function
from recbole_adv.trainer import AdvTrainer, INVTrainer

pytestmark = pytest.mark.contract


@pytest.fixture(autouse=True)
def nothing_stays():
    """A class that a test defines, and the handlers of RecBole's logger, go with the test."""
    models, root = dict(discovery.user_models), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    discovery.user_models.clear()
    discovery.user_models.update(models)
    root.handlers[:] = handlers
    root.setLevel(level)


class Rivals(BPR):
    """A user's own game: the adversary reweighs users, within bounds, against the recommender."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.env_generator = nn.Embedding(self.n_users, 1)

    def calculate_loss(self, interaction):
        user = self.user_embedding(interaction[self.USER_ID])
        item, other = interaction[self.ITEM_ID], interaction[self.NEG_ITEM_ID]
        better = (user * self.item_embedding(item)).sum(dim=-1)
        worse = (user * self.item_embedding(other)).sum(dim=-1)
        weight = 1 + self.env_generator(interaction[self.USER_ID]).tanh().squeeze(-1)
        return (weight * nn.functional.softplus(worse - better)).mean()

    calculate_max_objective = calculate_loss


USERS_MODEL = """
from recbole.model.general_recommender import BPR

class {name}(BPR):
    pass
"""


def stock_run(model, settings):
    from recbole.quick_start import run_recbole

    return run_recbole(model=model, dataset="checkerboard", config_dict=copy.deepcopy(settings))


# --- looking up ---------------------------------------------------------------------------------


def test_stock_get_model_finds_ours_and_users():
    assert get_model("EIIL") is EIIL
    assert get_model("Rivals") is Rivals is discovery.find_model("Rivals")
    assert get_model("BPR") is BPR
    assert importlib.import_module("recbole.model.general_recommender.eiil").EIIL is EIIL
    with pytest.raises((ValueError, ImportError), match="."):
        get_model("NoSuchModel")


def test_a_class_that_is_defined_again_takes_effect():
    first = type("Again", (BPR,), {"__module__": "notebook"})
    assert get_model("Again") is first
    second = type("Again", (BPR,), {"__module__": "notebook"})
    assert get_model("Again") is second is discovery.find_model("Again")


def test_recboles_own_names_win_and_find_model_refuses_two_of_a_name():
    mine = type("LightGCN", (BPR,), {"__module__": "my_models"})
    stock = get_model("LightGCN")
    assert stock is not mine and stock.__module__ == "recbole.model.general_recommender.lightgcn"
    words = (
        "two models are called LightGCN: recbole.*lightgcn and my_models; rename yours, or write"
    )
    with pytest.raises(ConfigError, match=f"{words} my_models:LightGCN"):
        discovery.find_model("LightGCN")
    assert discovery.find_model(mine) is mine
    ours = type("EIIL", (BPR,), {"__module__": "my_models"})
    with pytest.raises(
        ConfigError, match="two models are called EIIL: recbole_adv.*my_models:EIIL"
    ):
        discovery.find_model("EIIL")
    assert discovery.user_models["EIIL"] is ours


@pytest.mark.parametrize(
    "written, meant", [("eiil", "EIIL"), ("rivals", "Rivals"), ("lightgcn", "LightGCN")]
)
def test_a_difference_in_case_is_suggested(written, meant):
    with pytest.raises(ConfigError, match=f"no model called '{written}'; did you mean {meant}"):
        discovery.find_model(written)
    with pytest.raises(AttributeError, match=written):
        get_model(written)


def test_stock_get_trainer_makes_ours(tiny):
    run = tiny("EIIL")
    made = get_trainer(ModelType.GENERAL, "EIIL")(run.config, run.model)
    assert type(made) is INVTrainer
    over_graph = tiny("EIIL", backbone="CKE")
    made = get_trainer(ModelType.KNOWLEDGE, "EIIL")(over_graph.config, over_graph.model)
    assert [cls.__name__ for cls in type(made).__mro__[1:3]] == ["KGTrainer", "INVTrainer"]
    mine = tiny("Rivals")
    assert type(get_trainer(ModelType.GENERAL, "Rivals")(mine.config, mine.model)) is INVTrainer
    one = type("Plain", (BPR,), {"__module__": "notebook"})
    run = tiny(one)
    assert type(get_trainer(ModelType.GENERAL, "Plain")(run.config, run.model)) is AdvTrainer
    stock = get_trainer(ModelType.GENERAL, "BPR")
    assert stock.__module__ == "recbole.trainer.trainer" and not issubclass(stock, AdvTrainer)
    recvae = get_trainer(ModelType.GENERAL, "RecVAE")
    assert recvae.__name__ == "RecVAETrainer"


# --- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize("made_by", [StockConfig, Config])
def test_properties_have_a_built_ins_precedence(made_by):
    config = made_by("EIIL", "ml-100k")
    assert config["max_modules"] == ["env_generator"]  # overall
    assert config["max_interval"] == 3  # the model's, above overall's 1
    assert config["epochs"] == 300  # RecBole's overall
    assert config["USER_ID_FIELD"] == "user_id"
    assert config["embedding_size"] == 64  # the backbone's
    assert config.model == "EIIL" and config.model_class.backbone_class is BPR
    given = {"max_interval": 5, "backbone": "LightGCN", "max_learning_rate": 0.5}
    config = made_by("EIIL", "ml-100k", config_dict=given)
    assert config["max_interval"] == 5 and config["max_learning_rate"] == 0.5
    light = StockConfig("LightGCN", "ml-100k")
    assert config["n_layers"] == light["n_layers"] is not None
    assert config["reg_weight"] == light["reg_weight"]
    assert config.model_class.backbone_class.__name__ == "LightGCN"
    assert StockConfig("BPR", "ml-100k")["n_layers"] is None  # not left over from before


@pytest.mark.parametrize("made_by", [StockConfig, Config])
def test_a_users_yaml_lies_between_overall_and_dataset(made_by, tmp_path, monkeypatch):
    name = f"Between{made_by.__module__.split('.')[0].title().replace('_', '')}"
    (tmp_path / f"module_of_{name.lower()}.py").write_text(USERS_MODEL.format(name=name))
    values = {"epochs": 7, "topk": [3], "USER_ID_FIELD": "no_such", "max_interval": 4}
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**values, "my_own_key": 1}))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module(f"module_of_{name.lower()}")
    config = made_by(name, "ml-100k", config_dict={"topk": [5], "valid_metric": "MRR@5"})
    assert config["epochs"] == 7  # above RecBole's overall
    assert config["max_interval"] == 4  # above ours
    assert config["my_own_key"] == 1
    assert config["USER_ID_FIELD"] == "user_id"  # below the data set's
    assert config["topk"] == [5]  # below the dict


def test_sequential_and_knowledge_backbones_bring_their_kind():
    given = {"backbone": "SASRec", "train_neg_sample_args": None}
    sequential = StockConfig("EIIL", "ml-100k", config_dict=given)
    assert sequential["MODEL_TYPE"] == ModelType.SEQUENTIAL
    assert sequential["MODEL_INPUT_TYPE"] == InputType.POINTWISE
    knowledge = StockConfig("EIIL", "ml-100k", config_dict={"backbone": "CKE"})
    assert knowledge["MODEL_TYPE"] == ModelType.KNOWLEDGE
    assert knowledge["MODEL_INPUT_TYPE"] == InputType.PAIRWISE


EVIL = "__import__('os').system('touch pwned')"


@pytest.mark.parametrize(
    "key",
    ["max_learner", "max_modules", "game_update", "inference_objective", "environment_source"],
)
def test_a_string_of_ours_is_never_run(key, monkeypatch):
    model = "IRM" if key == "environment_source" else "EIIL"
    config = StockConfig(model, "checkerboard", config_dict={key: EVIL})
    assert config[key] == EVIL
    with pytest.raises(ConfigError):
        Config(model, "checkerboard", config_dict={key: EVIL})
    monkeypatch.setattr("sys.argv", ["test", f"--{key}={EVIL.replace('=', ' ')}"])
    assert StockConfig(model, "checkerboard")[key] == EVIL
    assert not Path("pwned").exists()


def test_no_string_at_all_is_run_by_our_config():
    config = Config("BPR", "ml-100k", config_dict={"note": EVIL, "n_notes": "[1, 2]"})
    assert config["note"] == EVIL and config["n_notes"] == [1, 2]
    assert not Path("pwned").exists()


# --- runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["BPR", "SASRec"])
def test_stock_run_recbole_trains_ours(backbone, settings_of):
    settings = settings_of("EIIL", backbone=backbone, max_start_epoch=1, penalty_start=1)
    result = stock_run("EIIL", settings)
    ours = run_recbole_adv("EIIL", "checkerboard", config_dict=settings)
    for key in ("best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"):
        assert result[key] == ours[key], key


def test_a_users_game_trains_by_name_in_both(settings_of):
    settings = settings_of("BPR", learning_rate=0.05, epochs=4)
    stock = stock_run("Rivals", settings)
    ours = run_recbole_adv("Rivals", "checkerboard", config_dict=settings)
    assert stock["test_result"] == ours["test_result"]
    assert ours["test_result"]["recall@10"] > 0.4
    lines = Path(ours["run_dir"], "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4 and all('"max/objective"' in line for line in lines)


def test_stock_load_data_and_model_reads_our_checkpoint(settings_of):
    from recbole.quick_start import load_data_and_model

    done = run_recbole_adv("EIIL", "checkerboard", config_dict=settings_of("EIIL"))
    config, model, dataset, train, valid, test = load_data_and_model(f"{done['run_dir']}/model.pth")
    assert isinstance(model, EIIL) and config["model"] == "EIIL"
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    assert trainer.evaluate(test, load_best_model=False) == done["test_result"]


@pytest.mark.parametrize("whose", ["stock", "ours"])
def test_hyper_tuning(whose, settings_of, tmp_path):
    pytest.importorskip("hyperopt")
    from recbole.trainer import HyperTuning

    objective = objective_function
    if whose == "stock":
        from recbole.quick_start import objective_function as objective
    fixed = tmp_path / "fixed.yaml"
    settings = settings_of("EIIL", epochs=1, metrics=["Recall"], valid_metric="Recall@10")
    settings |= {"model": "EIIL", "dataset": "checkerboard", "max_start_epoch": 0}
    fixed.write_text(yaml.safe_dump(settings))
    tuning = HyperTuning(
        objective,
        params_dict={"choice": {"max_learning_rate": [0.001, 0.1]}},
        fixed_config_file_list=[str(fixed)],
    )
    tuning.run()
    results = {key: value["test_result"] for key, value in tuning.params2result.items()}
    assert set(results) == {"max_learning_rate:0.001", "max_learning_rate:0.1"}
    assert tuning.best_params["max_learning_rate"] in (0.001, 0.1)
    assert all(value["model"] == "EIIL" for value in tuning.params2result.values())
    assert all(set(result) == {"recall@10"} for result in results.values())


def test_our_objective_finds_our_models_in_a_spawned_process(settings_of):
    """The worker imports nothing but the function; that is the registration."""
    given = {**settings_of("EIIL", epochs=1), "model": "EIIL", "dataset": "checkerboard"}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(objective_function, (given,))
    here = objective_function(given)
    assert result["model"] == "EIIL"
    assert result["test_result"] == here["test_result"]


# --- where a model may be -----------------------------------------------------------------------


def test_model_as_a_file_with_a_yaml_beside_it(tmp_path, settings_of, capsys):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "mine.py").write_text(USERS_MODEL.format(name="FromFile"))
    (folder / "FromFile.yaml").write_text("embedding_size: 6\nmy_key: seven\n")
    settings = settings_of("BPR", epochs=1)
    del settings["embedding_size"]
    done = run_recbole_adv(f"{folder}/mine.py:FromFile", "checkerboard", config_dict=settings)
    config = yaml.safe_load(Path(done["run_dir"], "config.yaml").read_text())
    assert config["model"] == f"{folder}/mine.py:FromFile"
    weights = torch.load(f"{done['run_dir']}/model.pth", weights_only=True)["state_dict"]
    assert weights["user_embedding.weight"].shape == (61, 6)
    again = run_recbole_adv(
        None, None, config_file_list=[f"{done['run_dir']}/config.yaml"], config_dict={"epochs": 1}
    )
    assert again["test_result"] == done["test_result"]
    command = ["config", "-m", f"{folder}/mine.py:FromFile", "-d", "checkerboard"]
    assert cli.main([*command, f"--data_path={settings['data_path']}"]) == 0
    assert "my_key: 'seven'  [" in capsys.readouterr().out


def test_a_model_s_file_imports_what_lies_beside_it(tmp_path, monkeypatch):
    folder = tmp_path / "beside"
    folder.mkdir()
    (folder / "helper_of_beside.py").write_text("SIZE = 7\n")
    source = "from helper_of_beside import SIZE\n" + USERS_MODEL.format(name="WithHelper")
    (folder / "with_helper.py").write_text(source + "    size = SIZE\n")
    monkeypatch.setattr("sys.path", list(sys.path))
    written = f"{folder}/with_helper.py:WithHelper"
    assert discovery.find_model(written).size == 7
    monkeypatch.setattr("sys.argv", ["recbole-adv"])
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a worker that knows the path alone
        assert pool.apply(_size_of, (written,)) == 7


def _size_of(written):
    sys.path[:] = [path for path in sys.path if not path.endswith("beside")]
    return discovery.find_model(written).size


def test_model_as_package_and_module(tmp_path, monkeypatch):
    package = tmp_path / "somebodys_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "their_module.py").write_text(USERS_MODEL.format(name="InPackage"))
    folder = package / "properties" / "model"
    folder.mkdir(parents=True)
    (folder / "InPackage.yaml").write_text("embedding_size: 5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = Config("somebodys_package.their_module:InPackage", "ml-100k")
    assert config["embedding_size"] == 5 and config.model == "InPackage"
    with pytest.raises(ConfigError, match="has no class 'InPackaged'; did you mean InPackage"):
        Config("somebodys_package.their_module:InPackaged", "ml-100k")
    with pytest.raises(
        ConfigError, match="'somebodys_packet' .*cannot be imported: No module named"
    ):
        Config("somebodys_packet:InPackage", "ml-100k")


def test_model_as_a_class():
    config = Config(Rivals, "ml-100k")
    assert config.model_class is Rivals and config["model"] == "Rivals"
    assert Config(EIIL, "ml-100k", config_dict={"backbone": "NeuMF"})["mlp_hidden_size"] is not None
    with pytest.raises(ConfigError, match="Linear is not a RecBole model; derive it from General"):
        Config(nn.Linear, "ml-100k")


def test_an_abstract_class_of_ones_own_is_no_obstacle():
    base = type("MyBase", (GeneralRecommender,), {"__module__": "notebook"})
    child = type("MyChild", (base,), {"__module__": "notebook", "input_type": InputType.PAIRWISE})
    assert discovery.find_model("MyChild") is child


# --- what importing does not do -----------------------------------------------------------------

IMPORT_NOTHING = """
import sys
import recbole_adv, recbole_adv.cli
from recbole_adv import AdvTrainer, Config, INVTrainer, run_recbole_adv
unwanted = {"recbole.quick_start", "ray", "hyperopt", "matplotlib", "onnx", "wandb"}
print(sorted(unwanted & set(sys.modules)))
from recbole.utils import get_model
models = [name for name in sys.modules if name.startswith("recbole_adv.model.invariant_recomm")]
print([name for name in models if name.count(".") > 2])
print(get_model("EIIL").__module__)
"""


def test_importing_ours_imports_nothing_heavy_and_no_model():
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_NOTHING],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "[]", "recbole_adv.model.invariant_recommender.eiil"]
    assert os.listdir() == []


def test_a_model_of_recboles_without_a_property_file_has_its_name(tiny):
    """Random alone has none. In its module ``random`` is Python's."""
    assert {name.lower() for name in discovery.recbole_model_names()} == set(
        discovery.recbole_modules()
    )
    assert discovery.find_model("Random") is get_model("Random")
    with pytest.raises(ConfigError, match="no model called 'random'; did you mean Random"):
        discovery.find_model("random")
    run = tiny("Random")
    result = run.fit(saved=False).evaluate(run.test, load_best_model=False)
    assert 0 <= result["recall@10"] <= 1
