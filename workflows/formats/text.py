"""Tables for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as RichTable

from workflows.audit import Finding
from workflows.formats.findings import heading, numbered_findings, shown
from workflows.tables.table import Table

__all__ = ["document", "table_text"]

_WIDTH = 110
"""Of sentences; tables are as wide as they are."""


def document(tables: Sequence[Table], title: str, findings: Sequence[Finding]) -> str:
    """Render all tables, with the findings before the cost of the sweep."""
    parts = [(table.name, table_text(table, title, findings)) for table in tables]
    before = [part for name, part in parts if name != "cost"]
    after = [part for name, part in parts if name == "cost"]
    return "\n".join([*before, *([_findings(findings, tables)] if findings else []), *after])


def table_text(table: Table, title: str = "", findings: Sequence[Finding] = ()) -> str:
    """Render a table with its notes; a last column has the numbers of the findings on each line."""
    marks = table.marks(findings)
    marked = any(marks)
    grid = RichTable(
        title=": ".join(filter(None, (title, table.title))),
        title_justify="left",
        title_style="bold",
        header_style="bold",
    )
    for column in table.visible:
        grid.add_column(column.title, justify="left" if column.left else "right", no_wrap=True)
    if marked:
        grid.add_column("findings", no_wrap=True)
    for line, numbers, apart in zip(table.lines(), marks, table.breaks(), strict=True):
        if apart:
            grid.add_section()
        grid.add_row(*line, *([", ".join(map(str, numbers))] if marked else []))
    # As wide as it gets, since a narrower console crops cells; names are not markup.
    console = Console(width=10_000, no_color=True, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(grid)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    lines += [_filled(f"Warning: {table.warning}")] if table.warning else []
    lines += [_filled(f"Note: {note}") for note in (table.note, *table.remarks) if note]
    return "\n".join(lines) + "\n"


def _filled(text: str, indent: int = 0) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _findings(findings: Sequence[Finding], tables: Sequence[Table]) -> str:
    """Render the first findings, each with its cells, numbers and what to do."""
    blocks = [heading(findings)]
    room = shown(numbered_findings(findings, tables))
    for finding in room:
        blocks.append(_filled(f"{finding.number:>2} {finding.severity:<8} {finding.rule}: {finding.text}", 14))
        blocks += [_filled(f"{'':<12}{name}: {text}", 14) for name, text in finding.parts.items()]
    if len(findings) > len(room):
        blocks.append(f"... and {len(findings) - len(room)} more: `--format json` has them all")
    return "\n".join(blocks) + "\n"
