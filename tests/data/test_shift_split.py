"""The mathematics of splits under shift: numbers worked by hand, expectations, and ml-100k."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole

from recbole_adv.data.shift_split import (
    Draw,
    Rows,
    Units,
    chunk_of,
    draw_exposed,
    exposure,
    latest,
    level,
    split_rows,
)
from recbole_adv.errors import DataError

ML_100K = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"


def chi_square_limit(degrees):
    """The 99.9 % point of chi-square, by Wilson and Hilferty (within 1 % from 5 degrees on)."""
    a = 2 / (9 * degrees)
    return degrees * (1 - a + 3.0902 * np.sqrt(a)) ** 3


@pytest.fixture(scope="module")
def ml_100k():
    frame = pd.read_csv(ML_100K, sep="\t").iloc[:, [0, 1, 3]]
    frame.columns = ["user", "item", "time"]
    return Rows(
        pd.factorize(frame["user"])[0] + 1,
        pd.factorize(frame["item"])[0] + 1,
        frame["time"].to_numpy(dtype=np.float32),
    )


@pytest.fixture(scope="module")
def core(ml_100k):
    """ml-100k without the items that have fewer than 50 interactions."""
    often = np.bincount(ml_100k.item)[ml_100k.item] >= 50
    return Rows(ml_100k.user[often], pd.factorize(ml_100k.item[often])[0] + 1)


def popularity(gamma=1.0, share=0.1, n_max=None, name="test"):
    return Draw(name, "popularity", share, gamma, n_max)


# --- the recipe, by hand ------------------------------------------------------------------------


def test_chunks_by_hand():
    # Item 0 is the padding, item 4 has nothing; by count: 5 (9), 2 (7), 1 and 6 (3), 3 (1).
    count = np.array([0, 3, 7, 1, 0, 9, 3])
    assert chunk_of(count, 5).tolist() == [-1, 2, 1, 4, -1, 0, 3]
    assert chunk_of(count, 2).tolist() == [-1, 0, 0, 1, -1, 0, 1]
    assert chunk_of(count, 50).max() == 4  # no more chunks than items
    sizes = np.bincount(chunk_of(np.arange(1, 1683)))
    assert len(sizes) == 50 and sizes.sum() == 1682 and sizes.max() - sizes.min() == 1


def test_exposure_by_hand():
    chunk = np.array([-1, 0, 1, 2, 2])
    assert exposure(chunk, 1).tolist() == [0, 1, 1, 1, 1]
    assert exposure(chunk, 100) == pytest.approx([0, 1, 0.1, 0.01, 0.01])
    assert exposure(chunk, 0.25) == pytest.approx([0, 1, 2, 4, 4])
    # The first chunk is expected n_max times, not gamma^(1/49) n_max, and the last n_max / gamma.
    fifty = exposure(np.arange(50), 12.0)
    assert fifty[0] == 1 and fifty[49] == pytest.approx(1 / 12)


@pytest.mark.parametrize(
    ("total", "n"),
    [
        (1.75, 1.0),  # below every limit: 1 + 0.5 + 0.25
        (7.0, 4.0),  # the second and third at their limits: 4 + 2 + 1
        (10.0, 7.0),
        (13.0, 10.0),  # all at their limits
    ],
)
def test_level_by_hand(total, n):
    weight, limit = np.array([1, 0, 0.5, 0.25]), np.array([10, 99, 2, 1])
    assert level(weight, limit, total) == pytest.approx(n)
    assert np.minimum(n * weight, limit).sum() == pytest.approx(total)


def test_one_of_each_user_and_item_stays():
    """Every unit of user 1 is the only one of its item; user 2's item 4 is held by user 3, too."""
    user, item = np.array([1, 1, 2, 3, 3]), np.array([1, 2, 4, 4, 5])
    free = [Units(user, item, False, 5).candidates(np.random.default_rng(s)) for s in range(20)]
    free = np.array(free)
    assert not free[:, [0, 1, 4]].any()  # the only unit of items 1, 2 and 5
    assert not free[:, 2].any()  # the only unit of user 2
    # Item 4 keeps one of its two by chance; user 3's may go if that is user 2's.
    assert 0 < free[:, 3].mean() < 1


@pytest.mark.parametrize("sequential", [False, True])
def test_whatever_is_taken_each_user_and_item_stays(sequential):
    rng = np.random.default_rng(3)
    user = np.sort(rng.integers(1, 30, 400))
    item = rng.geometric(0.08, 400)
    units = Units(user, item, sequential, 400)
    everyone, everything = set(user), set(item)
    for _ in range(30):
        units.left &= ~units.candidates(rng)  # the most that may be taken
        assert set(user[units.left]) == everyone and set(item[units.left]) == everything
    # No unit is left that could go without a user or an item losing his or its last one.
    if not sequential:
        last = np.bincount(user[units.left])[user] == 1
        only = np.bincount(item[units.left])[item] == 1
        assert (last | only)[units.left].all()


def test_of_a_sequence_only_the_end_may_go():
    user = np.array([1, 1, 1, 2, 2, 3])
    units = Units(user, np.array([7, 7, 7, 7, 7, 7]), True, 3)
    rng = np.random.default_rng(0)
    assert units.candidates(rng).tolist() == [False, False, True, False, True, False]
    units.left[2] = False
    assert units.candidates(rng).tolist() == [False, True, False, False, True, False]


# --- expectations ---------------------------------------------------------------------------------


def test_expected_exposure_is_exact_below_the_limit_and_the_limit_above():
    """2000 splits; items 1 to 4 are held by 24, 12, 6 and 3 of 30 users, item 5 by all, and each
    user has an item of his own, which stays, so that no user has to keep another one."""
    held = [np.arange(n) + 1 for n in (24, 12, 6, 3, 30)]
    user = np.concatenate([*held, np.arange(30) + 1])
    item = np.concatenate([np.repeat(np.arange(5) + 1, [24, 12, 6, 3, 30]), np.arange(30) + 6])
    chunk = chunk_of(np.bincount(item))
    assert chunk[:7].tolist() == [-1, 1, 2, 3, 4, 0, 5]  # of 35 chunks
    taken = np.zeros(36)
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        units = Units(user, item, False, len(user))
        mask, note = draw_exposed(units, chunk, popularity(gamma=2, n_max=4), rng)
        taken += np.bincount(item[mask], minlength=36)
    wanted = 4 * 2.0 ** (-np.array([1, 2, 3, 4, 0]) / 34)
    wanted[3] = 2.0  # the limit of item 4: three interactions, of which one stays
    assert taken[1:6] / 2000 == pytest.approx(wanted, abs=4 * np.sqrt(4 / 2000))
    assert taken[4] == 4000 and not taken[6:].any()
    assert note == {"n_max": 4, "items_at_limit": 31}


def drawn(rows, draw, seed=1):
    part, notes = split_rows(rows, [draw], None, seed)
    return np.bincount(rows.item[part == 1], minlength=rows.item.max() + 1)[1:], notes[draw.name]


@pytest.mark.parametrize("gamma", [0.2, 1.0, 5.0, 200.0])
def test_ml_100k_follows_gamma(core, gamma):
    """Of each fiftieth of the items, the test interactions against their expectation.

    Those of an item are binomial with mean q and variance q (1 - q / c) at most, c its candidates,
    of which there are fewer than interactions: the statistic is chi-square or smaller.
    """
    found, note = drawn(core, popularity(gamma, share=0.05))
    count = np.bincount(core.item)[1:]
    chunk = chunk_of(count)
    wanted = note["n_max"] * gamma ** (-chunk / 49)
    assert note["items_at_limit"] == 0
    sums = [np.bincount(chunk, values) for values in (found, wanted, wanted * (1 - wanted / count))]
    statistic = ((sums[0] - sums[1]) ** 2 / sums[2]).sum()
    assert statistic < chi_square_limit(50)
    assert found.sum() == pytest.approx(0.05 * len(core.item), abs=4 * np.sqrt(wanted.sum()))
    # What another gamma asks for is far away, so the statistic can tell.
    other = wanted.sum() * (w := (gamma * 4) ** (-chunk / 49)) / w.sum()
    per_chunk = np.bincount(chunk, other)
    assert ((sums[0] - per_chunk) ** 2 / per_chunk).sum() > 3 * chi_square_limit(50)


def test_gamma_1_exposes_all_items_of_ml_100k_equally(core):
    found, note = drawn(core, popularity(1.0, share=0.05))
    q, count = note["n_max"], np.bincount(core.item)[1:]
    statistic = ((found - q) ** 2 / (q * (1 - q / count))).sum()
    assert statistic < chi_square_limit(len(count))
    # And has nothing to do with how popular they are.
    noise = 1 / np.sqrt(len(count))
    assert abs(np.corrcoef(found, np.log(count))[0, 1]) < 4 * noise
    uniform, _ = split_rows(core, [Draw("test", "id", 0.05)], None, 1)
    counted = np.bincount(core.item[uniform == 1], minlength=len(count) + 1)[1:]
    assert np.corrcoef(counted, np.log(count))[0, 1] > 0.5


def test_all_of_ml_100k_with_its_rare_items(ml_100k):
    """Items that cannot give what is asked give all but one; the share is kept."""
    found, note = drawn(ml_100k, popularity(1.0))
    count = np.bincount(ml_100k.item)[1:]
    assert (found < count).all() and note["items_at_limit"] > 400
    assert (found == count - 1)[count <= 3].mean() > 0.9
    assert found.sum() == pytest.approx(10_000, abs=4 * np.sqrt(10_000))


def test_no_pair_of_ml_100k_leaks_and_the_test_does_not_depend_on_what_is_drawn_later(ml_100k):
    draws = [popularity(1.0), popularity(20.0, name="more"), Draw("id", "id", 0.1)]
    part, _ = split_rows(ml_100k, draws, None, 7)
    first, _ = split_rows(ml_100k, draws[:1], None, 7)
    assert (part == 1).tolist() == (first == 1).tolist()
    again, _ = split_rows(ml_100k, draws, None, 7)
    other, _ = split_rows(ml_100k, draws, None, 8)
    assert part.tolist() == again.tolist() != other.tolist()
    pairs = pd.DataFrame({"pair": ml_100k.user * 2000 + ml_100k.item, "part": part})
    assert pairs.groupby("pair")["part"].nunique().max() == 1
    train = part == 0
    assert set(ml_100k.user[train]) == set(ml_100k.user)
    assert set(ml_100k.item[train]) == set(ml_100k.item)
    assert (part == 3).sum() == 10_000


def test_rows_of_one_pair_stay_together():
    rng = np.random.default_rng(0)
    user, item = rng.integers(1, 20, 3000), rng.integers(1, 15, 3000)  # each pair about ten times
    part, _ = split_rows(
        Rows(user, item), [popularity(2.0), Draw("valid", "id", 0.2)], None, seed=0
    )
    frame = pd.DataFrame({"pair": user * 100 + item, "part": part})
    assert set(part) == {0, 1, 2}
    assert frame.groupby("pair")["part"].nunique().max() == 1


# --- time and users ---------------------------------------------------------------------------------


def test_latest_by_hand():
    time = np.array([5.0, 1, 9, 7, 7, 3])
    everything = np.ones(6, dtype=bool)
    assert latest(time, everything, 1).tolist() == [False, False, True, False, False, False]
    # Two rows are asked for; the rows of time 7 are one, so it is one row or three.
    assert latest(time, everything, 2).sum() in (1, 3)
    assert latest(time, everything, 3).tolist() == [False, False, True, True, True, False]
    left = np.array([True, True, False, True, True, True])
    assert latest(time, left, 2).tolist() == [False, False, False, True, True, False]
    with pytest.raises(DataError, match="at least two times, got 1"):
        latest(np.zeros(4), np.ones(4, dtype=bool), 1)


def test_a_temporal_split_of_ml_100k(ml_100k):
    draws = [Draw("test", "time", 0.1), Draw("id", "id", 0.1), Draw("valid", "time", 0.1)]
    part, _ = split_rows(ml_100k, draws, None, 0)
    time = ml_100k.time
    assert [abs(int((part == code).sum()) - 10_000) < 50 for code in (1, 2, 3)] == [True] * 3
    rest = np.isin(part, (0, 2))
    assert time[rest].max() < time[part == 3].min()
    assert time[part == 3].max() < time[part == 1].min()


def test_only_users_of_the_group_are_tested(ml_100k):
    group = np.arange(ml_100k.user.max() + 1) % 3 == 0
    draws = [Draw("test", "users", 0.1), Draw("id", "id", 0.1)]
    part, _ = split_rows(ml_100k, draws, group, 0)
    assert group[ml_100k.user[part == 1]].all() and (part == 1).sum() == 10_000
    assert set(ml_100k.user[part == 0]) == set(ml_100k.user)
    of_others = ~group[ml_100k.user]
    shares = [(part[rows] == 2).mean() for rows in (of_others, ~of_others & (part != 1))]
    assert shares == pytest.approx(
        [0.111, 0.111], abs=0.006
    )  # the id part is drawn from what is left


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (popularity(share=0.99), ("0.99", "got 97", "at most 0.97")),
        (Draw("valid_id", "id", 0.98), ("98000 interactions in valid_id", "at most 0.97")),
        (Draw("valid_id", "id", 1e-6), ("at least 1", "larger share")),
        (Draw("test_shifted", "users", 0.5), ("50000", "test_shifted", "at most 0.3")),
    ],
)
def test_more_than_there_is(ml_100k, draw, words):
    group = np.arange(ml_100k.user.max() + 1) % 3 == 0
    with pytest.raises(DataError) as caught:
        split_rows(ml_100k, [draw], group, 0)
    for word in words:
        assert word in str(caught.value)


def test_the_end_of_sequences_by_popularity():
    """60 sequences of 5; the last steps show item 1 forty times and item 2 twenty times."""
    user = np.repeat(np.arange(60) + 1, 5)
    item = np.full(300, 3)
    item[4::5] = np.where(np.arange(60) < 40, 1, 2)
    item[:10] = [1, 2] * 5
    rows = Rows(user, item, None, sequential=True)
    taken = np.zeros(4)
    for seed in range(100):
        draws = [popularity(1.0, share=0.2, n_max=10.0), Draw("valid", "id", 0.2)]
        part, _ = split_rows(rows, draws, None, seed)
        taken += np.bincount(item[part == 1], minlength=4)
        assert (np.flatnonzero(part == 1) % 5 == 4).all()
        for step in np.flatnonzero(part == 2):  # an end of what the test left
            assert step % 5 == 4 or (step % 5 == 3 and part[step + 1] == 1)
    assert taken[1:] / 100 == pytest.approx([10, 10, 0], abs=4 * np.sqrt(10 / 100))
