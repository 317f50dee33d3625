"""Means, standard errors, paired tests and Holm's correction, against numbers worked by hand."""

import math

import numpy as np
import pytest

from recbole_adv.report.comparison import compare, holm, paired_test
from recbole_adv.report.methods import arenas_of, methods_of
from recbole_adv.report.results import p_value, summary
from recbole_adv.report.runs import read_runs


def arenas(*folders):
    methods, _ = methods_of(read_runs(folders)[0])
    return arenas_of(methods)


def test_paired_test_by_hand():
    # Differences 2, 1, 0, 3: mean 3/2, variance 5/3, standard error sqrt(5/12), t = 2.3238.
    found = paired_test([3, 5, 4, 8], [1, 4, 4, 5])
    t = 1.5 / math.sqrt(5 / 12)
    # Student's distribution of 3 degrees of freedom in closed form.
    x = t / math.sqrt(3)
    below = 0.5 + (x / (1 + x * x) + math.atan(x)) / math.pi
    assert found.pairs == 4 and found.difference == 1.5
    assert found.p_t == pytest.approx(2 * (1 - below)) == pytest.approx(0.1027, abs=1e-4)
    # 3.1824 is the 0.975 quantile of that distribution, of any table.
    half = 3.1824 * math.sqrt(5 / 12)
    assert found.interval == pytest.approx((1.5 - half, 1.5 + half), abs=1e-3)
    # Without the zero, three differences of one sign: 2 of 2^3 equally likely signs.
    assert found.p_wilcoxon == pytest.approx(2 / 8)


@pytest.mark.parametrize(
    "a, b", [([0.3], [0.1]), ([], []), ([0.2, 0.3], [0.1, 0.2]), ([1, 2], [1, 2])]
)
def test_no_p_value_of_one_pair_or_of_differences_that_do_not_vary(a, b):
    found = paired_test(a, b)
    assert found.pairs == len(a)
    assert found.p_t is found.p_wilcoxon is found.interval is None


def test_a_pair_with_a_gap_is_none():
    found = paired_test([1.0, np.nan, 3.0, 5.0], [0.0, 1.0, 1.0, np.nan])
    assert found.pairs == 2 and found.difference == 1.5


def test_holm_by_hand():
    # Ascending .01, .03, .04: 3 x .01, 2 x .03, and .04, which may not be below the one before.
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == [] and holm([None]) == [None]


def test_p_values_in_words():
    assert [p_value(p) for p in (None, 0.00001, 0.0432, 1.0)] == [
        "–",
        "<0.0001",
        "0.0432",
        "1.0000",
    ]


def test_seeds_of_a_method_have_mean_and_standard_error(run):
    folders = [run(f"r{s}", {"mrr@10": v}, seed=s) for s, v in ((1, 0.1), (2, 0.2), (3, 0.3))]
    (arena,) = arenas(*folders)
    mean, error, n = summary(arena.methods[0], "mrr@10")
    assert (mean, error, n) == pytest.approx((0.2, 0.1 / math.sqrt(3), 3))


def test_over_seeds_pairs_are_of_one_seed(run):
    """The order of the runs must not matter; a seed that one method lacks is no pair."""
    values = {"a": {1: 0.1, 2: 0.2, 3: 0.4, 4: 0.9}, "b": {3: 0.3, 1: 0.3, 2: 0.1}}
    folders = [
        run(f"{name}{seed}", {"mrr@10": value}, seed=seed, reg_weight=0.1 if name == "b" else 0.2)
        for name, of_seed in values.items()
        for seed, value in of_seed.items()
    ]
    (arena,) = arenas(*folders)
    (found,) = compare(arena, ["mrr@10"])
    assert found.over == "seeds" and found.test.pairs == 3
    assert found.test.difference == pytest.approx(((0.3 - 0.1) + (0.1 - 0.2) + (0.3 - 0.4)) / 3)
    assert found.test == paired_test([0.3, 0.1, 0.3], [0.1, 0.2, 0.4])


def test_other_seeds_give_a_difference_and_no_p_value(run):
    one, other = run("a", {"mrr@10": 0.1}, seed=1), run("b", {"mrr@10": 0.3}, seed=2, epochs=9)
    (arena,) = arenas(one, other)
    (found,) = compare(arena, ["mrr@10"])
    assert found.test.p_t is None and found.test.difference == pytest.approx(0.2)


def test_over_users_who_are_paired_by_name(run):
    a = {"u": 0.5, "v": 0.25, "w": 0.0, "x": 1.0}
    b = {"x": 1.0, "w": 0.5, "v": 0.5, "u": 0.5, "y": 0.9}
    folders = [run("a", {"mrr@10": 0.4}, users=a), run("b", {"mrr@10": 0.6}, users=b, epochs=9)]
    (arena,) = arenas(*folders)
    (found,) = compare(arena, ["mrr@10"])
    assert found.over == "users" and found.test.pairs == 4
    assert found.test == paired_test([0.5, 0.5, 0.5, 1.0], [0.5, 0.25, 0.0, 1.0])


def test_of_several_seeds_each_user_has_the_mean(run):
    users = [{"u": 0.0, "v": 0.5}, {"u": 1.0, "v": 0.5}, {"u": 0.2, "v": 0.1}, {"u": 0.4, "v": 0.3}]
    folders = [
        run(f"r{k}", {"mrr@10": 0.5}, seed=k % 2, users=of_user, epochs=1 + k // 2)
        for k, of_user in enumerate(users)
    ]
    (arena,) = arenas(*folders)
    (found,) = compare(arena, ["mrr@10"])
    expected = paired_test([0.3, 0.2], [0.5, 0.5])
    assert found.test.difference == pytest.approx(expected.difference) == pytest.approx(-0.25)
    assert found.test.p_t == pytest.approx(expected.p_t) and found.test.pairs == 2


def test_one_run_without_users_makes_it_a_comparison_of_seeds(run):
    users = {"u": 0.0, "v": 0.5}
    folders = [run("a", {"mrr@10": 0.4}, users=users), run("b", {"mrr@10": 0.6}, epochs=9)]
    (arena,) = arenas(*folders)
    (found,) = compare(arena, ["mrr@10"])
    assert found.over == "seeds" and found.test.pairs == 1 and found.test.p_t is None
