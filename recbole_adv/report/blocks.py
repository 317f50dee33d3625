"""What a report consists of, before it becomes HTML or markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


class Best(str):
    """A cell that stands out: the best of its column."""


@dataclass(frozen=True)
class Text:
    """A paragraph; warning: one that must not be overlooked."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """A table whose first column says what a row is about; words: columns that hold no numbers."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Line:
    """A curve: which method, and whose of its runs; gaps in the values are nan."""

    method: int
    name: str
    epochs: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """Curves over epochs; title: what the values are."""

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Charts:
    """Charts side by side; methods: the names by number, for the legend."""

    charts: Sequence[Chart]
    methods: Sequence[str]


@dataclass(frozen=True)
class Details:
    """What only some readers want, behind a line of text."""

    summary: str
    blocks: Sequence[Block]


Block = Text | Table | Charts | Details


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    lead: str
    sections: Sequence[Section]
