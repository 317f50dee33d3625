"""Which parts the keys ask for, what is refused before data is loaded, and which users are a group."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType

from recbole_adv import Config
from recbole_adv.data.shift_plan import plan_of, users_in_group
from recbole_adv.errors import ConfigError


def config(model="BPR", **keys):
    return Config(model, "ml-100k", config_dict=keys, command_line=[])


def test_no_plan_without_the_key():
    assert plan_of(config()) is None


def test_the_parts_in_the_order_of_drawing():
    plan = plan_of(
        config(
            shift_split="popularity",
            shift_gamma=2,
            shift_more_gammas=[10, 200],
            shift_valid=["shifted", "id"],
            shift_share=0.05,
        )
    )
    assert plan.names == [
        *("train", "test_shifted", "test_shifted_10", "test_shifted_200", "test_id"),
        *("valid_shifted", "valid_id"),
    ]
    assert [draw.gamma for draw in plan.draws] == [2, 10, 200, 1, 2, 1]
    assert {draw.share for draw in plan.draws} == {0.05}
    assert (plan.valid, plan.test, plan.seed) == ("valid_shifted", "test_shifted", 2020)
    other = config(shift_split="time", shift_test=["id"], shift_seed=3, shift_n_max=5.0)
    plan = plan_of(other)
    assert plan.names == ["train", "test_id", "valid_id"] and plan.seed == 3
    assert "shift_gamma" not in plan.settings and plan.settings["shift_seed"] == 3


def test_gammas_that_print_alike_have_names_of_their_own():
    gammas = [1000000, 1000001, 0.1234567, 0.12345678, 2.0]
    plan = plan_of(config(shift_split="popularity", shift_more_gammas=gammas, shift_share=0.05))
    shifted = [name for name in plan.names if name.startswith("test_shifted")]
    ends = ["", "_1e+06", "_1000001", "_0.1234567", "_0.12345678", "_2"]
    assert shifted == [f"test_shifted{end}" for end in ends]


FILE = "split.npz"
REFUSED = {
    "kind": ({"shift_split": "popular"}, "one of popularity, time, user", "'popular'"),
    "kind mistyped": ({"shift_splitt": "time"}, "'shift_splitt'", "did you mean shift_split?"),
    "share 0": ({"shift_split": "time", "shift_share": 0}, "shift_share", "> 0", "got 0"),
    "share 1": ({"shift_split": "time", "shift_share": 1.0}, "shift_share", "< 1", "got 1.0"),
    "share word": ({"shift_share": "tenth"}, "shift_share must be a number", "'tenth'"),
    "too much": (
        {"shift_split": "time", "shift_share": 0.4},
        "0.4 of the interactions in each of 3",
        "less than 0.333",
    ),
    "part": ({"shift_split": "time", "shift_test": ["shift"]}, "['shift']", "mean shifted"),
    "parts empty": ({"shift_split": "time", "shift_valid": []}, "shift_valid", "got []", "[id"),
    "part twice": ({"shift_split": "time", "shift_test": ["id", "id"]}, "['id', 'id']"),
    "part no list": ({"shift_split": "time", "shift_valid": "id"}, "a list", "'id'", "=\"['id']\""),
    "gamma 0": ({"shift_split": "popularity", "shift_gamma": 0}, "shift_gamma", "> 0", "got 0"),
    "gammas": (
        {"shift_split": "popularity", "shift_more_gammas": [10, "x"]},
        "positive numbers",
        "[10, 'x']",
    ),
    "gamma twice": (
        {"shift_split": "popularity", "shift_gamma": 10, "shift_more_gammas": [10]},
        "differ from each other and from shift_gamma 10",
    ),
    "gammas by time": (
        {"shift_split": "time", "shift_more_gammas": [10]},
        "shift_split: popularity",
        "got 'time'",
    ),
    "n_max": ({"shift_split": "popularity", "shift_n_max": -3}, "shift_n_max", "> 0", "got -3"),
    "users": ({"shift_split": "user"}, "shift_values None", "[0, 0.2]"),
    "quantiles": (
        {"shift_split": "user", "shift_values": [0.4, 0.2]},
        "two quantiles",
        "[0.4, 0.2]",
        "lowest fifth",
    ),
    "quantile words": ({"shift_split": "user", "shift_values": ["F"]}, "activity", "['F']"),
    "files too": (
        {"shift_split": "time", "benchmark_filename": ["a", "b", "c"]},
        "'time' and ['a', 'b', 'c']",
        "leave one out",
    ),
    "loaders too": (
        {"shift_split": "time", "dataloaders_save_path": "x.pth"},
        "dataloaders_save_path",
        "leave one out",
    ),
    "two files": ({"benchmark_filename": ["train", "test"]}, "[train, valid, test]", "'test']"),
    "split missing": ({"shift_file": "nowhere.npz"}, "'nowhere.npz'", "split.npz"),
    "seed": ({"shift_split": "time", "shift_seed": 1.5}, "shift_seed", "whole number", "1.5"),
    "mask and drop": ({"mask_leaks": True, "drop_leaks": True}, "got both", "leave one out"),
    "mask sampled": (
        {"mask_leaks": True, "eval_args": {"mode": "uni100"}},
        "a ranking of all items",
        "'uni100'",
        "drop_leaks: True",
    ),
    "mask a sequence": (
        {"model": "SASRec", "mask_leaks": True, "train_neg_sample_args": None},
        "sequential model",
        "drop_leaks: True",
    ),
    "negatives": ({"train_negatives": "fixed"}, "recbole, static, in_batch", "'fixed'"),
    "negatives of popularity": (
        {
            "train_negatives": "static",
            "train_neg_sample_args": {"distribution": "popularity", "sample_num": 1},
        },
        "uniform",
        "'popularity'",
    ),
    "no negatives": (
        {"train_negatives": "in_batch", "train_neg_sample_args": None},
        "got train_neg_sample_args None",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    keys, *words = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        config(**{"model": "BPR", **keys})
    for word in words:
        assert word in str(caught.value), str(caught.value)


# --- groups of users ----------------------------------------------------------------------------------


@pytest.fixture
def dataset():
    """Users 1 to 5 with genders and ages, of whom user 4 has no interaction."""
    kinds = {"user_id": "TOKEN", "gender": "TOKEN", "age": "FLOAT", "words": "TOKEN_SEQ"}
    return SimpleNamespace(
        uid_field="user_id",
        user_num=6,
        field2type={name: FeatureType[kind] for name, kind in kinds.items()},
        field2token_id={"gender": {"[PAD]": 0, "F": 1, "M": 2}},
        user_feat=Interaction(
            {
                "user_id": torch.arange(6),
                "gender": torch.tensor([0, 1, 2, 1, 1, 2]),
                "age": torch.tensor([0.0, 40, 20, 30, 10, 50]),
                "words": torch.zeros(6, 2),
            }
        ),
    )


USERS = np.array([1, 1, 1, 2, 3, 3, 5, 5, 5, 5])


@pytest.mark.parametrize(
    ("column", "values", "group"),
    [
        ("gender", ["F"], [1, 3]),
        ("gender", ["F", "M"], [1, 2, 3, 5]),
        # Activity: user 2 has 1 row, 3 has 2, 1 has 3, 5 has 4; at 1/8, 3/8, 5/8, 7/8.
        (None, [0, 0.25], [2]),
        (None, [0.3, 0.7], [1, 3]),
        (None, [0, 1], [1, 2, 3, 5]),
        # Age: 2 (20), 3 (30), 1 (40), 5 (50); the 10 of user 4 is not in the data.
        ("age", [0, 0.5], [2, 3]),
    ],
)
def test_groups_by_hand(dataset, column, values, group):
    assert np.flatnonzero(users_in_group(dataset, USERS, column, values)).tolist() == group


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("gendre", ["F"], ("'gendre'", "did you mean gender?", "write one of gender, age")),
        ("words", ["a"], ("'words'", "gender, age")),
        ("user_id", [1], ("token or float column of the users", "'user_id'")),
        ("gender", ["f", "X"], ("'gender'", "got 'f'", "did you mean F?", "it has F, M")),
        ("age", [20, 30], ("column 'age'", "[20, 30]", "quantiles")),
    ],
)
def test_groups_refused(dataset, column, values, words):
    with pytest.raises(ConfigError) as caught:
        users_in_group(dataset, USERS, column, values)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_no_features_at_all(dataset):
    dataset.user_feat = None
    with pytest.raises(ConfigError, match="got 'gender'; add it by load_col"):
        users_in_group(dataset, USERS, "gender", ["F"])
