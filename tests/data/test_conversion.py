"""Converters on small files of the publishers' forms: what is written, and what is refused."""

from __future__ import annotations

import io
import shlex
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from recbole_adv.cli import main
from recbole_adv.data.conversion import coat, kuairec, movielens, yahoo_r3
from recbole_adv.data.conversion.tables import Count

GENRES = ["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy"]


def matrix(seed: int, per_user: int) -> np.ndarray:
    """Ratings of 290 users for 300 coats, ``per_user`` each."""
    rng = np.random.default_rng(seed)
    ratings = np.zeros((290, 300), dtype=int)
    for row in ratings:
        row[rng.choice(300, per_user, replace=False)] = rng.integers(1, 6, per_user)
    return ratings


def as_lines(numbers: np.ndarray) -> str:
    return "".join(" ".join(map(str, row)) + " \n" for row in numbers)


def one_hot(n_rows: int, sizes: list[int]) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.hstack([np.eye(size, dtype=int)[rng.integers(0, size, n_rows)] for size in sizes])


COAT = {
    "coat/train.ascii": as_lines(matrix(1, 24)),
    "coat/test.ascii": as_lines(matrix(2, 16)),
    "coat/user_item_features/user_features.ascii": as_lines(one_hot(290, [2, 3])),
    "coat/user_item_features/user_features_map.txt": "gender:men\ngender:women\nage:20-30\n"
    "age:over 60\nage:under 20",
    "coat/user_item_features/item_features.ascii": as_lines(one_hot(300, [2, 2])),
    "coat/user_item_features/item_features_map.txt": "gender:men\ngender:women\nonfrontpage:yes\n"
    "onfrontpage:no\n",
}
YAHOO_TRAIN, YAHOO_TEST = (
    f"ydata-ymusic-rating-study-v1_0-{part}.txt" for part in ("train", "test")
)
YAHOO = {
    YAHOO_TRAIN: "".join(
        f"{u}\t{1 + (u * k) % 9}\t{1 + (u + k) % 5}\n" for u in range(1, 8) for k in range(1, 6)
    ),
    YAHOO_TEST: "".join(f"{u}\t{s}\t{1 + (u * s) % 5}\n" for u in (1, 2, 3) for s in (2, 4, 6)),
}
KUAI_HEAD = "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
KUAIREC = {
    "KuaiRec 2.0/data/big_matrix.csv": KUAI_HEAD
    + "".join(
        f'{u},{v},100,50,"2020-07-05 00:08:23.4",20200705,1593878903.{v},{(u + v) % 5}.5\n'
        for u in range(6)
        for v in range(8)
        if (u + v) % 3
    ),
    "KuaiRec 2.0/data/small_matrix.csv": KUAI_HEAD
    + "".join(
        f"{u},{v},100,50,,,{'' if v == 2 else '1593878903.5'},{(u * v) % 4}.25\n"
        for u in (1, 3)
        for v in (0, 2, 5)
    ),
    "KuaiRec 2.0/data/item_categories.csv": 'video_id,feat\n0,[8]\n1,"[27, 9]"\n',
    "KuaiRec 2.0/data/user_features.csv": "user_id,user_active_degree,register_days,onehot_feat4\n"
    "0,full_active,107,\n1,high_active,327,3\n",
}
ML_100K = {
    "ml-100k/u.data": "1\t1\t5\t874965758\n1\t2\t3\t876893171\n2\t1\t4\t888550871\n",
    "ml-100k/u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n",
    "ml-100k/u.item": "1|Toy Story (1995)|01-Jan-1995||http://x?Toy (1995)|"
    + "|".join("000111" + "0" * 13)
    + '\n2|"Blue" in the Face (1995)|01-Jan-1995|||'
    + "|".join("1" + "0" * 18)
    + "\n3|caf\xe9||||"
    + "|".join("01" + "0" * 17)
    + "\n",
}
ML_1M = {
    "ratings.dat": "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n",
    "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n",
    "movies.dat": "661::James: the Giant Peach (1996)::Animation|Children's\n"
    "1193::One Flew Over (1975)::Drama\n",
}
ML_20M = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,3.5,1112484676\n2,2,4,1\n",
    "movies.csv": 'movieId,title,genres\n2,"Story, The (1995)",Adventure|Children\n'
    "29,Untitled,(no genres listed)\n",
}
ADJACENCY = {
    "gowalla/train.txt": "0 0 1 2\n1 2 3\n2\n3 1 1\n",
    "gowalla/test.txt": "0 3 1\n3 0\n",
    "gowalla/test_ood.txt": "1 0 \n",
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The counts of the small files in place of the published ones."""
    monkeypatch.setattr(yahoo_r3, "PUBLISHED", {"train": Count(35, 7, 9), "test": Count(9, 3, 3)})
    monkeypatch.setattr(kuairec, "PUBLISHED", {"train": Count(32, 6, 8), "test": Count(6, 2, 3)})
    for name in ("ml-100k", "ml-1m", "ml-20m"):
        monkeypatch.setitem(movielens.PUBLISHED, name, Count(3, 2, 2))


def put(files: dict[str, str], encoding: str = "utf-8") -> None:
    for name, text in files.items():
        path = Path("source", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(encoding))


def convert(arguments: str) -> int:
    return main(["data", "convert", *shlex.split(arguments)])


def converted(arguments: str, capsys) -> str:
    code = convert(f"{arguments} --source source")
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def rows(file: str) -> list[list[str]]:
    """The rows of a file in ``dataset``, the header first, as pandas reads them in RecBole."""
    frame = pd.read_csv(Path("dataset", file), sep="\t", dtype=str, keep_default_na=False)
    return [list(frame.columns), *frame.values.tolist()]


# --- Coat -----------------------------------------------------------------------------------------------


def test_coat(capsys):
    put(COAT)
    shown = converted("coat", capsys)
    head = ["user_id:token", "item_id:token", "rating:float"]
    parts = {part: rows(f"coat/coat.{part}.inter") for part in ("train", "valid", "test")}
    assert [parts[part][0] for part in parts] == [head] * 3
    assert len(parts["valid"]) - 1 == 696  # a tenth of 6960
    both = np.zeros((290, 300), dtype=int)
    for user, item, rating in parts["train"][1:] + parts["valid"][1:]:
        both[int(user), int(item)] += int(rating)
    assert (both == matrix(1, 24)).all()
    assert len(parts["test"]) - 1 == 4640
    assert {(u, i, str(r)) for u, i, r in parts["test"][1:]} == {
        (str(u), str(i), str(r)) for (u, i), r in np.ndenumerate(matrix(2, 16)) if r
    }
    users = rows("coat/coat.user")
    assert users[0] == ["user_id:token", "gender:token", "age:token"]
    first = one_hot(290, [2, 3])[0]
    ages = ["20-30", "over_60", "under_20"]
    assert users[1] == ["0", ["men", "women"][first[1]], ages[int(first[2:].argmax())]]
    assert rows("coat/coat.item")[0] == ["item_id:token", "item_gender:token", "onfrontpage:token"]
    leaked = int(((matrix(1, 24) > 0) & (matrix(2, 16) > 0)).sum())
    n_valid = sum(
        f"{u} {i}" in {f"{r[0]} {r[1]}" for r in parts["test"][1:]}
        for u, i, _ in parts["valid"][1:]
    )
    assert f"{leaked - n_valid} of 4640 rows of test are user-item pairs of train" in shown
    assert "use it with: recbole-adv run -m FM -c dataset/coat/coat.yaml" in shown


def test_coat_for_ranking_has_the_rated_items_as_its_pool(capsys):
    put(COAT)
    converted("coat --min-rating 4 --name liked --valid-share 0.2 --seed 1", capsys)
    train, valid, test = (rows(f"liked/liked.{part}.inter") for part in ("train", "valid", "test"))
    assert train[0] == ["user_id:token", "item_id:token"]
    assert len(train) + len(valid) - 2 == int((matrix(1, 24) >= 4).sum())
    assert len(valid) - 1 == round(0.2 * (matrix(1, 24) >= 4).sum())
    assert len(test) - 1 == int((matrix(2, 16) >= 4).sum())
    assert len(rows("liked/liked.test_pool.inter")) - 1 == 4640
    settings = yaml.safe_load(Path("dataset/liked/liked.yaml").read_text())
    assert settings["benchmark_filename"] == ["train", "valid", "test"]
    assert settings["test_pool"] == "dataset/liked/liked.test_pool.inter"


@pytest.mark.parametrize(
    ("options", "model", "metric"), [("", "FM", "auc"), ("--min-rating 4", "BPR", "recall@10")]
)
def test_what_is_printed_runs(options, model, metric, capsys):
    put(COAT)
    converted(f"coat {options}", capsys)
    from recbole_adv import run_recbole_adv

    quiet = {"epochs": 1, "state": "error", "show_progress": False, "use_gpu": False}
    done = run_recbole_adv(model, None, ["dataset/coat/coat.yaml"], {**quiet, "embedding_size": 4})
    assert 0 < done["test_result"][metric] < 1


def test_coat_without_features(capsys):
    put({name: text for name, text in COAT.items() if "features" not in name})
    shown = converted("coat", capsys)
    assert "no user_features.ascii" in shown and not Path("dataset/coat/coat.user").exists()


# --- the others -----------------------------------------------------------------------------------------


def test_yahoo(capsys):
    put(YAHOO)
    converted("yahoo-r3", capsys)
    test = rows("yahoo-r3/yahoo-r3.test.inter")
    assert test[0] == ["user_id:token", "item_id:token", "rating:float"]
    assert ["\t".join(row) for row in test[1:]] == YAHOO[YAHOO_TEST].split("\n")[:-1]
    train, valid = (rows(f"yahoo-r3/yahoo-r3.{part}.inter")[1:] for part in ("train", "valid"))
    assert sorted("\t".join(row) for row in train + valid) == sorted(
        YAHOO[YAHOO_TRAIN].splitlines()
    )


def test_kuairec(capsys):
    put(KUAIREC)
    shown = converted("kuairec --min-rating 2", capsys)
    train, valid, test = (rows(f"kuairec/kuairec.{p}.inter") for p in ("train", "valid", "test"))
    assert test[0] == ["user_id:token", "item_id:token", "timestamp:float"]
    # watch_ratio is (u v) mod 4 and a quarter: u 1 v 2, u 3 v 2 (6 mod 4), u 3 v 5 (15 mod 4).
    assert [row[:2] for row in test[1:]] == [["1", "2"], ["3", "2"], ["3", "5"]]
    assert [row[2] for row in test[1:]] == ["", "", "1593878903.5"]
    liked = {(u, v) for u in range(6) for v in range(8) if (u + v) % 3 and (u + v) % 5 >= 2}
    assert {(int(row[0]), int(row[1])) for row in train[1:] + valid[1:]} == liked
    assert "2 rows of the small matrix have no timestamp" in shown
    assert rows("kuairec/kuairec.eval_mask.item")[1:] == [["1"], ["3"], ["4"], ["6"], ["7"]]
    assert rows("kuairec/kuairec.item")[1:] == [["0", "8"], ["1", "27 9"]]
    assert rows("kuairec/kuairec.user") == [
        ["user_id:token", "user_active_degree:token", "register_days:float", "onehot_feat4:token"],
        ["0", "full_active", "107.0", ""],
        ["1", "high_active", "327.0", "3"],
    ]
    settings = yaml.safe_load(Path("dataset/kuairec/kuairec.yaml").read_text())
    assert settings["load_col"] == {"inter": ["user_id", "item_id"]}
    assert settings["eval_mask"] == "dataset/kuairec/kuairec.eval_mask.item"


def test_ml_100k(capsys):
    put(ML_100K, "latin-1")
    converted("ml-100k", capsys)
    head = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    assert rows("ml-100k/ml-100k.inter") == [
        head,
        ["1", "1", "5.0", "874965758"],
        ["1", "2", "3.0", "876893171"],
        ["2", "1", "4.0", "888550871"],
    ]
    names = ["user_id", "age", "gender", "occupation", "zip_code"]
    assert rows("ml-100k/ml-100k.user")[:2] == [
        [f"{name}:token" for name in names],
        ["1", "24", "M", "technician", "85711"],
    ]
    assert rows("ml-100k/ml-100k.item") == [
        ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"],
        ["1", "Toy Story", "1995", "Animation Children's Comedy"],
        ["2", '"Blue" in the Face', "1995", "unknown"],
        ["3", "caf\xe9", "", "Action"],
    ]


def test_ml_1m(capsys):
    put(ML_1M)
    converted("ml-1m", capsys)
    assert rows("ml-1m/ml-1m.inter")[2] == ["1", "661", "3.0", "978302109"]
    assert rows("ml-1m/ml-1m.user")[1] == ["1", "F", "1", "10", "48067"]
    assert rows("ml-1m/ml-1m.item")[1] == [
        *("661", "James: the Giant Peach", "1996", "Animation Children's")
    ]


def test_ml_20m(capsys):
    put(ML_20M)
    converted("ml-20m --output data/here", capsys)
    assert (
        Path("data/here/ml-20m/ml-20m.inter").read_text().splitlines()[1] == "1\t2\t3.5\t1112486027"
    )
    item = Path("data/here/ml-20m/ml-20m.item").read_text().splitlines()
    assert item[1:] == ["2\tStory, The\t1995\tAdventure Children", "29\tUntitled\t\t"]


def test_adjacency(capsys):
    put(ADJACENCY)
    assert convert("adjacency --source source/gowalla --valid-share 0.2") == 0
    shown = capsys.readouterr().out
    train, valid = (rows(f"gowalla/gowalla.{part}.inter")[1:] for part in ("train", "valid"))
    pairs = [["0", "0"], ["0", "1"], ["0", "2"], ["1", "2"], ["1", "3"], ["3", "1"], ["3", "1"]]
    assert sorted(train + valid) == pairs and len(valid) == 1
    assert rows("gowalla/gowalla.test.inter")[1:] == [["0", "3"], ["0", "1"], ["3", "0"]]
    assert rows("gowalla/gowalla.test_ood.inter")[1:] == [["1", "0"]]
    assert "1 of 7 pairs of train stand there more than once" in shown
    settings = yaml.safe_load(Path("dataset/gowalla/gowalla.yaml").read_text())
    assert settings["benchmark_filename"] == ["train", "valid", "test", "test_ood"]


def test_a_published_validation_is_kept(capsys):
    put({**ADJACENCY, "gowalla/valid.txt": "0 3\n"})
    converted("adjacency --name mine", capsys)
    assert rows("mine/mine.valid.inter")[1:] == [["0", "3"]]
    assert len(rows("mine/mine.train.inter")) - 1 == 7


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_archives_are_read_as_they_came(form, capsys):
    file = Path(f"ml-1m.{form}")
    if form == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, text in {**ML_1M, "../escape.txt": "x"}.items():
                archive.writestr(f"ml-1m/{name}", text)
    else:
        with tarfile.open(file, "w:gz") as archive:
            for name, text in ML_1M.items():
                entry = tarfile.TarInfo(f"ml-1m/{name}")
                entry.size = len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))
    assert convert(f"ml-1m --source {file}") == 0
    assert len(rows("ml-1m/ml-1m.inter")) == 4
    assert {path.name for path in Path().iterdir()} == {file.name, "dataset"}


def test_counts_are_the_published_ones():
    """Of the data sets' own pages and files, which no test may hold."""
    assert coat.PUBLISHED == {"train": (6960, 290, 300), "test": (4640, 290, 300)}
    assert movielens.PUBLISHED["ml-10m"] == (10000054, 69878, 10677)


# --- what is refused ------------------------------------------------------------------------------------


def line_without_an_end(text: str) -> str:
    """The file as a broken download leaves it: in the middle of its last line."""
    return text[: len(text) - 9]


def edit(files: dict[str, str], name: str, change) -> dict[str, str]:
    (full,) = [n for n in files if n.endswith(name)]
    return {**files, full: change(files[full])}


REFUSED = {
    "format": ({}, "coats", "'coats'", "did you mean coat?"),
    "source nowhere": ({}, "coat --source nowhere", "'nowhere' does not exist", ".zip"),
    "source no archive": ({"x.txt": "1"}, "coat --source source/x.txt", "is no archive"),
    "source missing": ({}, "coat", "--source", "--help"),
    "file missing": (
        {"train.ascii": COAT["coat/train.ascii"], "tset.ascii": ""},
        "coat",
        "no test.ascii",
        "did you mean tset.ascii",
    ),
    "coat cut short": (edit(COAT, "train.ascii", line_without_an_end), "coat", "line 290", "300"),
    "coat of few users": (
        edit(COAT, "test.ascii", lambda text: "".join(text.splitlines(True)[:200])),
        "coat",
        "test.ascii must have 290 lines of 300",
        "got 200 of 300",
    ),
    "coat of words": (
        edit(COAT, "train.ascii", lambda text: "x" + text[1:]),
        "coat",
        "train.ascii must hold whole numbers",
        "'x'",
    ),
    "coat of other ratings": (
        edit(COAT, "train.ascii", lambda text: "7" + text[1:]),
        "coat",
        "ratings 1 to 5",
        "got 7",
    ),
    "coat with one rating less": (
        edit(COAT, "train.ascii", lambda text: text.replace("5", "0", 1)),
        "coat",
        "should hold 6960 rows of 290 users",
        "got 6959",
        "--no-check-counts",
    ),
    "coat features of others": (
        edit(COAT, "user_features_map.txt", lambda text: text + "\nage:90"),
        "coat",
        "290 lines of 6 numbers",
        "got 290 of 5",
    ),
    "yahoo cut short": (
        edit(YAHOO, YAHOO_TEST, line_without_an_end),
        "yahoo-r3",
        YAHOO_TEST,
        "user<TAB>song<TAB>rating",
    ),
    "yahoo with a line less": (
        edit(YAHOO, YAHOO_TRAIN, lambda text: text.partition("\n")[2]),
        "yahoo-r3",
        "train should hold 35 rows of 7 users",
        "got 34",
    ),
    "yahoo of four columns": (
        edit(YAHOO, YAHOO_TRAIN, lambda text: text.replace("\n", "\t1\n")),
        "yahoo-r3",
        YAHOO_TRAIN,
        "more columns",
    ),
    "yahoo with spaces": (
        edit(YAHOO, YAHOO_TRAIN, lambda text: text.replace("\t", " ")),
        "yahoo-r3",
        YAHOO_TRAIN,
        "user<TAB>song<TAB>rating",
    ),
    "yahoo of other ratings": (
        edit(YAHOO, YAHOO_TRAIN, lambda text: "1\t1\t255\n" + text),
        "yahoo-r3",
        "ratings 1 to 5",
        "got 255",
    ),
    "kuairec without a column": (
        edit(KUAIREC, "big_matrix.csv", lambda text: text.replace("watch_ratio", "ratio")),
        "kuairec",
        "big_matrix.csv",
        "watch_ratio",
    ),
    "kuairec without a number": (
        edit(KUAIREC, "small_matrix.csv", lambda text: text.replace(",3.25", ",", 1)),
        "kuairec",
        "small_matrix.csv",
        "no number for watch_ratio",
    ),
    "kuairec cut short": (
        edit(KUAIREC, "small_matrix.csv", lambda text: "".join(text.splitlines(True)[:-1])),
        "kuairec",
        "test should hold 6 rows",
        "got 5",
    ),
    "threshold too high": (YAHOO, "yahoo-r3 --min-rating 9", "leaves no row", "up to 5"),
    "ml-1m for ml-100k": (ML_1M, "ml-100k", "no u.data", "movies.dat, ratings.dat, users.dat"),
    "ratings of three columns": (
        {**ML_1M, "ratings.dat": "1::2::3\n"},
        "ml-1m",
        "ratings.dat",
        "user::item::rating::timestamp",
    ),
    "rating no number": (
        {**ML_1M, "ratings.dat": "1::2::good::9\n"},
        "ml-1m",
        "ratings.dat",
        "good",
    ),
    "movies of two columns": (
        {**ML_1M, "movies.dat": "1::Heat (1995)\n"},
        "ml-1m",
        "movies.dat, line 1 must have 3 values",
        "got 2",
    ),
    "other encoding": (
        {**ML_20M, "movies.csv": "movieId,title,genres\n1,\udce9t\udce9,Drama\n"},
        "ml-20m",
        "movies.csv",
        "utf-8",
    ),
    "empty file": ({**ML_20M, "ratings.csv": ""}, "ml-20m", "ratings.csv", "No columns"),
    "adjacency of words": (
        edit(ADJACENCY, "train.txt", lambda text: text.replace("1 2 3", "1 2 x3")),
        "adjacency",
        "train.txt, line 2 holds 'x3'",
    ),
    "adjacency without items": (
        edit(ADJACENCY, "train.txt", lambda text: "0\n1\n"),
        "adjacency",
        "train.txt holds no pair",
    ),
    "adjacency without a test": (
        {"train.txt": "0 1\n"},
        "adjacency",
        "no test in source",
        "test_ood.txt",
    ),
    "rating of none": (ADJACENCY, "adjacency --min-rating 4", "needs ratings", "leave it out"),
    "share": (ADJACENCY, "adjacency --valid-share 1.5", "between 0 and 1, got 1.5"),
    "share too large": (ADJACENCY, "adjacency --valid-share 0.9", "0.9 asks for", "at most"),
    "name a path": (ADJACENCY, "adjacency --name a/b", "'a/b'", "no path"),
    "there already": (ADJACENCY, "adjacency --output here --name taken", "here/taken exists"),
    "output below a file": (ADJACENCY, "adjacency --output here/file --name x", "'here/file'"),
    "setting": (ADJACENCY, "adjacency --epochs=3", "'--epochs=3'"),
    "no action": (None, "", "action", "--help"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, capsys):
    """One sentence, and nothing written."""
    files, arguments, *words = REFUSED[name]
    for path, text in (files or {}).items():
        Path("source", path).parent.mkdir(parents=True, exist_ok=True)
        Path("source", path).write_bytes(text.encode("utf-8", "surrogateescape"))
    Path("source").mkdir(exist_ok=True)
    Path("here/taken").mkdir(parents=True)
    Path("here/file").write_text("")
    before = {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}
    command = ["data", "convert", *shlex.split(arguments)] if files is not None else ["data"]
    if files is not None and "--source" not in arguments and name != "source missing":
        command += ["--source", "source"]
    assert main(command) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("recbole-adv: ") and shown.count("\n") == 1 and "Traceback" not in shown
    for word in words:
        assert word in shown, shown
    assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_a_damaged_archive(form, capsys):
    text = "".join(f"{k}::{k * 7919 % 1000}::3::{k * 104729}\n" for k in range(20_000))
    file = Path(f"ml-1m.{form}")
    if form == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("ratings.dat", text)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 255
        file.write_bytes(data)
    else:
        with tarfile.open(file, "w:gz") as archive:
            entry = tarfile.TarInfo("ratings.dat")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
        file.write_bytes(file.read_bytes()[:-20_000])
    assert main(["data", "convert", "ml-1m", "--source", str(file)]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "fetch it again" in shown, shown
    assert not Path("dataset").exists()


def test_a_full_disk_leaves_nothing(capsys, monkeypatch):
    put(ML_1M)
    monkeypatch.setattr(
        pd.DataFrame, "to_csv", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    assert convert("ml-1m --source source --output new/place") == 2
    assert "'new/place' cannot be written (No space left)" in capsys.readouterr().err
    assert not Path("new").exists()
