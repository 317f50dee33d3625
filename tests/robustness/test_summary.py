"""Drops, areas and curves, by numbers worked by hand."""

import math

import pytest

from recbole_adv.robustness.summary import curves, drops, halving, mean_drop, summary_of
from recbole_adv.robustness.tables import Point


def test_drops_area_and_halving():
    drop = drops([0.4, 0.3, 0.1])
    assert drop == pytest.approx([0, 0.25, 0.75])
    # Trapezoids to 1 and to 3: (0 + .25) / 2 * 1 + (.25 + .75) / 2 * 2 = 1.125, over 3.
    assert mean_drop([0, 1, 3], drop) == pytest.approx(0.375)
    assert halving([0, 1, 3], drop) == pytest.approx(2.0)
    assert math.isnan(halving([0, 1], [0, 0.4]))
    assert math.isnan(drops([0.0, 0.1])[1])


def point(model, attack, strength, seed, value):
    return Point(model, attack, strength, seed, {"ndcg@10": value})


POINTS = [
    *(point("a", "none", 0.0, 0, 0.4), point("a", "none", 0.0, 1, 0.4)),
    *(point("a", "fgsm", 1.0, 0, 0.1), point("a", "fgsm", 1.0, 1, 0.3)),
    *(point("b", "none", 0.0, 0, 0.36), point("b", "none", 0.0, 1, 0.36)),
    *(point("b", "fgsm", 1.0, 0, 0.27), point("b", "fgsm", 1.0, 1, 0.27)),
]


def test_curves_have_means_and_standard_errors():
    clean, attacked = curves(POINTS, "ndcg@10")["a", "fgsm"]
    assert clean == {"strength": 0.0, "mean": 0.4, "standard_error": 0.0}
    assert attacked["mean"] == pytest.approx(0.2)
    assert attacked["standard_error"] == pytest.approx(0.1)  # sd .1414 over sqrt(2)


def test_the_second_model_is_compared_with_the_first():
    a, b = summary_of(POINTS, "ndcg@10")
    assert a["drop"][1.0] == pytest.approx(0.5) and a["mean_drop"] == pytest.approx(0.25)
    assert a["half_lost_at"] == pytest.approx(1.0) and "gain" not in a
    assert b["drop"][1.0] == pytest.approx(0.25)
    assert b["gain"] == pytest.approx(0.5)  # 1 - .125 / .25
    assert b["clean_price"] == pytest.approx(0.1)  # 1 - .36 / .4
