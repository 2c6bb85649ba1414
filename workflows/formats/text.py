"""Tables for a terminal."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from defense.text import in_one_line
from workflows.audit import Finding
from workflows.formats.findings import heading, numbered_findings, shown
from workflows.tables.table import Table

__all__ = ["document", "table_text"]

_WIDTH = 110
"""Of sentences; tables are as wide as they are."""


def document(tables: Sequence[Table], title: str, findings: Sequence[Finding], *, width: int | None = None) -> str:
    """Render all tables, with the findings before the cost of the sweep."""
    parts = [(table.name, table_text(table, title, findings, width=width)) for table in tables]
    before = [part for name, part in parts if name != "cost"]
    after = [part for name, part in parts if name == "cost"]
    return "\n".join([*before, *([_findings(findings, tables, width)] if findings else []), *after])


def table_text(table: Table, title: str = "", findings: Sequence[Finding] = (), *, width: int | None = None) -> str:
    """Render a table with its notes; a last column has the numbers of the findings on each line.

    Arguments:
        table: The table.
        title: What it is of.
        findings: The auditor's.
        width: Columns of the terminal. A table that is wider is a block of lines for each of its own, a column in
            each: nothing is cut, and no line is broken by the terminal.
    """
    heading = in_one_line(": ".join(filter(None, (title, table.title))))
    lines = _grid(table, heading, findings)
    if width is not None and max(map(cell_len, lines)) > width:
        lines = _blocks(table, heading, findings, width)
    lines += [_filled(f"Warning: {table.warning}", width)] if table.warning else []
    lines += [_filled(f"Note: {note}", width) for note in (table.note, *table.remarks) if note]
    return "\n".join(lines) + "\n"


def _blocks(table: Table, heading: str, findings: Sequence[Finding], width: int) -> list[str]:
    """A line of the table as a block: what it is of in words, and below each number with its column's title."""
    names = [column.title for column in table.visible]
    words = [place for place, column in enumerate(table.visible) if column.left]
    others = [place for place in range(len(names)) if place not in words]
    titles = [*(names[place] for place in others), *(["findings"] if any(table.marks(findings)) else [])]
    indent = max(map(cell_len, titles), default=0) + 4
    lines = [_filled(heading, width)]
    for line, numbers in zip(table.lines(), table.marks(findings), strict=True):
        lines += ["", _filled(", ".join(line[place] for place in words if line[place]), width)]
        beside = [(names[place], line[place]) for place in others]
        beside += [("findings", ", ".join(map(str, numbers)))] if numbers else []
        for name, value in beside:
            lines.append(_filled(f"  {name}{' ' * (indent - 2 - cell_len(name))}{value}", width, indent))
    return [*lines, ""]


def _grid(table: Table, heading: str, findings: Sequence[Finding]) -> list[str]:
    marks = table.marks(findings)
    marked = any(marks)
    grid = RichTable(
        title=heading,
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
    # As wide as it gets, since a narrower console crops cells; names are not markup, and no variable of the
    # environment (FORCE_COLOR) puts escapes into a text that may go to a file.
    console = Console(
        width=10_000,
        file=io.StringIO(),
        force_terminal=False,
        force_jupyter=False,
        color_system=None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as capture:
        console.print(grid)
    return [line.rstrip() for line in capture.get().splitlines()]


def _filled(text: str, width: int | None = None, indent: int = 0) -> str:
    columns = min(_WIDTH, width or _WIDTH)
    return textwrap.fill(
        in_one_line(text.replace("\n", " ")),
        columns,
        subsequent_indent=" " * min(indent, columns // 2),
        break_long_words=width is not None,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


def _findings(findings: Sequence[Finding], tables: Sequence[Table], width: int | None) -> str:
    """Render the first findings, each with its cells, numbers and what to do."""
    blocks = [heading(findings)]
    room = shown(numbered_findings(findings, tables))
    for finding in room:
        blocks.append(_filled(f"{finding.number:>2} {finding.severity:<8} {finding.rule}: {finding.text}", width, 14))
        blocks += [_filled(f"{'':<12}{name}: {text}", width, 14) for name, text in finding.parts.items()]
    if len(findings) > len(room):
        blocks.append(f"... and {len(findings) - len(room)} more: `--format json` has them all")
    return "\n".join(blocks) + "\n"
