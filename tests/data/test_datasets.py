"""The datasets we ship: as their generators write them, and with the statistics they promise."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest

from recbole_adv.data.check import check_dataset

FOLDER = Path(__file__).parents[2] / "dataset"
NAMES = ["checkerboard", "two_worlds"]


def generator(name: str):
    spec = importlib.util.spec_from_file_location(f"make_{name}", FOLDER / f"make_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(name: str, suffix: str) -> pd.DataFrame:
    """A file with its columns named without their types."""
    frame = pd.read_csv(FOLDER / name / f"{name}.{suffix}", sep="\t")
    return frame.rename(columns=lambda column: column.partition(":")[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_writes_exactly_the_files_that_are_there(name):
    written = {path.name: path.read_bytes() for path in (FOLDER / name).iterdir()}
    assert written == {file: text.encode() for file, text in generator(name).files().items()}


@pytest.mark.parametrize("name", NAMES)
def test_check_finds_a_file_that_differs_and_writing_mends_it(name, tmp_path, monkeypatch, capsys):
    module = generator(name)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "make.py"))
    assert module.main([]) == 0 and module.main(["--check"]) == 0
    file = next((tmp_path / name).glob("*.item"))
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert module.main(["--check"]) == 1
    assert f"differs in {file.name}" in capsys.readouterr().out
    assert module.main([]) == 0 and module.main(["--check"]) == 0


@pytest.mark.parametrize("name, parts", [("checkerboard", None), ("two_worlds", ["train", "test"])])
def test_recbole_adv_finds_no_fault_in_them(name, parts):
    keys = {"data_path": FOLDER / name, "dataset": name, "benchmark_filename": parts}
    ids = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "field_separator": "\t"}
    assert check_dataset(defaultdict(lambda: None, {**keys, **ids})) is None


@pytest.mark.parametrize("name, limit", [("checkerboard", 60_000), ("two_worlds", 400_000)])
def test_they_are_small(name, limit):
    assert sum(path.stat().st_size for path in (FOLDER / name).iterdir()) < limit


# --- checkerboard -------------------------------------------------------------------------------


def colour(ids: pd.Series) -> pd.Series:
    return ids.str[1:].astype(int) % 2


def test_checkerboard_users_click_on_20_of_the_30_items_of_their_colour():
    clicks = table("checkerboard", "inter")
    assert (colour(clicks.user_id) == colour(clicks.item_id)).all()
    assert clicks.groupby("user_id").item_id.nunique().tolist() == [20] * 60
    assert len(clicks) == 1200 and clicks.item_id.nunique() == 60
    assert clicks.groupby("user_id").timestamp.nunique().eq(20).all()


@pytest.mark.parametrize("suffix, of, by", [("user", "user_id", "age_group"),
                                            ("item", "item_id", "shape")])  # fmt: skip
def test_checkerboard_features_do_not_tell_the_colour(suffix, of, by):
    frame = table("checkerboard", suffix)
    assert len(frame) == 60
    assert (colour(frame[of]).groupby(frame[by]).mean() == 0.5).all()


def test_checkerboard_graph_links_every_item_and_does_not_tell_the_colour():
    link, graph = table("checkerboard", "link"), table("checkerboard", "kg")
    assert link.item_id.nunique() == link.entity_id.nunique() == 60
    assert set(graph.head_id) == set(link.entity_id)
    share = colour(graph.head_id).groupby([graph.relation_id, graph.tail_id]).mean()
    assert len(share) == 5 and (share == 0.5).all()


# --- two_worlds ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impressions() -> pd.DataFrame:
    """All rows with their file, features, the spurious signal and the true one."""
    parts = [table("two_worlds", f"{p}.inter").assign(part=p) for p in ("train", "valid", "test")]
    rows = pd.concat(parts, ignore_index=True)
    rows = rows.merge(table("two_worlds", "user")).merge(table("two_worlds", "item"))
    # The colour of the cover says "like" where it is that of the club.
    rows["spurious"] = (rows.club == rows.cover).astype(int)
    rows["distance"] = (rows.genre.str[1:].astype(int) - rows.taste.str[1:].astype(int)) % 6
    rows["true"] = rows.distance.isin([0, 1, 5]).astype(int)
    return rows.sort_values("timestamp", ignore_index=True)


def agreement(rows: pd.DataFrame, signal: str) -> float:
    return (rows[signal] == rows.label).mean()


def test_two_worlds_files_follow_each_other_in_time_and_hold_the_worlds_they_say(impressions):
    sizes = impressions.groupby(["part", "world"], sort=False).size()
    assert sizes.to_dict() == {
        ("train", 0): 10200, ("train", 1): 1800, ("valid", 1): 2000, ("test", 2): 3000,
    }  # fmt: skip
    assert impressions.timestamp.tolist() == list(range(17000))
    assert impressions.world.is_monotonic_increasing


@pytest.mark.parametrize("part, world, rate", [("train", 0, 0.9), ("train", 1, 0.5),
                                               ("valid", 1, 0.5), ("test", 2, 0.1)])  # fmt: skip
def test_two_worlds_spurious_signal_agrees_with_the_label_as_planted(
    impressions, part, world, rate
):
    rows = impressions[(impressions.part == part) & (impressions.world == world)]
    # Three standard deviations of a share: 3 sqrt(0.5 * 0.5 / 1800) = 0.035.
    assert agreement(rows, "spurious") == pytest.approx(rate, abs=0.035)
    for label in (0, 1):  # it follows the label, so it agrees with both alike
        of_label = rows[rows.label == label]
        assert agreement(of_label, "spurious") == pytest.approx(rate, abs=0.05)


def test_two_worlds_true_signal_agrees_alike_in_every_world(impressions):
    # (0.88 + 2 * 0.73 + 2 * 0.73 + 0.88) / 6 = 0.78
    for _, rows in impressions.groupby(["part", "world"]):
        assert agreement(rows, "true") == pytest.approx(0.78, abs=0.03)
        liked = rows.groupby("distance").label.mean()
        assert liked.tolist() == pytest.approx([0.88, 0.73, 0.27, 0.12, 0.27, 0.73], abs=0.08)


def test_two_worlds_spurious_signal_is_the_better_one_in_train_and_the_worse_one_in_test(
    impressions,
):
    better = {p: agreement(r, "spurious") - agreement(r, "true")
              for p, r in impressions.groupby("part")}  # fmt: skip
    # 0.85 * 0.9 + 0.15 * 0.5 - 0.78 = 0.06
    assert better["train"] > 0.03 and better["valid"] < -0.2 and better["test"] < -0.6


def test_two_worlds_true_and_spurious_signal_are_independent_given_the_label(impressions):
    for _, rows in impressions.groupby(["part", "world", "label"]):
        shares = rows.groupby("true").spurious.mean()
        assert shares[1] == pytest.approx(shares[0], abs=0.09)
