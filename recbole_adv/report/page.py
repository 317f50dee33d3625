"""A report as one page of HTML that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import count

from recbole_adv.report.blocks import Best, Block, Charts, Details, Document, Section, Table, Text
from recbole_adv.report.chart import stroke, svg
from recbole_adv.report.style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(document: Document) -> str:
    """The page. Everything that comes from runs is escaped here or in the charts."""
    title = f"Report on {escape(document.title)}"
    names = count(1)
    links = "".join(
        f'<li><a href="#{_anchor(s)}">{escape(s.title)}</a></li>' for s in document.sections
    )
    body = "".join(part for section in document.sections for part in _section(section, names))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#main">Skip to the results</a>\n<header>\n<h1>{title}</h1>\n'
        f"<p>{escape(document.lead)}</p>\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n<main id="main">\n'
        f"{body}</main>\n</body>\n</html>\n"
    )


def _anchor(section: Section) -> str:
    return re.sub(r"\W+", "-", section.title.lower())


def _section(section: Section, names: Iterator[int]) -> Iterator[str]:
    anchor = _anchor(section)
    yield f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(section.title)}</h2>\n'
    yield from _blocks(section.blocks, names)
    yield "</section>\n"


def _blocks(blocks: Iterable[Block], names: Iterator[int]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, Text):
            kind = ' class="warning" role="note"' if block.warning else ""
            yield f"<p{kind}>{escape(block.text)}</p>\n"
        elif isinstance(block, Table):
            yield from _table(block)
        elif isinstance(block, Charts):
            yield from _charts(block, names)
        else:
            assert isinstance(block, Details)
            yield f"<details>\n<summary>{escape(block.summary)}</summary>\n"
            yield from _blocks(block.blocks, names)
            yield "</details>\n"


def _table(table: Table) -> Iterator[str]:
    caption = escape(table.caption)
    # A region that scrolls must be reachable by keyboard, and then have a name.
    yield f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">\n<table>\n'
    yield f"<caption>{caption}</caption>\n<thead><tr>"
    for place, cell in enumerate(table.head):
        yield f'<th scope="col"{_kind(table, place)}>{escape(cell)}</th>'
    yield "</tr></thead>\n<tbody>\n"
    for row in table.rows:
        yield f'<tr><th scope="row">{escape(row[0])}</th>'
        for place, cell in enumerate(row[1:], start=1):
            shown = f"<strong>{escape(cell)}</strong>" if isinstance(cell, Best) else escape(cell)
            yield f"<td{_kind(table, place)}>{shown}</td>"
        yield "</tr>\n"
    yield "</tbody>\n</table>\n</div>\n"


def _kind(table: Table, place: int) -> str:
    return "" if place in table.words else ' class="n"'


def _charts(block: Charts, names: Iterator[int]) -> Iterator[str]:
    drawn = {line.method for chart in block.charts for line in chart.lines}
    if len(block.methods) > 1:
        yield from _legend([(place, block.methods[place]) for place in sorted(drawn)])
    yield '<div class="charts">\n'
    for chart in block.charts:
        yield f"<figure><figcaption>{escape(chart.title)}</figcaption>"
        yield f"{svg(chart, f'chart-{next(names)}')}</figure>\n"
    yield "</div>\n"


def _legend(methods: Sequence[tuple[int, str]]) -> Iterator[str]:
    yield '<ul class="legend" aria-label="Methods in the charts">'
    for place, label in methods:
        yield '<li><svg viewBox="0 0 26 8" aria-hidden="true">'
        yield f'<line {stroke(place)} x1="1" x2="25" y1="4" y2="4"/></svg>{escape(label)}</li>'
    yield "</ul>\n"
