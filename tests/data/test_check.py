"""One case for each fault in the data files, and the words its sentence must hold."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import recbole

from recbole_adv import Config
from recbole_adv.data.check import check_dataset
from recbole_adv.errors import DataError

HEAD = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ROWS = "u1\ti1\t4\t10\nu1\ti2\t5\t11\nu2\ti1\t3.5\t12\nu2\ti2\t1\t13\n"
GOOD = {"tiny.inter": HEAD + ROWS}


def config(folder: Path, **keys):
    """A config that, like RecBole's, gives None for a key it lacks."""
    defaults = {
        "data_path": str(folder / "tiny"),
        "dataset": "tiny",
        "field_separator": "\t",
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "RATING_FIELD": "rating",
        "TIME_FIELD": "timestamp",
        "LABEL_FIELD": "label",
        "eval_args": {"order": "RO", "mode": "full"},
    }
    return defaultdict(lambda: None, {**defaults, **keys})


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    (folder / "tiny").mkdir()
    for name, text in files.items():
        data = text.encode() if isinstance(text, str) else text
        (folder / "tiny" / name).write_bytes(data)


def rows(*lines: str) -> dict[str, str]:
    """Good data with more lines; the first of them is line 6."""
    return {"tiny.inter": HEAD + ROWS + "".join(line + "\n" for line in lines)}


SPLIT = {"benchmark_filename": ["train", "test"]}
HALVES = {"tiny.train.inter": HEAD + ROWS, "tiny.test.inter": HEAD + "u3\ti3\t1\t1\n"}
FEW = {"load_col": {"inter": ["user_id", "item_id"]}}
BAD_QUOTES = ('"u1\ti1\t1\t1', 'u2\ti2\t1\t1"', "u3\ti3\t1\t1")

FAULTS = [
    # what is wrong, files, keys, words of the sentence
    ("no file", {}, {}, ["no file tiny.inter", "holds nothing"]),
    ("other name", {"tinny.inter": HEAD}, {}, ["tiny.inter", "did you mean tinny.inter?"]),
    ("no part", {"tiny.train.inter": HEAD + ROWS}, SPLIT, ["tiny.test.inter", "['train', 'test']"]),
    ("empty", {"tiny.inter": ""}, {}, ["tiny.inter is empty", "user_id:token"]),
    ("header only", {"tiny.inter": HEAD}, {}, ["tiny.inter has a header and no rows"]),
    ("blank rows", {"tiny.inter": HEAD + "\n \n"}, {}, ["has a header and no rows"]),
    ("empty part", {**HALVES, "tiny.test.inter": HEAD}, SPLIT, ["tiny.test.inter", "no rows"]),
    ("no types", {"tiny.inter": "user_id\titem_id\n" + ROWS}, {}, ["'user_id'", "name:type"]),
    ("no header", {"tiny.inter": ROWS}, {}, ["'u1'", "name:type"]),
    ("type", {"tiny.inter": HEAD.replace("rating:float", "rating:flaot") + ROWS}, {},
     ["'rating:flaot'", "token, token_seq, float, float_seq", "did you mean float"]),
    ("two colons", {"tiny.inter": HEAD.replace("rating:", "a:b:") + ROWS}, {}, ["'a:b:float'"]),
    ("no name", {"tiny.inter": HEAD.replace("rating:", ":") + ROWS}, {}, ["':float'"]),
    ("no user", {"tiny.inter": HEAD.replace("user_id", "userid") + ROWS}, {},
     ["no column 'user_id'", "USER_ID_FIELD", "did you mean userid?"]),
    ("no item", {"tiny.inter": HEAD.replace("item_id", "movie") + ROWS}, {},
     ["no column 'item_id'", "ITEM_ID_FIELD", "user_id, movie, rating, timestamp"]),
    ("float user", {"tiny.inter": HEAD.replace("user_id:token", "user_id:float") + ROWS}, {},
     ["user_id:float", "write user_id:token"]),
    ("load_col", GOOD, {"load_col": {"inter": ["user_id", "item_id", "ratings"]}},
     ["no column 'ratings'", "load_col: inter", "did you mean rating?"]),
    ("load_col without ids", GOOD, {"load_col": {"inter": ["item_id"]}},
     ["USER_ID_FIELD", "'user_id'", "not loaded", "['item_id']"]),
    ("load_col without inter", GOOD, {"load_col": {"user": ["age"]}}, ["'user_id'", "not loaded"]),
    ("load_col file", GOOD, {"load_col": {"inter": ["user_id", "item_id"], "item": ["item_id"]}},
     ["no file tiny.item", "load_col asks"]),
    ("suffix", GOOD, {"additional_feat_suffix": ["ent"]}, ["no file tiny.ent", "additional_feat"]),
    ("unload_col", GOOD, {"unload_col": {"inter": ["item_id"]}}, ["'item_id'", "not loaded"]),
    ("threshold", GOOD, {"threshold": {"stars": 3}}, ["no column 'stars'", "threshold"]),
    ("no time", GOOD, {**FEW, "eval_args": {"order": "TO"}}, ["'timestamp'", "order: TO"]),
    ("no label", GOOD, {"eval_args": {"mode": "labeled"}}, ["'label'", "mode: labeled"]),
    ("twice", {"tiny.inter": HEAD.replace("timestamp", "rating") + ROWS}, {},
     ["two columns 'rating'"]),
    ("commas", {"tiny.inter": (HEAD + ROWS).replace("\t", ",")}, {},
     ["no '\\t'", "field_separator to ','"]),
    ("tabs", GOOD, {"field_separator": ","}, ["no ','", "field_separator to '\\t'"]),
    ("comma rows", {"tiny.inter": HEAD + ROWS.replace("\t", ",")}, {}, ["line 2 has 1 columns"]),
    ("too few", rows("u3\ti1"), {}, ["line 6 has 2 columns", "['u3', 'i1']", "write 4"]),
    ("too many", rows("u3\ti1\t1\t1\t1"), {}, ["line 6 has 5 columns", "write 4"]),
    ("too few, not loaded", rows("u3\ti1"), FEW, ["line 6 has 2 columns"]),
    ("after a blank line", rows("", "u3\ti1"), {}, ["line 7 has 2 columns"]),
    ("text", rows("u3\ti1\tgood\t1", "u3\ti1\tbad\t1"), {},
     ["line 6", "rating is 'good'", "(2 such rows)", "rating:token"]),
    ("text after a blank line", rows("", "u3\ti1\tgood\t1"), {}, ["line 7", "'good'"]),
    ("decimal comma", rows("u3\ti1\t3,5\t1"), {}, ["line 6", "rating is '3,5'"]),
    ("underscore", rows("u3\ti1\t1_000\t1"), {}, ["line 6", "rating is '1_000'"]),
    ("nan", rows("u3\ti1\t1\tnan"), {}, ["line 6", "timestamp is 'nan'"]),
    ("inf", rows("u3\ti1\t-inf\t1"), {}, ["line 6", "rating is '-inf'"]),
    ("empty number", rows("u3\ti1\t\t1", "u3\ti2\t\t1"), {},
     ["line 6", "rating is empty", "(2 such rows)"]),
    ("empty user", rows("\ti1\t1\t1"), {}, ["line 6", "user_id is empty", "drop the row"]),
    ("empty item", rows("u1\t\t1\t1", "u1\t\t1\t2"), {}, ["item_id is empty", "(2 such rows)"]),
    ("user NA", rows("NA\ti1\t1\t1"), {}, ["line 6", "user_id is 'NA'", "missing value"]),
    ("latin-1", {"tiny.inter": (HEAD + ROWS + "é\ti1\t1\t1\n").encode("latin-1")}, {},
     ["line 6 is not utf-8", "udce9"]),
    ("latin-1 header", {"tiny.inter": (HEAD.replace("rating", "é") + ROWS).encode("latin-1")}, {},
     ["line 1 is not utf-8"]),
    ("byte order mark", {"tiny.inter": b"\xef\xbb\xbf" + (HEAD + ROWS).encode()}, {},
     ["byte order mark"]),
    ("one user", {"tiny.inter": HEAD + "u1\ti1\t1\t1\nu1\ti2\t1\t1\n"}, {},
     ["single user_id, 'u1'", "at least 2 users"]),
    ("one item", {"tiny.inter": HEAD + "u1\ti1\t1\t1\nu2\ti1\t1\t1\n"}, {},
     ["single item_id, 'i1'"]),
    ("quote to the end", rows('"u1\ti1\t1\t1', "u1\ti2\t1\t1"), {}, ["line 6", "quotation mark"]),
    ("quotes that join values", rows('"u1\ti1\t1\t1', 'u2"\ti2\t1\t1'), {},
     ["line 6", "quotation mark"]),
    ("quotes that join lines", rows(*BAD_QUOTES), {}, ["line 6", "quotation mark"]),
    ("long quote", rows('"u1\ti1\t1\t1', *["u1\ti2\t1\t1"] * 20000), {}, ["line 6", "quotes"]),
    ("user file", {**GOOD, "tiny.user": "user_id,age\nu1,3\n"}, {}, ["tiny.user", "'\\t'"]),
    ("user header", {**GOOD, "tiny.user": "user_id:token\tage:int\nu1\t3\n"}, {},
     ["tiny.user", "'age:int'"]),
    ("item header", {**GOOD, "tiny.item": "id:token\tyear:float\n"}, {},
     ["tiny.item", "no column 'item_id'"]),
    ("empty item file", {**GOOD, "tiny.item": ""}, {}, ["tiny.item is empty"]),
    ("latin-1 item", {**GOOD, "tiny.item": "item_id:token\ti:token\ni1\té".encode("latin-1")}, {},
     ["tiny.item, line 2 is not utf-8"]),
]  # fmt: skip


@pytest.mark.parametrize("files, keys, words", [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_is_named_in_one_sentence(tmp_path, files, keys, words):
    write(tmp_path, files)
    with pytest.raises(DataError) as caught:
        check_dataset(config(tmp_path, **keys))
    sentence = str(caught.value)
    assert [word for word in words if word not in sentence] == [], sentence
    assert "\n" not in sentence and len(sentence.replace(str(tmp_path), "")) < 320


GOOD_DATA = {
    "plain": (GOOD, {}),
    "no newline at the end": ({"tiny.inter": (HEAD + ROWS).rstrip()}, {}),
    "carriage returns": ({"tiny.inter": (HEAD + ROWS).replace("\n", "\r\n")}, {}),
    "blank lines": (rows("", "u3\ti3\t1\t1", ""), {}),
    "quotes": (
        rows('"u 3"\ti3\t1\t1', 'u"4\ti3\t1\t1', '"a\tb"\ti3\t1\t1', '"a\nb"\ti3\t1\t1'),
        {},
    ),
    "fault in a column that is not loaded": (rows("u3\ti3\tgood\t"), FEW),
    "unloaded fault": (rows("u3\ti3\tgood\t1"), {"unload_col": {"inter": ["rating"]}}),
    "split": (HALVES, SPLIT),
    "split in time": (HALVES, {**SPLIT, "eval_args": {"order": "TO"}}),
    "star": (GOOD, {"load_col": {"inter": "*"}}),
    "label by threshold": (GOOD, {"threshold": {"rating": 3}, "eval_args": {"mode": "labeled"}}),
    "commas": ({"tiny.inter": (HEAD + ROWS).replace("\t", ",")}, {"field_separator": ","}),
    "two characters": (
        {"tiny.inter": (HEAD + ROWS).replace("\t", "::")},
        {"field_separator": "::"},
    ),
    "latin-1": ({"tiny.inter": (HEAD + "é" + ROWS).encode("latin-1")}, {"encoding": "latin-1"}),
    "missing float of an item": ({**GOOD, "tiny.item": "item_id:token\tprice:float\ni1\t\n"}, {}),
    "broken file that is not loaded": ({**GOOD, "tiny.item": "id"}, FEW),
}


LABELLED = {"metrics": ["AUC"], "valid_metric": "AUC", "eval_args": {"mode": "labeled"}}
ORDERED = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}


def of_a_run(folder, model, settings):
    """The Config of a run, in which RecBole has filled in what the keys leave open."""
    settings = {"data_path": str(folder), "use_gpu": False, "load_col": None, **settings}
    return Config(model, "tiny", config_dict=settings)


@pytest.mark.parametrize(
    "model, settings, words",
    [
        ("BPR", LABELLED, "no column 'label', which LABEL_FIELD, with eval_args mode: labeled"),
        (
            "BPR",
            {**LABELLED, "eval_args": {"mode": {"valid": "uni5", "test": "labeled"}}},
            "no column 'label'",
        ),
        ("BPR", {**FEW, "eval_args": ORDERED}, "order: TO, asks for 'timestamp'"),
        ("BPR", {**FEW, "shift_split": "time"}, "shift_split: time, asks for 'timestamp'"),
        (
            "SASRec",
            {**FEW, "shift_split": "popularity", "eval_args": ORDERED},
            "a model of sequences, asks for 'timestamp'",
        ),
    ],
)
def test_a_column_that_a_run_needs(model, settings, words, tmp_path):
    write(tmp_path, GOOD)
    with pytest.raises(DataError, match=words):
        check_dataset(of_a_run(tmp_path, model, settings))


@pytest.mark.parametrize(
    "settings",
    [
        {**LABELLED, "threshold": {"rating": 3}},
        {**FEW, "shift_split": "popularity", "eval_args": ORDERED},
    ],
)
def test_a_column_that_a_run_does_without(settings, tmp_path):
    write(tmp_path, GOOD)
    assert check_dataset(of_a_run(tmp_path, "BPR", settings)) is None


def test_a_file_of_training_needs_no_label(tmp_path):
    """Negatives are drawn; validation and test are labelled."""
    labelled = "user_id:token\titem_id:token\tlabel:float\nu1\ti1\t1\nu2\ti2\t0\n"
    write(tmp_path, {"tiny.train.inter": HEAD + ROWS})
    for part in ("valid", "test"):
        (tmp_path / "tiny" / f"tiny.{part}.inter").write_text(labelled)
    settings = {**LABELLED, "benchmark_filename": ["train", "valid", "test"]}
    assert check_dataset(of_a_run(tmp_path, "BPR", settings)) is None
    (tmp_path / "tiny" / "tiny.test.inter").write_text(HEAD + ROWS)
    with pytest.raises(DataError, match="tiny.test.inter has no column 'label'"):
        check_dataset(of_a_run(tmp_path, "BPR", settings))


@pytest.mark.parametrize("files, keys", GOOD_DATA.values(), ids=list(GOOD_DATA))
def test_good_data_passes(tmp_path, files, keys):
    write(tmp_path, files)
    assert check_dataset(config(tmp_path, **keys)) is None


def test_a_missing_dataset_gets_its_siblings_as_suggestions(tmp_path):
    (tmp_path / "two_worlds").mkdir()
    keys = {"data_path": str(tmp_path / "two_wrlds"), "dataset": "two_wrlds"}
    with pytest.raises(DataError, match=r"no directory .*two_wrlds.*did you mean two_worlds\?"):
        check_dataset(config(tmp_path, **keys))


def test_a_missing_dataset_in_a_missing_directory(tmp_path):
    keys = {"data_path": str(tmp_path / "nowhere" / "mine"), "dataset": "mine"}
    with pytest.raises(DataError, match="'mine'.*nowhere holds no dataset"):
        check_dataset(config(tmp_path, **keys))


def test_a_dataset_that_recbole_downloads_passes(tmp_path):
    keys = {"data_path": str(tmp_path / "ml-1m"), "dataset": "ml-1m"}
    assert check_dataset(config(tmp_path, **keys)) is None


@pytest.mark.parametrize("columns", [["user_id", "item_id"], "*"])
def test_ml_100k_passes(tmp_path, columns):
    folder = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
    keys = {"data_path": str(folder), "dataset": "ml-100k"}
    assert check_dataset(config(tmp_path, **keys, load_col={"inter": columns})) is None
    assert check_dataset(config(tmp_path, **keys)) is None
