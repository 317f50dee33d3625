"""The schema of our keys, read from the comments of the property files."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from recbole_adv.errors import ConfigError

_LINE = re.compile(r"^(?P<key>\w+):.*?#\s*\((?P<kind>[^)]*)\)\s*(?P<meaning>.+)$")
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "str": (str,),
    "list": (list, tuple),
    "dict": (dict,),
}
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Option:
    """One key: ``max_interval: 1  # (int >= 1) Meaning.``

    ``kind`` is a type of ``int float bool str list dict``, then ``>= number`` (several joined by
    ``and``) or ``: a | b`` for the words allowed, then ``, or None`` where None is a value.
    """

    key: str
    kind: str
    meaning: str
    type_name: str
    nullable: bool
    choices: tuple[str, ...]
    bounds: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, key: str, kind: str, meaning: str) -> Option:
        """Read ``kind``; a comment that is no schema is a ValueError (our mistake, no user's)."""
        body, nullable = re.subn(r",? or None$", "", kind.strip())
        match = re.fullmatch(r"(int|float|bool|str|list|dict)\s*(.*)", body)
        if match is None:
            raise ValueError(f"the comment of {key} is no schema: ({kind})")
        type_name, rest = match.groups()
        choices: tuple[str, ...] = ()
        bounds: list[tuple[str, float]] = []
        if rest.startswith(":"):
            choices = tuple(word.strip() for word in rest[1:].split("|"))
        elif rest:
            for part in rest.split(" and "):
                symbol, number = re.fullmatch(r"(>=|<=|>|<)\s*(\S+)", part.strip()).groups()
                bounds.append((symbol, float(number)))
        return cls(key, kind, meaning, type_name, bool(nullable), choices, tuple(bounds))

    def check(self, value: Any) -> None:
        """Raise :class:`ConfigError` unless ``value`` fits."""
        if value is None and self.nullable:
            return
        fits = isinstance(value, _TYPES[self.type_name])
        if isinstance(value, bool) and self.type_name != "bool":
            fits = False
        if fits and self.choices:
            fits = value in self.choices
        if fits:
            # Written so that nan, which no comparison accepts, does not fit.
            fits = all(_COMPARE[symbol](value, number) for symbol, number in self.bounds)
            fits = fits and not (self.type_name == "float" and value != value)
        if not fits:
            raise ConfigError(
                f"{self.key} must be {self.wanted()}, got {value!r}{self._quoted(value)}"
            )

    def _quoted(self, value: Any) -> str:
        """How to quote a list or a dict of which the shell, or the user, left a string."""
        if not isinstance(value, str) or self.type_name not in ("list", "dict"):
            return ""
        words = re.findall(r"[^\s,:\[\]{}'\"]+", value)
        example = str(words) if self.type_name == "list" else "{'name': value}"
        return f'; write {self.key}: {example}, on a command line --{self.key}="{example}"'

    def wanted(self) -> str:
        """What to write, in words."""
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        else:
            text = {"int": "a whole number", "float": "a number", "bool": "True or False"}.get(
                self.type_name, {"str": "a word", "list": "a list"}.get(self.type_name, "a dict")
            )
            text += "".join(f" {symbol} {number:g}" for symbol, number in self.bounds)
        return text + (" or None" if self.nullable else "")


def properties_dir() -> Path:
    """The checkout's ``properties/`` if there, else the one that the wheel put into the package."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "properties"
    return checkout if (checkout / "overall.yaml").is_file() else package / "properties"


@cache
def read_options(file: Path) -> Mapping[str, Option]:
    """The options of one property file, by key. Lines without a schema comment are left out."""
    options = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        match = _LINE.match(line)
        if match:
            options[match["key"]] = Option.parse(**match.groupdict())
    return options


def overall_options() -> Mapping[str, Option]:
    """The options that every model has."""
    return read_options(properties_dir() / "overall.yaml")


@cache
def technique_names() -> tuple[str, ...]:
    """Our training techniques: each has a property file."""
    return tuple(sorted(file.stem for file in technique_files()))


def technique_files() -> list[Path]:
    """The property files of the techniques."""
    return sorted((properties_dir() / "technique").glob("*.yaml"))


def technique_options() -> Mapping[str, Option]:
    """The options of all techniques, by key; every configuration has them."""
    return {key: option for file in technique_files() for key, option in read_options(file).items()}
