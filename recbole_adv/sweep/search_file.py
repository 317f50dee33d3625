"""Search files: RecBole's own lines, or the same as YAML."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from recbole_adv.config import literal
from recbole_adv.errors import ConfigError, suggest
from recbole_adv.options import properties_dir
from recbole_adv.sweep.space import Choice, Dimension, Range, Space

_BOUNDS = {"uniform": "low, high", "loguniform": "low, high", "quniform": "low, high, step"}
KINDS = ("choice", *_BOUNDS)
"""RecBole's types of a parameter."""


def ready_file(model: str) -> Path | None:
    """The search file that belongs to one of our models, if there is one."""
    file = properties_dir() / "search" / f"{model}.yaml"
    return file if file.is_file() else None


def read_space(file: str | Path) -> Space:
    """The space in a search file.

    RecBole's format has a line ``name type values`` for each key:

        learning_rate loguniform -8,0
        embedding_size choice [64,96,128]

    A file that ends in ``.yaml`` or ``.yml`` holds what RecBole's ``HyperTuning(params_dict=...)``
    takes: for each type a mapping of names to values. Nothing in a file is evaluated as code.

    Raises:
        ConfigError: one sentence on what is wrong, where, and what to write.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the search file {str(file)!r} cannot be read: {error.strerror}; write the path of a "
            "file with lines such as 'learning_rate choice [0.001, 0.01]'"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the search file {str(file)!r} is no text in UTF-8") from error
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    found = _yaml_entries(text, path) if is_yaml else _line_entries(text, path)
    return _space(found, str(file))


def space_of(params: Mapping[str, Mapping[str, Any]], source: str = "params_dict") -> Space:
    """The space of RecBole's ``params_dict``: ``{"choice": {"learning_rate": [0.01, 0.1]}}``."""
    return _space(_dict_entries(params, source), source)


def _space(entries: Iterable[tuple[str, str, str, Any]], source: str) -> Space:
    dimensions: dict[str, Dimension] = {}
    for where, name, kind, value in entries:
        if not name.isidentifier():
            raise ConfigError(f"{where}: {name!r} is no name of a key")
        if name in dimensions:
            raise ConfigError(f"{where}: {name} is given twice; write all its values in one place")
        dimensions[name] = _dimension(f"{where}: {name}", kind, value)
    if not dimensions:
        raise ConfigError(f"{source} names no key; write 'learning_rate choice [0.001, 0.01]'")
    return Space(dimensions, source)


def _line_entries(text: str, path: Path) -> Iterator[tuple[str, str, str, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where, parts = f"{path.name}, line {number}", line.split(maxsplit=2)
        if len(parts) < 3:
            raise ConfigError(
                f"{where} must be 'name type values', such as 'learning_rate choice [0.001, 0.01]', "
                f"got {line.strip()!r}"
            )
        name, kind, value = parts
        yield where, name, kind, _from_line(f"{where}: {name}", kind, value)


def _from_line(where: str, kind: str, value: str) -> Any:
    """What RecBole evaluates as Python, read as a literal; numbers are separated by commas."""
    if kind != "choice":
        return value.replace(" ", "").split(",")
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ConfigError(
            f"{where}: choice needs a list such as [0.001, 0.01] or ['BPR', 'LightGCN'], got "
            f"{value!r}"
        ) from error


def _yaml_entries(text: str, path: Path) -> Iterator[tuple[str, str, str, Any]]:
    try:
        content = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path.name}{line}: it is not YAML: {problem}") from error
    yield from _dict_entries(content, path.name)


def _dict_entries(content: Any, source: str) -> Iterator[tuple[str, str, str, Any]]:
    example = "choice: {learning_rate: [0.001, 0.01]}"
    if not isinstance(content, Mapping):
        raise ConfigError(f"{source} must hold types with their keys, such as {example}")
    for kind, keys in content.items():
        _check_kind(source, str(kind))
        if not isinstance(keys, Mapping):
            raise ConfigError(f"{source}: {kind} must hold keys, such as {example}, got {keys!r}")
        for name, value in keys.items():
            yield source, str(name), str(kind), value


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, where the standard loader takes the last one."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"{key.value} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_kind(where: str, kind: str) -> None:
    if kind not in KINDS:
        hint = suggest(kind, KINDS) or f"; write one of {', '.join(KINDS)}"
        raise ConfigError(f"{where}: {kind!r} is no type of a search{hint}")


def _dimension(where: str, kind: str, value: Any) -> Dimension:
    _check_kind(where, kind)
    return _choice(where, value) if kind == "choice" else _range(where, kind, value)


def _choice(where: str, value: Any) -> Choice:
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigError(f"{where}: choice needs a list with a value or more, got {value!r}")
    values = [literal(each) for each in value]
    doubled = [each for number, each in enumerate(values) if each in values[:number]]
    if doubled:
        raise ConfigError(f"{where}: {doubled[0]!r} is in the list twice; write it once")
    return Choice(tuple(values))


def _range(where: str, kind: str, value: Any) -> Range:
    numbers = [literal(each) for each in value] if isinstance(value, (list, tuple)) else []
    is_number = [isinstance(n, (int, float)) and math.isfinite(n) for n in numbers]
    wanted = _BOUNDS[kind].count(",") + 1
    if len(numbers) != wanted or not all(is_number) or any(isinstance(n, bool) for n in numbers):
        raise ConfigError(f"{where}: {kind} needs the numbers {_BOUNDS[kind]}, got {value!r}")
    low, high, *step = map(float, numbers)
    if not low < high:
        raise ConfigError(f"{where}: {kind} needs low < high, got {low:g} and {high:g}")
    if step and not 0 < step[0] <= high - low:
        raise ConfigError(
            f"{where}: the step of quniform must be above 0 and at most {high - low:g}, got "
            f"{step[0]:g}"
        )
    if kind == "loguniform" and 0 < low and high <= 1:
        raise ConfigError(
            f"{where}: the bounds of loguniform are natural logarithms, so that {low:g}, {high:g} "
            f"is from {math.exp(low):.3g} to {math.exp(high):.3g}; for values from {low:g} to "
            f"{high:g} write {math.log(low):.3g}, {math.log(high):.3g}"
        )
    return Range(kind, low, high, *step)
