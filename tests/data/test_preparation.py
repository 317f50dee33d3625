"""Splits and leaks in whole runs: every kind of model, other parts, files, resuming, failures."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data import create_dataset, data_preparation
from recbole.utils import init_seed

from recbole_adv import run_recbole_adv
from recbole_adv.data.leak_check import find_leaks, pairs_of
from recbole_adv.data.split_file import load_split
from recbole_adv.errors import ConfigError, DataError

SHIFTS = {
    "popularity": {"shift_split": "popularity"},
    "time": {"shift_split": "time"},
    "user": {"shift_split": "user", "shift_values": [0.0, 0.5]},
}
BOTH = {"shift_valid": ["shifted", "id"]}
TIMED = {
    "inter": ["user_id", "item_id", "timestamp"],
    "user": ["user_id", "age_group"],
    "item": ["item_id", "shape"],
}
# 60 users with 20 interactions each, so half of the users can give a tenth.


def pairs(dataset):
    return set(pairs_of(dataset).tolist())


def run(settings_of, model="BPR", dataset="checkerboard", **settings):
    settings = settings_of(model, **settings)
    return run_recbole_adv(model, dataset, config_dict=settings)


def record_of(result):
    return json.loads(Path(result["run_dir"], "split.json").read_text())


# --- off is RecBole -----------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize("model", ["BPR", "SASRec", "DeepFM", "CKE", "MultiVAE"])
def test_off_equals_stock(model, tiny, settings_of):
    """Rows of all parts, what may be drawn, and the random numbers after it."""
    settings = settings_of(model)
    config = RecBoleConfig(model=model, dataset="checkerboard", config_dict=copy.deepcopy(settings))
    init_seed(config["seed"], config["reproducibility"])
    stock = data_preparation(config, create_dataset(config))
    states = torch.random.get_rng_state(), np.random.get_state()[1]
    built = tiny(model, **settings)
    for theirs, ours in zip(stock, (built.train, built.valid, built.test)):
        rows, same = theirs._dataset.inter_feat, ours._dataset.inter_feat
        assert list(rows.interaction) == list(same.interaction)
        assert all(torch.equal(rows[name], same[name]) for name in rows.interaction)
        assert type(theirs) is type(ours) and type(theirs._dataset) is type(ours._dataset)
        assert "build" not in vars(ours._dataset)
    init_seed(config["seed"], config["reproducibility"])
    from recbole_adv.prepared_run import load_data

    load_data(built.config)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


# --- every kind of model ------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("model", ["BPR", "DeepFM", "CKE", "MultiVAE", "EIIL", "SASRec"])
def test_every_kind_of_model(model, shift, tiny):
    load_col = {"load_col": TIMED} if model == "DeepFM" else {}
    built = tiny(model, **SHIFTS[shift], **BOTH, **load_col, epochs=1)
    prepared = built.dataset.prepared
    parts = prepared.parts
    assert list(parts)[0] == "train"
    assert set(parts) == {"train", "test_shifted", "test_id", "valid_shifted", "valid_id"}
    assert built.valid._dataset is parts["valid_shifted"]
    assert built.test._dataset is parts["test_shifted"]
    assert set(prepared.others) == {"test_id", "valid_id"}
    n_rows = sum(len(part) for part in parts.values())
    assert n_rows == (1140 if model == "SASRec" else 1200)
    assert min(len(part) for part in parts.values()) > 1
    if model != "SASRec":  # whose items may come again
        assert not any(count["rows"] for count in find_leaks(parts)[1])
    result = built.fit().evaluate(prepared.others["test_id"], load_best_model=False)
    assert all(0 <= value <= 1 for value in result.values())


@pytest.mark.parametrize("shift", SHIFTS)
def test_no_step_of_a_sequence_is_trained_on_after_one_that_is_held_out(shift, tiny):
    parts = tiny("SASRec", **SHIFTS[shift], **BOTH).dataset.prepared.parts
    train = parts["train"].inter_feat
    for name, part in parts.items():
        for user, time in zip(part.inter_feat["user_id"], part.inter_feat["timestamp"]):
            of_user = train["timestamp"][train["user_id"] == user]
            assert name == "train" or (of_user < time).all()


def test_a_group_by_a_column(tiny):
    load_col = {"inter": ["user_id", "item_id", "timestamp"], "user": ["user_id", "age_group"]}
    keys = {"shift_split": "user", "shift_column": "age_group", "shift_values": ["age0"]}
    built = tiny("BPR", **keys, load_col=load_col)
    parts = built.dataset.prepared.parts
    age = built.dataset.user_feat["age_group"]
    wanted = built.dataset.field2token_id["age_group"]["age0"]
    assert (age[parts["test_shifted"].inter_feat["user_id"]] == wanted).all()
    assert len(age[parts["test_id"].inter_feat["user_id"]].unique()) > 1


def test_the_training_of_a_time_split_is_over_before_its_test(tiny):
    parts = tiny("BPR", **SHIFTS["time"], **BOTH).dataset.prepared.parts
    time = {name: part.inter_feat["timestamp"] for name, part in parts.items()}
    assert time["train"].max() < time["valid_shifted"].min()
    assert time["valid_shifted"].max() < time["test_shifted"].min()


# --- what a run says and keeps --------------------------------------------------------------------------


def test_a_run_reports_the_other_parts_and_keeps_its_split(settings_of, capsys):
    done = run(settings_of, **SHIFTS["popularity"], shift_gamma=5, **BOTH, state="info")
    assert {"recall@10", "test_id/recall@10"} <= set(done["test_result"])
    assert {"recall@10", "valid_id/recall@10"} <= set(done["best_valid_result"])
    assert done["best_valid_score"] == done["best_valid_result"]["mrr@10"]
    log = capsys.readouterr().err
    assert "split by shift_split: popularity" in log and "gamma 5" in log
    assert "test result on test_id" in log and "no user-item pair is in two parts" in log
    record = record_of(done)
    assert list(record["parts"]) == [
        "train",
        "test_shifted",
        "test_id",
        "valid_shifted",
        "valid_id",
    ]
    assert sum(part["rows"] for part in record["parts"].values()) == 1200
    assert record["settings"]["shift_gamma"] == 5
    assert record["draws"]["test_shifted"]["n_max"] > 0


def test_a_run_of_recboles_split_has_its_statistics_too(settings_of):
    done = run(settings_of)
    record = record_of(done)
    assert {name: part["rows"] for name, part in record["parts"].items()} == {
        "train": 960,
        "valid": 120,
        "test": 120,
    }
    assert "settings" not in record
    assert not Path(done["run_dir"], "split.npz").exists()


def test_a_saved_split_is_used_again_by_another_model(settings_of, tiny, capsys):
    first = run(settings_of, **SHIFTS["popularity"], **BOTH, shift_seed=5)
    file = str(Path(first["run_dir"], "split.npz"))
    again = tiny("CKE", shift_file=file, shift_valid=["id"], shift_test=["id", "shifted"], seed=9)
    same = tiny("CKE", **SHIFTS["popularity"], **BOTH, shift_seed=5)
    for name, part in same.dataset.prepared.parts.items():
        other = again.dataset.prepared.parts[name]
        assert torch.equal(part.inter_feat["timestamp"], other.inter_feat["timestamp"]), name
        tokens = [d.id2token("item_id", d.inter_feat["item_id"]).tolist() for d in (part, other)]
        assert tokens[0] == tokens[1]
    assert again.test._dataset is again.dataset.prepared.parts["test_id"]
    assert again.valid._dataset is again.dataset.prepared.parts["valid_id"]


def test_a_saved_model_needs_no_file_but_its_own_runs(settings_of):
    from recbole_adv.quick_start import load_data_and_model

    first = run(settings_of, **SHIFTS["popularity"])
    file = Path(first["run_dir"], "split.npz")
    second = run(settings_of, shift_file=str(file))
    file.unlink()
    *_, test = load_data_and_model(str(Path(second["run_dir"], "model.pth")))
    assert len(test._dataset) == record_of(first)["parts"]["test_shifted"]["rows"]


def test_the_split_has_a_seed_of_its_own(tiny):
    one, two, three = (
        pairs(tiny("BPR", **SHIFTS["popularity"], **keys).test._dataset)
        for keys in ({"seed": 1, "shift_seed": 4}, {"seed": 2, "shift_seed": 4}, {"seed": 4})
    )
    assert one == two == three
    assert one != pairs(tiny("BPR", **SHIFTS["popularity"], seed=1).test._dataset)


def test_a_resumed_run_has_the_same_split(settings_of):
    keys = {**SHIFTS["popularity"], "epochs": 4, "dropout_prob": 0.1}
    whole = run(settings_of, **keys)
    half = run(settings_of, **{**keys, "epochs": 2})
    before = Path(half["run_dir"], "split.npz").read_bytes()
    resumed = run_recbole_adv(resume=half["run_dir"], config_dict={"epochs": 4})
    assert "test_id/recall@10" in resumed["test_result"]
    assert resumed["test_result"] == whole["test_result"]
    part = load_part(Path(half["run_dir"], "split.npz"))
    assert before and part.tolist() == load_part(Path(whole["run_dir"], "split.npz")).tolist()


def load_part(file):
    with np.load(file) as split:
        return split["part"]


def test_a_run_that_cannot_split_leaves_nothing(settings_of, tmp_path):
    with pytest.raises(
        DataError, match="shift_share: 0.3 asks for 360 .* write a share of at most"
    ):
        few = {"shift_split": "user", "shift_values": [0.0, 0.2], "shift_test": ["shifted"]}
        run(settings_of, **few, shift_share=0.3)
    with pytest.raises(ConfigError, match="of the users, got 'age'; add it by load_col"):
        run(settings_of, shift_split="user", shift_column="age", shift_values=["a"])
    assert list(tmp_path.iterdir()) == []


def test_time_without_timestamps(settings_of, tiny):
    """A run says so before it reads the data; the split itself, where nobody has looked before."""
    keys = {"shift_split": "time", "load_col": {"inter": ["user_id", "item_id"]}}
    with pytest.raises(DataError, match="shift_split: time, asks for 'timestamp', which is not"):
        run(settings_of, **keys)
    with pytest.raises(DataError, match="'timestamp'; add it to load_col"):
        tiny("BPR", **keys)


# --- files of splits that do not fit --------------------------------------------------------------------


@pytest.fixture
def split_file(settings_of):
    done = run(settings_of, **SHIFTS["popularity"])
    return Path(shutil.copy(Path(done["run_dir"], "split.npz"), "split.npz"))


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-200])


def without_names(file):
    with np.load(file) as split:
        arrays = dict(split)
    del arrays["names"]
    np.savez(file, **arrays)


def pickled(file):
    np.savez(file, part=np.array([{"a": 1}], dtype=object))


def strange_part(file):
    with np.load(file) as split:
        arrays = dict(split)
    arrays["part"] = arrays["part"] + np.int8(90)
    np.savez(file, **arrays)


@pytest.mark.parametrize(
    ("damage", "keys", "error", "words"),
    [
        (cut_short, {}, DataError, ("holds no split", "split.npz")),
        (lambda f: f.write_text("0\n1\n"), {}, DataError, ("holds no split",)),
        (lambda f: f.write_bytes(b""), {}, DataError, ("holds no split",)),
        (without_names, {}, DataError, ("holds no split", "names")),
        (pickled, {}, DataError, ("holds no split", "allow_pickle")),
        (strange_part, {}, DataError, ("holds no split", "out of range")),
        (None, {"model": "SASRec"}, DataError, ("1200 there and 1140 here", "sequential or not")),
        (None, {"item_inter_num_interval": "[18,inf)"}, DataError, ("1200 there", "filters")),
        (None, {"shift_valid": ["shifted"]}, ConfigError, ("no part valid_shifted", "[id]")),
        (
            None,
            {"shift_split": "popularity", "shift_gamma": 3},
            ConfigError,
            ("was made with shift_gamma 1.0, got 3", "leave shift_split"),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_file_that_does_not_fit(split_file, damage, keys, error, words, settings_of, tmp_path):
    if damage is not None:
        damage(split_file)
    keys = dict(keys)
    before = {path for path in tmp_path.rglob("*")}
    with pytest.raises(error) as caught:
        run(settings_of, keys.pop("model", "BPR"), shift_file=str(split_file), **keys)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert {path for path in tmp_path.rglob("*")} == before


def test_a_split_of_other_data_of_the_same_size(split_file):
    """The fingerprint does not look at the numbers of ids, but at who has what."""
    with np.load(split_file) as file:
        n = len(file["part"])
    user, item = np.arange(n) // 20, np.arange(n) % 60
    with pytest.raises(DataError, match="splits other interactions"):
        load_split(str(split_file), None, user, item)


# --- leaks ------------------------------------------------------------------------------------------------


@pytest.fixture
def leaky():
    """Six users and 12 items; test repeats two pairs of train and one of valid."""
    folder = Path("data/leaky")
    folder.mkdir(parents=True)
    train = [(u, (2 * u + k) % 12) for u in range(6) for k in range(4)]
    valid = [(u, (2 * u + 5) % 12) for u in range(6)]
    test = [(0, 0), (0, 6), (1, 3), (2, 9), (2, 10), (3, 1), (4, 0), (5, 4)]
    files = {"train": train, "valid": valid, "test": test, "ood": test[:4]}
    for name, rows in files.items():
        text = "user_id:token\titem_id:token\n" + "".join(f"u{u}\ti{i}\n" for u, i in rows)
        (folder / f"leaky.{name}.inter").write_text(text)
    return {
        "data_path": "data",
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": None,
        "topk": [2],
        "valid_metric": "Recall@2",
        "metrics": ["Recall", "Hit"],
        "train_batch_size": 8,
    }


def test_leaks_are_warned_of_with_counts(leaky, settings_of, caplog):
    done = run(settings_of, "BPR", "leaky", **leaky, state="info")
    (warning,) = [
        r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "leak" in r.msg
    ]
    assert "2 of 8 rows of test (25.0 %) are user-item pairs of train" in warning
    assert "1 of 8 rows of test (12.5 %) are user-item pairs of valid" in warning
    assert "valid (" not in warning  # of which no row leaks
    assert record_of(done)["leaks"][1] == {"part": "test", "in": "train", "rows": 2, "of": 8}


class Sees:
    """A look-up table: train's pairs first, then valid's, then the rest by id."""

    def __init__(self, built):
        self.first = {
            (int(u), int(i)): 3 - k
            for k, data in enumerate((built.train, built.valid))
            for u, i in zip(
                data._dataset.inter_feat["user_id"], data._dataset.inter_feat["item_id"]
            )
        }

    def __call__(self, interaction):
        users, n_items = interaction["user_id"].tolist(), 13
        scores = [[self.first.get((u, i), -i / 100) for i in range(n_items)] for u in users]
        return torch.tensor(scores).flatten()


def recall(tiny, leaky, monkeypatch, name="test", **keys):
    """Recall@2 of the look-up table; users 0 and 2 have two targets, 1, 3, 4 and 5 one."""
    built = tiny("BPR", "leaky", **leaky, **keys)
    monkeypatch.setattr(built.model, "full_sort_predict", Sees(built))
    prepared = built.dataset.prepared
    loader = built.test if name == "test" else prepared.others[name]
    result = built.trainer.evaluate(loader, load_best_model=False)
    return result["recall@2"], prepared.record


def test_a_look_up_table_is_rewarded_until_leaks_are_masked_or_dropped(tiny, leaky, monkeypatch):
    """Test pairs (u0, i0) and (u1, i3) are in train, (u2, i9) is in valid."""
    free, record = recall(tiny, leaky, monkeypatch)
    assert [count["rows"] for count in record["leaks"]] == [0, 2, 1]
    masked, record = recall(tiny, leaky, monkeypatch, mask_leaks=True)
    assert record["masked"] and record["parts"]["test"]["rows"] == 8
    dropped, record = recall(tiny, leaky, monkeypatch, drop_leaks=True)
    assert record["dropped"] == 3 and record["parts"]["test"]["rows"] == 5
    # What the table finds of what is left, by hand: items by id, without those of train and valid.
    built = tiny("BPR", "leaky", **leaky)
    known = pairs(built.train._dataset) | pairs(built.valid._dataset)
    leaked = {pair for pair in pairs(built.test._dataset) if pair in known}
    assert len(leaked) == 3
    hits, targets, left = {}, {}, {}
    for pair in pairs(built.test._dataset):
        user, item = divmod(pair, 13)
        best = [i for i in range(1, 13) if user * 13 + i not in known][:2]
        hits[user] = hits.get(user, 0) + (item in best)
        targets[user] = targets.get(user, 0) + 1
        left[user] = left.get(user, 0) + (pair not in leaked)
    assert masked == pytest.approx(np.mean([hits[u] / targets[u] for u in hits]), abs=1e-4)
    kept = [u for u in hits if left[u]]
    assert dropped == pytest.approx(np.mean([hits[u] / left[u] for u in kept]), abs=1e-4)
    found = dict(hits)
    for pair in leaked:  # which come first
        found[pair // 13] += 1
    best_known = np.mean([min(found[u], 2) / targets[u] for u in hits])
    assert free >= masked + 0.2 and free <= best_known + 1e-4


def test_files_beyond_three_are_further_tests(tiny, leaky, monkeypatch):
    leaky["benchmark_filename"] = ["train", "valid", "test", "ood"]
    value, record = recall(tiny, leaky, monkeypatch, name="ood", drop_leaks=True)
    assert record["parts"]["ood"]["rows"] == 1  # (u0, i6) is the only one that is new
    assert 0 <= value <= 1


def test_sequences_may_repeat_and_it_is_said_without_a_warning(settings_of, caplog):
    folder = Path("data/again")
    folder.mkdir(parents=True)
    rows = [(u, (u + t // 2) % 6, t) for u in range(8) for t in range(8)]
    head = "user_id:token\titem_id:token\ttimestamp:float\n"
    text = head + "".join(f"u{u}\ti{i}\t{t}\n" for u, i, t in rows)
    (folder / "again.inter").write_text(text)
    keys = {"data_path": "data", "topk": [2], "valid_metric": "MRR@2", "metrics": ["MRR"]}
    done = run(settings_of, "SASRec", "again", **keys, state="info")
    assert not [record for record in caplog.records if record.getMessage().startswith("leak")]
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("repeated")]
    # Each user sees every item twice in a row: the last step repeats the one before, in valid.
    assert "8 of 8 rows of test (100.0 %) are user-item pairs of valid" in line
    record = record_of(done)
    assert record["later_training_rows"]["test"]["of_own_user"] == 0


def test_files_beyond_three_are_read_beside_saved_loaders(tiny, leaky, tmp_path):
    """RecBole saves three loaders; of the fourth file all rows are tested in the second run, too."""
    leaky["benchmark_filename"] = ["train", "valid", "test", "ood"]
    keys = {**leaky, "checkpoint_dir": str(tmp_path)}
    first, second = (tiny("BPR", "leaky", **keys, save_dataloaders=s) for s in (True, False))
    assert second.train.dataset is not first.train.dataset and list(tmp_path.glob("*loader.pth"))
    rows = [(0, 0), (0, 6), (1, 3), (2, 9)]
    for built in (first, second):
        part = built.dataset.prepared.parts["ood"]
        user, item = (part.inter_feat[field].numpy() for field in ("user_id", "item_id"))
        users, items = part.id2token("user_id", user), part.id2token("item_id", item)
        assert sorted(zip(users, items)) == [(f"u{u}", f"i{i}") for u, i in rows]
        result = built.trainer.evaluate(built.dataset.prepared.others["ood"], load_best_model=False)
        assert 0 <= result["recall@2"] <= 1


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"shift_n_max": 0.001}, "test_shifted is empty: with shift_n_max: 0.001 .* of 1200"),
        # A thousandth of 1200 rows is one, which chance takes or not.
        (
            {"shift_share": 0.001, "shift_seed": 2},
            "shift_share: 0.001 .*write a larger shift_share",
        ),
    ],
)
def test_a_part_that_comes_out_empty_is_refused(keys, words, tiny):
    with pytest.raises(DataError, match=words):
        tiny("BPR", **SHIFTS["popularity"], **keys)


def test_saved_loaders_do_not_bring_back_what_drop_leaks_leaves_out(tiny, leaky, tmp_path):
    keys = {**leaky, "checkpoint_dir": str(tmp_path)}
    tiny("BPR", "leaky", **keys, save_dataloaders=True)
    with pytest.raises(DataError, match=r"leaves out 3 rows of test, which the loaders saved"):
        tiny("BPR", "leaky", **keys, drop_leaks=True)
