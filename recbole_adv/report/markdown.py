"""A report as markdown: texts and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from recbole_adv.report.blocks import Best, Block, Charts, Details, Document, Table, Text


def render(document: Document) -> str:
    """The report without its charts."""
    lines = [f"# Report on {_plain(document.title)}", "", _plain(document.lead), ""]
    for section in document.sections:
        blocks = list(_lines(section.blocks))
        if blocks:
            lines += [f"## {_plain(section.title)}", "", *blocks]
    return "\n".join(lines).rstrip() + "\n"


def _lines(blocks: Iterable[Block]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, Text):
            yield from (("**Note:** " if block.warning else "") + _plain(block.text), "")
        elif isinstance(block, Table):
            yield from (f"{_plain(block.caption)}:", "", *_table(block), "")
        elif isinstance(block, Details):
            yield from _lines(block.blocks)
        else:
            assert isinstance(block, Charts)  # only in the page


def _table(table: Table) -> Iterator[str]:
    yield _row([_plain(cell) for cell in table.head])
    yield _row(["---" if place in table.words else "---:" for place in range(len(table.head))])
    for row in table.rows:
        yield _row([f"**{_plain(c)}**" if isinstance(c, Best) else _plain(c) for c in row])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Text that markdown takes as it is, on one line."""
    text = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for sign in "|*`":
        text = text.replace(sign, f"\\{sign}")
    return text
