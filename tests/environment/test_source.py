"""Environment sources on real RecBole datasets that are small enough to work out by hand."""

from __future__ import annotations

import sys

import pytest
import torch

from recbole_adv import compat
from recbole_adv.environment.environment_file import write_environments
from recbole_adv.environment.source import SOURCES, environments_of, mass_quantiles
from recbole_adv.errors import ConfigError

# Time order; the last two rows are validation and test. Of the training rows, items p q r s have
# 3 2 2 1 and users a b c d have 3 2 2 1 (users a: rows 0 1 7, b: 2 3, c: 4 5, d: 6).
INTERACTIONS = [
    "user_id:token item_id:token session:token rating:float timestamp:float",
    "a p x 5 1",
    "a q x 1 2",
    "b p x 4 3",
    "b r x 2 3",
    "c p y 5 3",
    "c q y 3 6",
    "d s y 3 7",
    "a r x 3 8",
    "b s z 3 9",
    "d s z 3 10",
]
USERS = ["user_id:token country:token age:float", "a no 10", "b no 20", "c se 30", "d fi 40"]
ITEMS = ["item_id:token genre:token_seq price:float", "p g_h 3", "q g 1", "r h 2", "s h 2"]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Files and keys -> the parts of the dataset as RecBole splits them."""
    compat.apply()
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    from recbole.config import Config
    from recbole.data import create_dataset
    from recbole.utils import init_seed

    def write(suffix, lines):
        folder = tmp_path / "tiny"
        folder.mkdir(exist_ok=True)
        text = "\n".join(line.replace(" ", "\t").replace("_h", " h") for line in lines[1:])
        (folder / f"tiny.{suffix}").write_text(lines[0].replace(" ", "\t") + "\n" + text + "\n")

    def load(model="BPR", inter=None, **keys):
        write("inter", inter or INTERACTIONS)
        write("user", USERS)
        write("item", ITEMS)
        settings = {
            "data_path": str(tmp_path),
            "load_col": None,
            "gpu_id": "",
            "use_gpu": False,
            "state": "ERROR",
            "eval_args": {
                "split": {"RS": [0.8, 0.1, 0.1]},
                "order": "TO",
                "group_by": None,
                "mode": "full",
            },
            **keys,
        }
        config = Config(model=model, dataset="tiny", config_dict=settings)
        init_seed(1, True)
        return create_dataset(config).build()

    return load


def by_name(dataset, field, environment):
    """The environments of each value of a field, by the name in the file."""
    names = dataset.id2token(field, dataset.inter_feat[field].numpy())
    found = {}
    for name, e in zip(names, environment.tolist()):
        found.setdefault(str(name), set()).add(e)
    return {name: sorted(found[name]) for name in sorted(found)}


# mass_quantiles


def test_equal_masses_where_every_row_is_its_own():
    keys = torch.tensor([5, 3, 1, 4, 2, 0])
    assert mass_quantiles(keys, n_environments=3).tolist() == [2, 1, 0, 2, 1, 0]
    assert mass_quantiles(keys, n_environments=2).tolist() == [1, 1, 0, 1, 0, 0]


def test_rows_with_equal_keys_stay_together():
    # Middles of masses 3, 1, 1, 1 are at 1.5, 3.5, 4.5, 5.5 of 6.
    keys = torch.tensor([1.5, 1.5, 1.5, 2.5, 3.5, 4.5])
    assert mass_quantiles(keys, n_environments=2).tolist() == [0, 0, 0, 1, 1, 1]


def test_later_keys_break_ties():
    first, second = torch.tensor([1, 1, 0, 0]), torch.tensor([0.5, 0.25, 9.0, 9.0])
    assert mass_quantiles(first, second, n_environments=3).tolist() == [2, 1, 0, 0]
    assert mass_quantiles(first, n_environments=2).tolist() == [1, 1, 0, 0]
    # The second key is read only within the first.
    assert mass_quantiles(second, first, n_environments=3).tolist() == [1, 0, 2, 2]


def test_a_heavy_key_leaves_no_environment_empty():
    for heavy in (0, 1, 2):
        keys = torch.tensor([0] + [heavy] * 98 + [1, 2])
        assert mass_quantiles(keys, n_environments=3).tolist() == keys.tolist()


def test_masses_are_as_equal_as_the_groups_allow():
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        keys = torch.randint(0, 40, (200,), generator=rng)
        environment = mass_quantiles(keys, n_environments=4)
        order = keys.argsort()
        assert (environment[order].diff() >= 0).all()
        assert all(len(environment[keys == key].unique()) == 1 for key in keys.unique())
        # Each cut is off by at most half of the group it falls into.
        largest = torch.bincount(keys).max()
        assert ((torch.bincount(environment) - 50).abs() <= largest).all()


@pytest.mark.parametrize("n_environments", [None, 1, 0])
def test_one_environment_is_refused(n_environments):
    with pytest.raises(ConfigError, match="must be at least 2, got"):
        mass_quantiles(torch.arange(5), n_environments=n_environments)


def test_more_environments_than_keys_are_refused():
    with pytest.raises(ConfigError, match="got n_environments=4; write 3 or less"):
        mass_quantiles(torch.tensor([1, 2, 3, 3]), n_environments=4)
    with pytest.raises(ConfigError, match="the 1 different values.*choose another source"):
        mass_quantiles(torch.ones(4), n_environments=2)


# Sources


def test_item_popularity_counts_training_rows_only(load):
    train = load()[0]
    # Order s(1) q(2) r(2) p(3): middles at 0.5, 2, 4, 6.5 of 8. Of all rows s has 3.
    found = environments_of(train, source="item_popularity", n_environments=2)
    assert by_name(train, "item_id", found) == {"p": [1], "q": [0], "r": [1], "s": [0]}
    found = environments_of(train, source="item_popularity", n_environments=4)
    assert by_name(train, "item_id", found) == {"p": [3], "q": [1], "r": [2], "s": [0]}
    with pytest.raises(ConfigError, match="write 4 or less"):
        environments_of(train, source="item_popularity", n_environments=5)


def test_user_activity(load):
    train = load()[0]
    found = environments_of(train, source="user_activity", n_environments=2)
    assert by_name(train, "user_id", found) == {"a": [1], "b": [0], "c": [1], "d": [0]}


def test_time(load):
    train = load()[0]
    # Times 1 2 3 3 3 6 7 8: the three at 3 stay together, middle at 3.5 of 8.
    assert environments_of(train, source="time", n_environments=2).tolist() == [0] * 5 + [1] * 3


def test_time_follows_the_rows_in_random_order(load):
    order = {
        "split": {"RS": [0.8, 0.1, 0.1]},
        "order": "RO",
        "group_by": None,
        "mode": "full",
    }
    train = load(eval_args=order)[0]
    found = environments_of(train, source="time", n_environments=3)
    assert (found[train.inter_feat["timestamp"].argsort()].diff() >= 0).all()


def test_time_that_was_not_loaded_says_what_to_write(load):
    order = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None, "mode": "full"}
    train = load(eval_args=order, load_col={"inter": ["user_id", "item_id"]})[0]
    with pytest.raises(ConfigError, match=r"load_col: \{inter: \[user_id, item_id, timestamp\]\}"):
        environments_of(train, source="time", n_environments=2)


@pytest.mark.parametrize(
    "column, field, expected",
    [
        ("session", "session", {"x": [0], "y": [1]}),
        ("country", "user_id", {"a": [0], "b": [0], "c": [1], "d": [2]}),
    ],
)
def test_a_token_column_gives_one_environment_for_each_value(load, column, field, expected):
    train = load()[0]
    found = environments_of(train, source="column", column=column)
    # Session z stands in validation and test rows only.
    assert by_name(train, field, found) == expected
    n_values = len({e for es in expected.values() for e in es})
    again = environments_of(train, source="column", column=column, n_environments=n_values)
    assert torch.equal(found, again)
    with pytest.raises(ConfigError, match=f"training rows, {n_values}, got 7; write"):
        environments_of(train, source="column", column=column, n_environments=7)


@pytest.mark.parametrize("numerical", [False, True])
def test_a_float_column_gives_mass_quantiles(load, numerical):
    keys = {"numerical_features": ["age", "rating", "price"]} if numerical else {}
    train = load(**keys)[0]
    ages = environments_of(train, source="column", column="age", n_environments=2)
    # Ages 10 20 30 40 have 3 2 2 1 rows: middles at 1.5, 4, 6, 7.5 of 8.
    assert by_name(train, "user_id", ages) == {"a": [0], "b": [1], "c": [1], "d": [1]}
    prices = environments_of(train, source="column", column="price", n_environments=3)
    assert by_name(train, "item_id", prices) == {"p": [2], "q": [0], "r": [1], "s": [1]}
    ratings = environments_of(train, source="column", column="rating", n_environments=2)
    # 1 2 | 3 3 3 | 4 | 5 5: the threes' middle is at 3.5 of 8.
    assert ratings.tolist() == [1, 0, 1, 0, 1, 0, 0, 0]
    with pytest.raises(ConfigError, match="must be at least 2, got None"):
        environments_of(train, source="column", column="age")


def test_a_discretised_column_is_ordered_by_its_buckets(load):
    train = load(numerical_features=["age"], discretization={"age": {"method": "ED", "bucket": 3}})[
        0
    ]
    ages = environments_of(train, source="column", column="age", n_environments=2)
    # Buckets [10, 20), [20, 30), [30, 40]: 3, 2 and 3 rows.
    assert (ages[train.inter_feat["timestamp"].argsort()] >= 0).all()
    assert by_name(train, "user_id", ages)["a"] == [0]
    assert by_name(train, "user_id", ages)["d"] == [1]


def test_columns_that_cannot_be_used(load):
    train = load()[0]
    listed = "user_id, item_id, session, rating, timestamp, country, age, price"
    with pytest.raises(ConfigError, match=f"'contry'; did you mean country.*write one of {listed}"):
        environments_of(train, source="column", column="contry", n_environments=2)
    with pytest.raises(ConfigError, match="got None; write one of"):
        environments_of(train, source="column", n_environments=2)
    with pytest.raises(ConfigError, match="got 'genre'; write one of"):
        environments_of(train, source="column", column="genre", n_environments=2)


def test_a_column_with_one_value_is_refused(load):
    same = [INTERACTIONS[0]] + [line.replace(" y ", " x ") for line in INTERACTIONS[1:]]
    train = load(inter=same)[0]
    with pytest.raises(ConfigError, match="'session' cannot give environments, got 1 value"):
        environments_of(train, source="column", column="session")


def test_random_is_seeded_and_balanced(load):
    train = load()[0]
    found = environments_of(train, source="random", n_environments=3, seed=1)
    assert sorted(torch.bincount(found).tolist()) == [2, 3, 3]
    assert torch.equal(found, environments_of(train, source="random", n_environments=3, seed=1))
    seeds = [environments_of(train, source="random", n_environments=3, seed=s) for s in range(8)]
    assert any(not torch.equal(found, other) for other in seeds)
    before = torch.random.get_rng_state()
    environments_of(train, source="random", n_environments=2)
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(ConfigError, match="training rows, 8, got 9"):
        environments_of(train, source="random", n_environments=9)


def test_every_source_fills_every_environment(load, tmp_path):
    train = load()[0]
    file = str(write_environments(tmp_path, train, torch.arange(8) % 2))
    for source in SOURCES:
        asked = {"column": "session", "balanced": True, "file": file}
        found = environments_of(train, source=source, n_environments=2, **asked)
        assert found.dtype == torch.int64 and found.shape == (8,)
        assert found.unique().tolist() == [0, 1]
        with pytest.raises(ConfigError):
            environments_of(train, source=source, n_environments=1, **asked)


def test_an_unknown_source_gets_a_suggestion(load):
    with pytest.raises(ConfigError, match="'item_poplarity'; did you mean item_popularity?"):
        environments_of(load()[0], source="item_poplarity", n_environments=2)


def test_tables_of_users_and_items_may_be_missing(load):
    train = load(load_col={"inter": ["user_id", "item_id", "timestamp"]})[0]
    assert train.user_feat is None and train.item_feat is None
    assert environments_of(train, source="item_popularity", n_environments=2).shape == (8,)
    with pytest.raises(ConfigError, match="write one of user_id, item_id, timestamp$"):
        environments_of(train, source="column", column="age", n_environments=2)


# A sequential dataset: u1 has p q r s t, u2 has q r s p t, u3 has t q p s r.
SEQUENCES = {"u1": "pqrst", "u2": "qrspt", "u3": "tqpsr"}


def test_sequential_rows_are_known_by_their_targets(load):
    inter = ["user_id:token item_id:token timestamp:float"]
    for offset, (user, items) in enumerate(SEQUENCES.items()):
        inter += [f"{user} {item} {10 * t + offset}" for t, item in enumerate(items)]
    leave_one_out = {
        "split": {"LS": "valid_and_test"},
        "order": "TO",
        "group_by": "user",
        "mode": "full",
    }
    train = load(
        "SASRec",
        inter,
        eval_args=leave_one_out,
        load_col={"inter": ["user_id", "item_id", "timestamp"]},
        train_neg_sample_args=None,
        loss_type="CE",
    )[0]
    # Targets in training are the 2nd and 3rd of each sequence: q r, r s, q p.
    rows = len(train.inter_feat)
    assert rows == 6 and "item_id_list" in train.inter_feat
    popularity = environments_of(train, source="item_popularity", n_environments=2)
    # Counts p 1, s 1, q 2, r 2: the first items of sequences are no targets.
    assert by_name(train, "item_id", popularity)["p"] == [0]
    assert by_name(train, "item_id", popularity)["s"] == [0]
    when = environments_of(train, source="time", n_environments=2)
    # Targets at 10, 11, 12 and at 20, 21, 22.
    assert torch.equal(when, (train.inter_feat["timestamp"] >= 20).long())
    who = environments_of(train, source="column", column="user_id", n_environments=3)
    assert by_name(train, "user_id", who) == {"u1": [0], "u2": [1], "u3": [2]}


# user_group: popular is a fifth of the four items of the training data, rounded up: p.


def test_user_groups_are_those_of_s_dro(load):
    """Of a's rows p q r a third are popular, of b's p r and c's p q half, of d's none: all niche."""
    train = load()[0]
    with pytest.raises(ConfigError, match="8 niche, 0 diverse, 0 blockbuster"):
        environments_of(train, source="user_group")
    with pytest.raises(ConfigError, match="has 3 environments .* got n_environments 2"):
        environments_of(train, source="user_group", n_environments=2)
    found = environments_of(train, source="user_group", n_environments=2, balanced=True)
    # By share: d 0, a 1/3, then b and c 1/2, by their ids.
    assert by_name(train, "user_id", found) == {"a": [0], "b": [1], "c": [1], "d": [0]}


def test_the_bounds_of_user_groups_belong_to_the_upper_group(load):
    """p is the popular one of four items; its shares are 3 of 5, 4 of 5, 0 and 1."""
    rows = ["a p 1", "a p 2", "a p 3", "a q 4", "a r 5"]
    rows += ["b p 6", "b p 7", "b p 8", "b p 9", "b q 10", "c s 11", "c q 12", "d p 13"]
    rows += ["a s 20", "b r 21"]  # validation and test
    lines = ["{} {} s 1 {}".format(*row.split()) for row in rows]
    train = load(inter=[INTERACTIONS[0], *lines])[0]
    assert len(train.inter_feat) == 13
    found = environments_of(train, source="user_group", n_environments=3)
    assert by_name(train, "user_id", found) == {"a": [1], "b": [2], "c": [0], "d": [2]}
