"""What is asked for on the command line, checked before anything is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_adv.errors import ConfigError, suggest

ATTACKS = ("random", "fgsm", "pgd", "box")
HISTORY = ("random", "similar", "gradient")
EPSILONS = {False: (0.1, 0.25, 0.5, 1.0, 2.0), True: (0.05, 0.1, 0.2, 0.5)}
SHARES = (0.1, 0.2, 0.3, 0.5)


def words_of(flag: str, given: Iterable[str], known: Sequence[str]) -> list[str]:
    """Different names among ``known``, separated by blanks or commas."""
    words = [word for part in given for word in part.split(",") if word]
    for word in words:
        if word not in known:
            near = suggest(word, known) or f"; write one of {', '.join(known)}"
            raise ConfigError(f"{flag} has no {word!r}{near}")
    if not words or len(set(words)) < len(words):
        raise ConfigError(
            f"{flag} must be different names out of {', '.join(known)}, got {' '.join(words)!r}"
        )
    return words


def numbers_of(
    flag: str, given: Iterable[str], fits: Callable[[float], bool], meaning: str
) -> list[float]:
    """Different numbers in ascending order, separated by blanks or commas.

    meaning: what each must be, such as ``numbers above 0, as 0.1 0.5``.
    """
    words, found = [word for part in given for word in part.split(",") if word], []
    for word in words:
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or not fits(number):
            raise ConfigError(f"{flag} must be {meaning}, got {word!r}")
        found.append(number)
    if not found or len(set(found)) < len(found):
        raise ConfigError(f"{flag} must be different {meaning}, got {' '.join(words)!r}")
    return sorted(found)


def seeds_of(given: str, first: int = 0) -> list[int]:
    """``3`` as three seeds from ``first`` on, ``1,2,3`` as these."""
    text = str(given).strip()
    if not re.fullmatch(r"\d+(,\d+)*", text) or text == "0":
        raise ConfigError(
            f"--seeds must be how many, at least 1, or which ones, as 1,2,3, got {given!r}"
        )
    seeds = [int(word) for word in text.split(",")]
    if len(seeds) == 1:
        return list(range(first, first + seeds[0]))
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds must be different, got {given!r}")
    return seeds


def count_of(flag: str, given: Any, least: int = 1) -> int:
    """A whole number."""
    text = str(given)
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{flag} must be a whole number of at least {least}, got {given!r}")
    return int(text)


@dataclass(frozen=True)
class Plan:
    """Which models are attacked, how, how strongly and how often.

    kinds: names of ``ATTACKS``, or of ``HISTORY`` where ``on_history``; strengths: epsilons or shares.
    """

    checkpoints: tuple[str, ...]
    kinds: tuple[str, ...]
    strengths: tuple[float, ...]
    seeds: tuple[int, ...]
    on_history: bool = False
    relative: bool = False
    steps: int = 10
    targets: tuple[str, ...] | None = None
    metric: str | None = None
    output: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Plan:
        """From the flags by name."""
        on_history = given["history"] is not None
        _check_together(given, on_history)
        if on_history:
            kinds = words_of("--history", given["history"], HISTORY)
            strengths = numbers_of(
                "--share",
                given["share"] or map(str, SHARES),
                lambda p: 0 < p <= 1,
                "shares above 0 and up to 1, as 0.1 0.3",
            )
        else:
            kinds = words_of("--attacks", given["attacks"] or ATTACKS, ATTACKS)
            strengths = numbers_of(
                "--epsilon",
                given["epsilon"] or map(str, EPSILONS[given["relative"]]),
                lambda e: e > 0,
                "numbers above 0, as 0.1 0.5 (the clean model is always there)",
            )
        for regex in given["targets"] or ():
            try:
                re.compile(regex)
            except re.error as error:
                raise ConfigError(
                    f"--targets: {regex!r} is no regular expression ({error}); write names of "
                    "parameters, as item_embedding"
                ) from error
        if len(set(given["checkpoint"])) < len(given["checkpoint"]):
            raise ConfigError(
                f"--checkpoint must be different runs, got {' '.join(given['checkpoint'])!r}"
            )
        return cls(
            tuple(given["checkpoint"]),
            tuple(kinds),
            tuple(strengths),
            tuple(seeds_of(given["seeds"])),
            on_history,
            given["relative"],
            count_of("--steps", given["steps"]),
            tuple(given["targets"]) if given["targets"] else None,
            given["metric"],
            given["output"],
        )


def _check_together(given: Mapping[str, Any], on_history: bool) -> None:
    others = ("attacks", "epsilon", "relative", "targets") if on_history else ("share",)
    for flag in others:
        if given[flag]:
            what = "embeddings" if on_history else "histories"
            raise ConfigError(
                f"--{flag} is about attacks on {what}, got it "
                f"{'with' if on_history else 'without'} --history; leave it out"
            )
