"""What a configuration resolves to, where each value came from, and what is refused."""

import copy
import importlib
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from recbole.config import Config as StockConfig
from recbole.utils import argument_list

from recbole_adv import Config, checkpoint, config_check, discovery, registration
from recbole_adv.config import literal
from recbole_adv.config_check import check_names_of
from recbole_adv.errors import ConfigError
from recbole_adv.game.optimizer import PLAYER_KEYS
from recbole_adv.game.schedule import Turns
from recbole_adv.options import Option, properties_dir, read_options

PROPERTY_FILES = [properties_dir() / "overall.yaml", *(properties_dir() / "model").glob("*.yaml")]
SOURCES = Path(registration.__file__).parent
NAMES = [file.stem for file in PROPERTY_FILES]
RECBOLES = {
    key
    for file in discovery.recbole_properties().rglob("*.yaml")
    for key in yaml.safe_load(file.read_text(encoding="utf-8")) or {}
}
"""Every key of RecBole's, of any of its models."""


def defaults_in(file):
    """A property file as RecBole reads it: plain YAML takes 1e-5 for a string."""
    loader = StockConfig._build_yaml_loader(None)
    return yaml.load(file.read_text(encoding="utf-8"), Loader=loader)


@pytest.fixture(autouse=True)
def gpu_variable(monkeypatch):
    """Whatever a Config sets is put back."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


# --- priority -----------------------------------------------------------------------------------


def test_priority_and_sources(tmp_path):
    """command line > dict > later file > earlier file > model > overall, one key at each step."""
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("epochs: 11\nmax_steps: 11\nmax_budget: 11\nseed: 11\n")
    second.write_text("epochs: 12\nmax_steps: 12\nmax_budget: 12\n")
    config = Config(
        "EIIL",
        "ml-100k",
        config_file_list=[str(first), str(second)],
        config_dict={"epochs": 13, "max_steps": 13},
        command_line=["--epochs=14"],
    )
    expected = {
        "epochs": (14, "command line"),
        "max_steps": (13, "config_dict"),
        "max_budget": (12, str(second)),
        "seed": (11, str(first)),
        "USER_ID_FIELD": ("user_id", "RecBole ml-100k.yaml"),
        "max_interval": (3, "recbole_adv EIIL.yaml"),
        "max_first": (False, "recbole_adv overall.yaml"),
        "embedding_size": (64, "RecBole BPR.yaml"),
        "train_batch_size": (2048, "RecBole overall.yaml"),
        "checkpoint_dir": (config["run_dir"], "run_dir"),
        "run_dir": (config["run_dir"], "made for this run"),
    }
    assert {key: (config[key], config.source_of[key]) for key in expected} == expected


def test_the_command_line_of_the_process_is_read_as_recbole_does(monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", "--epochs=5", "--topk=[3]", "stray", "--x", "y=1"])
    config = Config("BPR", "ml-100k", config_dict={"epochs": 6, "valid_metric": "MRR@3"})
    assert config["epochs"] == 5 and config["topk"] == [3]
    with pytest.raises(ConfigError, match="cannot read 'stray'"):
        Config("BPR", "ml-100k", command_line=["--epochs=5", "stray"])


def test_a_value_with_an_equals_sign_is_kept_whole():
    config = Config("BPR", "ml-100k", command_line=["--note=a=b"])
    assert config["note"] == "a=b"  # RecBole drops the argument


def test_a_checkout_in_a_folder_called_recbole(tmp_path, monkeypatch):
    """Our overall.yaml is not RecBole's, whatever the folders above it are called."""
    home = tmp_path / "recbole" / "properties"
    shutil.copytree(properties_dir(), home)
    for module in (
        registration,
        discovery,
        config_check,
        importlib.import_module("recbole_adv.config"),
    ):
        monkeypatch.setattr(module, "properties_dir", lambda: home)
    config = Config("EIIL", "ml-100k")
    assert config["max_interval"] == 3
    assert config.source_of["max_interval"] == "recbole_adv EIIL.yaml"
    assert config.source_of["epochs"] == "RecBole overall.yaml"


@pytest.mark.parametrize(
    "text, value",
    [
        ("1", 1),
        ("1e-3", 0.001),
        ("-2.5", -2.5),
        ("[64, 32]", [64, 32]),
        ("{'a': [1]}", {"a": [1]}),
        ("(1, 2)", (1, 2)),
        ("'quoted'", "quoted"),
        ("True", True),
        ("false", False),
        ("None", None),
        ("~", None),
        ("null", None),
        ("none", "none"),  # a value of max_data, and of RecBole's sampling
        ("BPR", "BPR"),
        ("MRR@10", "MRR@10"),
        ("[5,inf)", "[5,inf)"),
        ("", ""),
        ("1 + 1", "1 + 1"),
        ("print('hello')", "print('hello')"),
        ("__import__('os')", "__import__('os')"),
        ("(" * 300, "(" * 300),
        (3, 3),
        (None, None),
    ],
)
def test_literal(text, value):
    assert literal(text) == value and type(literal(text)) is type(value)


# --- the property files -------------------------------------------------------------------------


@pytest.mark.parametrize("file", PROPERTY_FILES, ids=NAMES)
def test_every_line_is_a_schema_that_its_default_passes(file):
    defaults = defaults_in(file)
    options = read_options(file)
    assert set(defaults) - set(options) <= RECBOLES, "a key of ours without a schema comment"
    for key, option in options.items():
        option.check(defaults[key])
        assert option.meaning.endswith(".") and len(option.meaning) > 10, key
        assert type(option).parse(key, option.kind, option.meaning) == option
        if option.choices:
            with pytest.raises(ConfigError):
                option.check("no such word")
    assert len(defaults) == sum(line[:1].isalpha() for line in file.read_text().splitlines())


def test_overall_has_only_keys_of_ours_each_with_its_schema():
    defaults = defaults_in(PROPERTY_FILES[0])
    assert set(read_options(PROPERTY_FILES[0])) == set(defaults)
    assert not set(defaults) & RECBOLES


def test_every_model_has_a_property_file_and_every_file_a_model():
    files = {file.stem for file in (properties_dir() / "model").glob("*.yaml")}
    assert {name.lower() for name in files} == set(discovery.own_modules())
    assert discovery.own_model_names() == sorted(files)
    for name in files:
        assert discovery.find_model(name).__name__ == name


def is_read(key, words):
    """Whether the code names the key, or the player and the setting that it is put together of."""
    settings = {*PLAYER_KEYS, *Turns.__dataclass_fields__, "techniques"}
    heads = {key.removesuffix(f"_{setting}") for setting in settings} - {key}
    argument = key.removeprefix("learner_") != key  # of a torch optimizer, see below
    return key in words or argument or bool(heads & words)


@pytest.mark.parametrize("file", PROPERTY_FILES, ids=NAMES)
def test_every_key_is_read_by_the_code(file):
    text = "\n".join(module.read_text(encoding="utf-8") for module in SOURCES.rglob("*.py"))
    words = set(re.findall(r"[\"'](\w+)[\"']", text))
    unread = [key for key in read_options(file) if not is_read(key, words)]
    assert set(unread) <= RECBOLES  # which a class of RecBole's above the model reads
    assert not is_read("max_colour", words) and not is_read("nobody_learning_rate", words)


def test_the_optimizers_arguments_are_those_of_torch():
    overall = read_options(properties_dir() / "overall.yaml")
    arguments = {key.removeprefix("learner_") for key in overall if key.startswith("learner_")}
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)]).defaults
    others = {"momentum", "initial_accumulator_value"}
    assert arguments - others <= set(adam)


def test_an_options_comment_that_is_no_schema_is_our_mistake():
    with pytest.raises(ValueError, match="the comment of key is no schema"):
        Option.parse("key", "number > 3", "")


# --- names of keys ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, hint",
    [
        ("max_intervall", "did you mean max_interval"),
        ("max_learing_rate", "did you mean max_learning_rate"),
        ("penalty_wieght", "did you mean penalty_weight"),
        ("learning_rat", "did you mean learning_rate"),
        ("generator_hiden_size", "did you mean generator_hidden_size"),
        ("max_learner_beta", "did you mean max_learner_betas"),
        ("max_nonsense_of_mine", "'recbole-adv config' lists the keys|did you mean"),
    ],
)
def test_a_key_that_is_nearly_one_of_ours_is_an_error(key, hint, tmp_path):
    with pytest.raises(ConfigError, match=f"there is no key '{key}' .from config_dict.*{hint}"):
        Config("EIIL", "ml-100k", config_dict={key: 1})
    with pytest.raises(ConfigError, match=f"no key '{key}' .from command line"):
        Config("EIIL", "ml-100k", command_line=[f"--{key}=1"])
    file = tmp_path / "mine.yaml"
    file.write_text(f"{key}: 1\n")
    with pytest.raises(ConfigError, match=f"no key '{key}' .from .*mine.yaml"):
        Config("EIIL", "ml-100k", config_file_list=[str(file)])


OWN_GAME = """
from recbole.model.general_recommender import BPR
from recbole_adv import Player

class OwnGame(BPR):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.patience = config["max_patience"]
        self.scale = config["penalty_scale_of_mine"]

    def players(self):
        return [Player("critic", (), self.loss), Player("generator", (), self.loss)]
"""


def test_a_users_own_keys_are_no_mistakes(tmp_path):
    (tmp_path / "own_game.py").write_text(OWN_GAME)
    own = {"max_patience": 3, "penalty_scale_of_mine": 0.5, "something_else_entirely": 1}
    players = {
        "critic_learning_rate": 0.1,
        "critic_learner": "sgd",
        "generator_weight_decay": 0.0,
        "generator_clip_grad_norm": {"max_norm": 1},
        "critic_learner_momentum": 0.9,
    }
    model = f"{tmp_path}/own_game.py:OwnGame"
    config = Config(model, "ml-100k", config_dict={**own, **players})
    assert {key: config[key] for key in own} == own
    for key in ("max_patienc", "penalty_scale"):  # not what its source reads
        with pytest.raises(ConfigError, match=f"there is no key '{key}'"):
            Config(model, "ml-100k", config_dict={key: 3})
    with pytest.raises(ConfigError, match="there is no key 'max_patience'"):
        Config("EIIL", "ml-100k", config_dict={"max_patience": 3})


def test_a_mistyped_key_of_a_users_own_player_is_named(tmp_path):
    """Which players there are the model tells, so the trainer looks."""
    (tmp_path / "own_game.py").write_text(OWN_GAME)
    given = {"max_patience": 3, "critic_intervall": 2, "critic_learner_momentum": 0.9}
    config = Config(f"{tmp_path}/own_game.py:OwnGame", "ml-100k", config_dict=given)
    with pytest.raises(
        ConfigError, match="no key 'critic_intervall' .*; did you mean critic_interval?"
    ):
        check_names_of("critic", config)
    check_names_of("generator", config)


def test_keys_of_the_backbone_and_of_recbole_are_known():
    given = {"n_layers": 3, "reg_weight": 1e-4, "NEG_PREFIX": "neg_"}
    config = Config("EIIL", "ml-100k", config_dict={"backbone": "LightGCN", **given})
    assert config["n_layers"] == 3
    config = Config("DeepFM", "ml-100k", config_dict={"mlp_hidden_size": [8], "dropout_prob": 0.1})
    assert config["mlp_hidden_size"] == [8]


# --- derived values -----------------------------------------------------------------------------


@pytest.mark.parametrize("model, backbone", [("SASRec", None), ("EIIL", "SASRec")])
def test_a_softmax_over_all_items_needs_no_negatives(model, backbone):
    """RecBole raises: its default asks for negatives that a CE model must not have."""
    given = {"backbone": backbone} if backbone else {}
    config = Config(model, "ml-100k", config_dict=given)
    assert config["train_neg_sample_args"]["distribution"] == "none"
    assert config.source_of["train_neg_sample_args"] == "derived from loss_type: CE"
    with pytest.raises(
        ConfigError, match="train_neg_sample_args.*should be None when the loss_type"
    ):
        sampling = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
        Config(model, "ml-100k", config_dict={**given, **sampling})
    pairs = Config(model, "ml-100k", config_dict={**given, "loss_type": "BPR"})
    assert pairs["train_neg_sample_args"]["sample_num"] == 1


def test_use_gpu_false_means_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for given in ({"use_gpu": False}, {"use_gpu": False, "gpu_id": "1"}, {"gpu_id": ""}):
        config = Config("BPR", "ml-100k", config_dict=given)
        assert config["device"] == torch.device("cpu"), given
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert Config("BPR", "ml-100k")["device"] == torch.device("cuda")


def test_cuda_visible_devices_is_never_overwritten(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    for gpu_id in ("0", 1, [0, 1], ""):
        Config("BPR", "ml-100k", config_dict={"gpu_id": gpu_id})
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    Config("BPR", "ml-100k", config_dict={"gpu_id": [0, 1]})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize(
    "model, given",
    [
        (
            "EIIL",
            {"backbone": "LightGCN", "max_learning_rate": 0.1, "max_learner_betas": [0.5, 0.9]},
        ),
        ("EIIL", {"backbone": "SASRec", "gpu_id": [0, 1]}),
        ("CKE", {"topk": [5, 10], "metrics": ["Recall"], "valid_metric": "Recall@5"}),
    ],
)
def test_from_data_gives_the_same_configuration(model, given):
    config = Config(model, "ml-100k", config_dict=given)
    data = checkpoint.decode(checkpoint.config_as_data(config))
    again = Config.from_data(data)
    assert again.final_config_dict == config.final_config_dict
    assert again.model_class is config.model_class
    assert (again.model, again.dataset) == (config.model, config.dataset)
    assert data == checkpoint.decode(checkpoint.config_as_data(again))
    changed = Config.from_data(data, {"epochs": 3})
    assert changed["epochs"] == 3 and changed.source_of["epochs"] == "override"
    with pytest.raises(ConfigError, match="max_interval must be a whole number >= 1, got 0"):
        Config.from_data(data, {"max_interval": 0})


def test_recboles_global_lists_do_not_grow():
    names = [name for name in vars(argument_list) if name.endswith("_arguments")]
    before = {name: list(getattr(argument_list, name)) for name in names}
    for model in ("EIIL", "DeepFM"):
        Config(model, "ml-100k")
    assert {name: getattr(argument_list, name) for name in names} == before


def test_building_one_does_not_change_what_was_given():
    given = {"topk": [5], "valid_metric": "MRR@5", "eval_args": {"mode": "full"}}
    kept = copy.deepcopy(given)
    Config("BPR", "ml-100k", config_dict=given)
    assert given == kept


def test_two_runs_never_share_a_directory():
    paths = {Config("BPR", "ml-100k")["run_dir"] for _ in range(20)}
    assert len(paths) == 20
    assert all(Path(path).parent == Path.cwd() / "runs" for path in paths)
    config = Config("BPR", "ml-100k", config_dict={"checkpoint_dir": "mine", "run_dir": "here"})
    assert config["checkpoint_dir"] == "mine"
    assert config["run_dir"] == str(Path.cwd() / "here")
    assert os.listdir() == []  # nothing is made by a constructor


def test_stock_config_is_not_checked():
    """RecBole's own class keeps RecBole's behaviour."""
    config = StockConfig("EIIL", "ml-100k", config_dict={"max_intervall": 3})
    assert config["max_intervall"] == 3


@pytest.mark.parametrize(
    "model, settings, why",
    [
        ("BPR", {"max_interval": 3}, "BPR has one player"),
        ("BPR", {"backbone": "LightGCN"}, "BPR has no backbone"),
        ("BPR", {"shift_gamma": 3}, "neither shift_split nor shift_file is set"),
        ("BPR", {"ema_decay": 0.9}, "its technique is not in techniques"),
    ],
)
def test_a_given_key_that_changes_nothing_is_named(model, settings, why, settings_of, caplog):
    Config(model, "checkerboard", config_dict={**settings_of("BPR"), **settings})
    (key,) = settings
    assert f"{key} has no effect: {why}" in caplog.messages


def test_keys_with_an_effect_are_not_named(settings_of, caplog):
    given = {"max_interval": 3, "backbone": "BPR", "shift_gamma": 3, "shift_split": "popularity"}
    Config("EIIL", "checkerboard", config_dict={**settings_of("BPR"), **given})
    Config("BPR", "checkerboard", config_dict={**settings_of("BPR"), "max_techniques": []})
    assert not [message for message in caplog.messages if "no effect" in message]
