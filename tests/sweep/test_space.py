"""Search spaces: what a searcher sees, what it stands for, and the grid, worked by hand."""

import math

import pytest

from recbole_adv.errors import ConfigError
from recbole_adv.sweep.space import Choice, Range, Space

NESTED = ([64, 32], {"max_norm": 1.0}, None, "BPR")


def test_any_value_can_be_chosen():
    choice = Choice(NESTED)
    assert [choice.decode(code) for code in choice.codes()] == list(NESTED)
    assert choice.encode({"max_norm": 1.0}) == 1
    with pytest.raises(ValueError):
        choice.encode([64])


def test_quniform_is_multiples_of_its_step():
    """hyperopt: round(uniform(low, high) / q) * q; from 1 to 2 by 0.4 these are 0.8 ... 2.0."""
    dimension = Range("quniform", 1.0, 2.0, 0.4)
    assert dimension.codes() == pytest.approx([0.8, 1.2, 1.6, 2.0])
    assert [type(Range("quniform", 1.0, 3.0, 1.0).decode(c)) for c in (1.0, 3.0)] == [int, int]
    assert Range("quniform", 1.0, 3.0, 1.0).decode(2.0000000001) == 2
    assert dimension.inside(5.0) == pytest.approx(2.0)
    assert dimension.inside(1.27) == pytest.approx(1.2)


def test_loguniform_has_logarithms_as_bounds():
    dimension = Range("loguniform", -3.0, 0.0)
    assert dimension.bounds() == pytest.approx((0.049787, 1.0), abs=1e-6)
    drawn = [s["x"] for s in Space({"x": dimension}).draw(200, seed=0)]
    assert min(drawn) >= math.exp(-3) and max(drawn) <= 1
    # Half of the draws lie below the middle of the logarithms, e^-1.5 = 0.223.
    assert 70 <= sum(x < math.exp(-1.5) for x in drawn) <= 130


def test_grid_is_every_combination_the_last_key_fastest():
    space = Space({"a": Choice(("x", "y")), "b": Range("quniform", 1.0, 2.0, 1.0)})
    settings = [space.decode(codes) for codes in space.grid()]
    assert settings == [
        {"a": "x", "b": 1},
        {"a": "x", "b": 2},
        {"a": "y", "b": 1},
        {"a": "y", "b": 2},
    ]
    assert [space.encode(setting) for setting in settings] == space.grid()
    assert space.encode({"a": "z", "b": 1}) is None and space.encode({"a": "x"}) is None


def test_there_is_no_grid_without_an_end():
    with pytest.raises(ConfigError, match="lr is loguniform, which has no end of values"):
        Space({"lr": Range("loguniform", -3.0, -1.0)}).grid()
    many = {f"key{n}": Choice(tuple(range(10))) for n in range(6)}
    with pytest.raises(ConfigError, match="1000000 combinations"):
        Space(many).grid()


def test_draws_are_different_and_by_seed():
    space = Space({"a": Choice(NESTED), "b": Range("uniform", 0.0, 1.0)})
    assert space.draw(5, seed=1) == space.draw(5, seed=1) != space.draw(5, seed=2)
    few = Space({"a": Choice((1, 2, 3))}).draw(10, seed=0)
    assert sorted(codes["a"] for codes in few) == [0, 1, 2]
