"""A search space: for each key the values it may take, as RecBole's ``HyperTuning`` knows them.

A setting is a dict of keys and values. Searchers see it encoded: a choice by its index (so that any
value can be chosen, lists and dicts too), everything else as its number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recbole_adv.errors import ConfigError

_GRID_LIMIT = 100_000


@dataclass(frozen=True)
class Choice:
    """One of ``values``."""

    values: tuple[Any, ...]

    def hyperopt(self, name: str) -> Any:
        """hyperopt's expression of the index."""
        from hyperopt import hp

        return hp.choice(name, list(range(len(self.values))))

    def decode(self, code: Any) -> Any:
        """The value at an index."""
        return self.values[int(code)]

    def encode(self, value: Any) -> int:
        """The index of a value; a ValueError if it is not there."""
        return self.values.index(value)

    def codes(self) -> list[int]:
        """All there are."""
        return list(range(len(self.values)))

    def inside(self, code: Any) -> int:
        """The nearest index there is."""
        return min(max(int(code), 0), len(self.values) - 1)

    def examples(self) -> list[Any]:
        """Codes whose values show whether the key accepts what is here."""
        return self.codes()


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``.

    kind: ``uniform``; ``quniform``, a multiple of ``step`` at most half a step outside; or
    ``loguniform``, whose bounds are natural logarithms, as in RecBole and hyperopt.
    """

    kind: str
    low: float
    high: float
    step: float = 0.0

    def hyperopt(self, name: str) -> Any:
        """hyperopt's expression."""
        from hyperopt import hp

        bounds = (self.low, self.high, self.step) if self.step else (self.low, self.high)
        return getattr(hp, self.kind)(name, *bounds)

    def decode(self, code: Any) -> float | int:
        """The number; a whole one for a quniform of whole steps."""
        value = float(code)
        if self.step and self.step.is_integer():
            return int(round(value))
        return value

    def encode(self, value: Any) -> float:
        """The number itself."""
        return float(value)

    def codes(self) -> list[float]:
        """The multiples of the step; a grid cannot be made of the other kinds."""
        first, last = (round(bound / self.step) for bound in (self.low, self.high))
        return [number * self.step for number in range(first, last + 1)]

    def inside(self, code: float) -> float:
        """The nearest number there is."""
        low, high = self.bounds()
        code = min(max(float(code), low), high)
        return round(code / self.step) * self.step if self.step else code

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest number."""
        if self.kind == "loguniform":
            return math.exp(self.low), math.exp(self.high)
        if self.step:
            return self.codes()[0], self.codes()[-1]
        return self.low, self.high

    def examples(self) -> list[float]:
        """Codes whose values show whether the key accepts what is here."""
        return list(self.bounds())


Dimension = Choice | Range


@dataclass(frozen=True)
class Space:
    """The dimensions by key, and where they were read."""

    dimensions: Mapping[str, Dimension]
    source: str = "the search space"

    def hyperopt(self) -> dict[str, Any]:
        """For hyperopt's ``fmin``, whose values are encoded."""
        return {name: dimension.hyperopt(name) for name, dimension in self.dimensions.items()}

    def decode(self, codes: Mapping[str, Any]) -> dict[str, Any]:
        """The setting that a searcher's proposal stands for."""
        return {name: each.decode(codes[name]) for name, each in self.dimensions.items()}

    def encode(self, setting: Mapping[str, Any]) -> dict[str, Any] | None:
        """What stands for a setting; None if it is not of this space."""
        try:
            return {name: each.encode(setting[name]) for name, each in self.dimensions.items()}
        except (KeyError, ValueError):
            return None

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, encoded, in the order of the file; the last key changes fastest."""
        for name, each in self.dimensions.items():
            if isinstance(each, Range) and not each.step:
                raise ConfigError(
                    f"{self.source}: {name} is {each.kind}, which has no end of values; write choice "
                    "or quniform for it, or search with --algo=random"
                )
        size = math.prod(len(each.codes()) for each in self.dimensions.values())
        if size > _GRID_LIMIT:
            raise ConfigError(
                f"{self.source} has {size} combinations, of which no search sees the end; write "
                "fewer values, or search with --algo=random"
            )
        codes = itertools.product(*(each.codes() for each in self.dimensions.values()))
        return [dict(zip(self.dimensions, combination)) for combination in codes]

    def draw(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Random settings, encoded and all different (fewer, if there are not so many)."""
        import numpy as np
        from hyperopt.pyll.stochastic import sample

        random, space = np.random.default_rng(seed), self.hyperopt()
        drawn: list[dict[str, Any]] = []
        for _ in range(100 * count):
            setting = {name: _plain(value) for name, value in sample(space, random).items()}
            if setting not in drawn:
                drawn.append(setting)
            if len(drawn) == count:
                break
        return drawn


def _plain(value: Any) -> int | float:
    return value.item() if hasattr(value, "item") else value
