"""Search files: RecBole's lines and YAML, the files that we have for our models, and mistakes."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from recbole.trainer import HyperTuning

from recbole_adv import Config, discovery
from recbole_adv.cli import build_parser, main
from recbole_adv.errors import ConfigError
from recbole_adv.sweep.options import NAMES, Options
from recbole_adv.sweep.plan import check_space
from recbole_adv.sweep.search_file import read_space, ready_file, space_of
from recbole_adv.sweep.space import Choice, Range

LINES = """
# RecBole's hyper.test
learning_rate loguniform -8,0
embedding_size choice [64, 96, 128]
mlp_hidden_size choice ['[64,64,64]','[128,128]']
dropout_prob uniform 0.0, 0.5
n_layers quniform 1,4,1
"""
AS_DICT = {
    "loguniform": {"learning_rate": [-8, 0]},
    "choice": {"embedding_size": [64, 96, 128], "mlp_hidden_size": ["[64,64,64]", "[128,128]"]},
    "uniform": {"dropout_prob": [0.0, 0.5]},
    "quniform": {"n_layers": [1, 4, 1]},
}
SPACE = {
    "learning_rate": Range("loguniform", -8.0, 0.0),
    "embedding_size": Choice((64, 96, 128)),
    "mlp_hidden_size": Choice(([64, 64, 64], [128, 128])),
    "dropout_prob": Range("uniform", 0.0, 0.5),
    "n_layers": Range("quniform", 1.0, 4.0, 1.0),
}


def test_lines_yaml_and_dict_say_the_same():
    Path("hyper.test").write_text(LINES)
    Path("hyper.yaml").write_text(yaml.safe_dump(AS_DICT))
    assert read_space("hyper.test").dimensions == SPACE
    assert read_space("hyper.yaml").dimensions == SPACE
    assert space_of(AS_DICT).dimensions == SPACE


def test_recbole_reads_the_same_lines_and_the_same_dict():
    pytest.importorskip("hyperopt")
    Path("hyper.test").write_text(LINES.replace("# RecBole's hyper.test\n", ""))
    for tuning in (
        HyperTuning(len, params_file="hyper.test", algo="random"),
        HyperTuning(len, params_dict=AS_DICT, algo="random"),
    ):
        assert set(tuning.space) == set(SPACE)


def test_the_documentation_shows_files_and_commands_that_work():
    text = (Path(__file__).resolve().parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    (lines,) = (body for kind, body in blocks if body.startswith("learning_rate "))
    (as_yaml,) = (body for kind, body in blocks if kind == "yaml")
    config = Config("EIIL", "ml-100k", config_dict={"use_gpu": False}, command_line=())
    for name, body in (("hyper.test", lines), ("search.yaml", as_yaml)):
        Path(name).write_text(body)
        check_space(config, read_space(name))
    commands = [line for _, body in blocks for line in body.splitlines() if "adv sweep" in line]
    assert len(commands) == 4
    for command in commands:
        words = shlex.split(command.partition("#")[0])[1:]
        options, settings = build_parser().parse_known_args(words)
        Options(**{name: getattr(options, name) for name in NAMES})
        assert all("=" in setting for setting in settings)


def test_nested_values_in_yaml():
    Path("s.yaml").write_text(
        "choice:\n  clip_grad_norm: [null, {max_norm: 1.0}]\n  topk: [[5], [10]]\n"
    )
    assert read_space("s.yaml").dimensions["clip_grad_norm"].values == (None, {"max_norm": 1.0})
    assert read_space("s.yaml").dimensions["topk"].values == ([5], [10])


@pytest.mark.parametrize("model", discovery.own_model_names())
def test_every_model_has_a_search_file_that_fits_it(model):
    space = read_space(ready_file(model))
    grid = space.grid()
    assert 12 <= len(grid) <= 48
    said = ready_file(model).read_text(encoding="utf-8").splitlines()[0]
    assert said.startswith(f"# {len(grid)} settings: recbole-adv sweep --model={model}.")
    config = Config(model, "ml-100k", config_dict={"use_gpu": False}, command_line=())
    check_space(config, space)
    defaults = {key: config[key] for key in space.dimensions}
    strangers = [k for k, each in space.dimensions.items() if defaults[k] not in each.values]
    assert not strangers, f"the search of {model} leaves out its own defaults"


def test_keys_of_players_and_techniques_are_searched_like_any_other():
    given = {"techniques": ["ema"], "use_gpu": False}
    config = Config("EIIL", "ml-100k", config_dict=given, command_line=())
    keys = {"max_interval": [1, 3], "max_learner": ["sgd", "adam"], "ema_decay": [0.9, 0.99]}
    check_space(config, space_of({"choice": keys}))
    plain = Config("EIIL", "ml-100k", config_dict={"use_gpu": False}, command_line=())
    keys["techniques"] = [[], ["ema"]]
    check_space(plain, space_of({"choice": keys}))


def test_a_value_may_fit_only_together_with_another():
    """Adam has no momentum; the search holds sgd as well."""
    config = Config("BPR", "ml-100k", config_dict={"use_gpu": False}, command_line=())
    keys = {"learner": ["adam", "sgd"], "learner_momentum": [None, 0.9]}
    check_space(config, space_of({"choice": keys}))
    with pytest.raises(ConfigError, match="learner_momentum: 0.9 does not fit learner 'adam'"):
        check_space(config, space_of({"choice": {"learner_momentum": [None, 0.9]}}))


MALFORMED = {
    "a line cut short": ("learning_rate choice", "line 1 must be 'name type values'"),
    "an unknown type": (
        "learning_rate chioce [1]",
        "'chioce' is no type of a search; did you mean",
    ),
    "no list": ("learning_rate choice 0.1", "choice needs a list with a value or more, got 0.1"),
    "code": ("learning_rate choice [10**-3]", "choice needs a list such as [0.001, 0.01]"),
    "an empty list": (
        "learning_rate choice []",
        "choice needs a list with a value or more, got []",
    ),
    "a value twice": ("learning_rate choice [0.1,0.1]", "0.1 is in the list twice; write it once"),
    "no numbers": ("learning_rate uniform low,high", "uniform needs the numbers low, high"),
    "one bound": ("learning_rate uniform 0.1", "uniform needs the numbers low, high, got ['0.1']"),
    "bounds reversed": ("learning_rate uniform 1,0", "uniform needs low < high, got 1 and 0"),
    "a step too long": (
        "n_layers quniform 1,3,5",
        "the step of quniform must be above 0 and at most 2",
    ),
    "values as logs": ("learning_rate loguniform 0.001,0.1", "write -6.91, -2.3"),
    "a key twice": (
        "learning_rate choice [1]\nlearning_rate choice [2]",
        "line 2: learning_rate is given twice",
    ),
    "nothing": ("# only this\n", "names no key; write 'learning_rate choice"),
    "an unknown key": ("learing_rate choice [0.1]", "EIIL has no key 'learing_rate'; did you mean"),
    "another model's key": ("n_layers choice [1,2]", "EIIL has no key 'n_layers'"),
    "a wrong value": (
        "learning_rate choice [0.1,-1]",
        "learning_rate must be a number >= 0, got -1",
    ),
    "a wrong bound": (
        "balance_weight quniform -1,1,1",
        "balance_weight must be a number >= 0, got -1",
    ),
    "a wrong word": ("inference_objective choice ['irm','rx']", "must be one of irm, irm_raw, rex"),
    "a seed": (
        "seed choice [1,2]",
        "seed cannot be searched: the best of several seeds is the luck",
    ),
    "the metric": (
        "valid_metric choice ['MRR@10']",
        "valid_metric cannot be searched: it changes what",
    ),
    "an idle technique": (
        "ema_decay choice [0.9]",
        "ema_decay has no effect, since its technique is",
    ),
    "no end": (
        "learning_rate loguniform -8,-1",
        "learning_rate is loguniform, which has no end of",
    ),
}
MALFORMED_YAML = {
    "not YAML": ("choice: {learning_rate: [1", "line 1: it is not YAML"),
    "a list": (
        "- learning_rate",
        "must hold types with their keys, such as choice: {learning_rate",
    ),
    "no type": ("learning_rate: [0.1, 1]", "'learning_rate' is no type of a search"),
    "no keys": ("choice: [0.1, 1]", "choice must hold keys, such as choice: {learning_rate"),
    "a key twice": (
        "choice:\n  alpha: [1]\n  alpha: [2]\n",
        "line 3: it is not YAML: alpha is given",
    ),
    "a key of two types": (
        "choice: {learning_rate: [1]}\nuniform: {learning_rate: [0, 1]}",
        "learning_rate is given twice",
    ),
}


def refused(capsys, file, *more):
    """The sentence with which the command refuses a search file, before anything is there."""
    code = main(["sweep", "-m", "EIIL", "-d", "ml-100k", f"--params_file={file}", *more])
    said = capsys.readouterr().err.strip()
    assert code == 2 and said.startswith("recbole-adv: ") and "\n" not in said, said
    assert not Path("sweeps").exists()
    return said


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_file_is_refused_in_one_sentence(what, capsys):
    text, sentence = MALFORMED[what]
    Path("search.test").write_text(text)
    assert sentence in refused(capsys, "search.test")


@pytest.mark.parametrize("what", MALFORMED_YAML)
def test_a_malformed_yaml_file_is_refused_in_one_sentence(what, capsys):
    text, sentence = MALFORMED_YAML[what]
    Path("search.yaml").write_text(text)
    assert sentence in refused(capsys, "search.yaml")


def test_files_that_are_not_there(capsys):
    assert "the search file 'none.test' cannot be read" in refused(capsys, "none.test")
    Path("bytes.test").write_bytes(b"\xff\xfe\x00")
    assert "'bytes.test' is no text in UTF-8" in refused(capsys, "bytes.test")
    assert main(["sweep", "-m", "BPR", "-d", "ml-100k"]) == 2
    assert "there is no search file for BPR; write --params_file" in capsys.readouterr().err
