"""Tables for a terminal: as wide as they are in a pipe, fitted to the columns of a terminal, coloured for a person.

A table that is too wide is fitted in this order: intervals go below their value and text is wrapped; then columns are
left out in the order that the table declares (:class:`workflows.tables.table.Column`, ``drop``) and named below it;
and where even the columns that must stay are too wide, each line becomes a block of lines. No number is cut.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from defense.text import in_one_line
from workflows.audit import Finding
from workflows.formats.findings import heading, numbered_findings, shown
from workflows.tables.table import Table

__all__ = ["document", "table_text"]

_WIDTH = 110
"""Of sentences; tables and their titles are as wide as they are."""

_LEAST = 12
"""Text is not wrapped to less than this, or its longest word."""

_COLOURS = {"error": "31;1", "warning": "33", "note": "36", "silenced": "2", "bold": "1", "dim": "2"}


def document(
    tables: Sequence[Table],
    title: str,
    findings: Sequence[Finding],
    *,
    width: int | None = None,
    colour: bool = False,
) -> str:
    """Render all tables, with the findings before the cost of the sweep."""
    parts = [(table.name, table_text(table, title, findings, width=width, colour=colour)) for table in tables]
    before = [part for name, part in parts if name != "cost"]
    after = [part for name, part in parts if name == "cost"]
    return "\n".join([*before, *([_findings(findings, tables, width, colour)] if findings else []), *after])


def table_text(
    table: Table,
    title: str = "",
    findings: Sequence[Finding] = (),
    *,
    width: int | None = None,
    colour: bool = False,
) -> str:
    """Render a table with its notes; a last column has the numbers of the findings on each line.

    Arguments:
        table: The table.
        title: What it is of.
        findings: The auditor's.
        width: Columns of the terminal, into which the table is fitted; None for as wide as it is.
        colour: Whether headings, warnings and findings are coloured.
    """
    heading = in_one_line(": ".join(filter(None, (title, table.title))))
    first = heading if width is None else _filled(heading, width)
    columns = _columns(table, findings)
    fitted, left_out = (columns, []) if width is None else _fitted(columns, width)
    if fitted:
        lines = [_painted(first, "bold", colour), *_grid(fitted, table.breaks(), colour)]
    else:
        lines, left_out = _blocks(table, heading, findings, width), []
    if left_out:
        names = ", ".join(column.title for column in columns if column in left_out)
        text = f"Left out at {width} columns: {names}. A wider terminal, a pipe and --format md show all."
        lines += [_painted(_filled(text, width), "dim", colour)]
    lines += [_painted(_filled(f"Warning: {table.warning}", width), "warning", colour)] if table.warning else []
    lines += [_filled(f"Note: {note}", width) for note in (table.note, *table.remarks) if note]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, eq=False)
class _Column:
    """A column as text.

    Arguments:
        title: Heading, of several lines where it is wrapped.
        cells: Values, likewise.
        left: Whether it is aligned to the left.
        text: Whether its values may be wrapped anywhere between words.
        drop: See :class:`workflows.tables.table.Column`.
    """

    title: str
    cells: tuple[str, ...]
    left: bool
    text: bool
    drop: int = 0

    @property
    def width(self) -> int:
        return max(cell_len(line) for text in (self.title, *self.cells) for line in text.split("\n"))

    @property
    def least(self) -> int:
        """The width below which text is not wrapped."""
        words = [word for text in (self.title, *self.cells) for word in text.split()]
        return max([min(self.width, _LEAST), *map(cell_len, words)])

    def stacked(self) -> _Column:
        """Intervals below their values, and the words of the heading below each other."""
        cells = self.cells if self.text else tuple(cell.replace(" [", "\n[") for cell in self.cells)
        width = max([_LEAST * self.text, *(cell_len(line) for cell in cells for line in cell.split("\n"))])
        title = "\n".join(textwrap.wrap(self.title, max(width, 1), break_long_words=False)) or self.title
        return _Column(title, cells, self.left, self.text, self.drop)

    def wrapped(self, width: int) -> _Column:
        """Text in lines of at most that width."""

        def lines(text: str) -> str:
            return "\n".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)) or text

        return _Column(lines(self.title), tuple(map(lines, self.cells)), self.left, self.text, self.drop)


def _columns(table: Table, findings: Sequence[Finding]) -> list[_Column]:
    lines, marks = table.lines(), table.marks(findings)
    columns = [
        _Column(in_one_line(c.title), tuple(line[i] for line in lines), c.left, c.kind == "text", c.drop)
        for i, c in enumerate(table.visible)
    ]
    if any(marks):
        numbers = tuple(", ".join(map(str, mark)) for mark in marks)
        columns.append(_Column("findings", numbers, left=True, text=True))
    return columns


def _needed(widths: Sequence[int]) -> int:
    """The columns of the terminal that a table takes: two spaces and a line for each, and the frame."""
    return sum(widths) + 3 * len(widths) + 1


def _fitted(columns: list[_Column], width: int) -> tuple[list[_Column], list[_Column]]:
    """Return the columns that fit, changed so that they do, and those that are left out; none if none fit."""
    if _needed([column.width for column in columns]) <= width:
        return columns, []
    left_out: list[_Column] = []
    going = sorted((column for column in columns if column.drop), key=lambda column: column.drop)
    while True:
        staying = [column for column in columns if column not in left_out]
        if (fitted := _wrapped(staying, width)) is not None:
            return fitted, left_out
        if not going:
            return [], []
        # Columns of one place, such as those of all corruptions, go one by one.
        left_out.append(going.pop(0))


def _wrapped(columns: list[_Column], width: int) -> list[_Column] | None:
    """Return columns in as many lines as they need; None if no wrapping makes them fit."""
    if _needed([column.width for column in columns]) <= width:
        return columns
    stacked = [column.stacked() for column in columns]
    least = [column.least if column.text else column.width for column in stacked]
    room = width - _needed(least)
    if room < 0:
        return None
    # The room that is left goes to text, word by word, to the most wrapped first.
    given = list(least)
    while room > 0:
        lacking = [i for i, column in enumerate(stacked) if column.width > given[i]]
        if not lacking:
            break
        most = max(lacking, key=lambda i: stacked[i].width / given[i])
        given[most] += 1
        room -= 1
    return [
        column.wrapped(given[i]) if column.text and column.width > given[i] else column
        for i, column in enumerate(stacked)
    ]


def _blocks(table: Table, heading: str, findings: Sequence[Finding], width: int | None) -> list[str]:
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


def _grid(columns: Sequence[_Column], breaks: Sequence[bool], colour: bool) -> list[str]:
    lines = list(zip(*(column.cells for column in columns), strict=True))
    grid = RichTable(
        header_style="bold",
        # Without rules one does not see where a line of several lines ends.
        show_lines=any("\n" in cell for line in lines for cell in line),
    )
    for column in columns:
        grid.add_column(column.title, justify="left" if column.left else "right", no_wrap=True)
    for line, apart in zip(lines, breaks, strict=True):
        if apart:
            grid.add_section()
        grid.add_row(*line)
    # As wide as it gets, since a narrower console crops cells; names are not markup, and no variable of the
    # environment (FORCE_COLOR) puts escapes into a text that may go to a file.
    console = Console(
        width=10_000,
        file=io.StringIO(),
        force_terminal=colour,
        force_jupyter=False,
        color_system="standard" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
        no_color=not colour,
    )
    with console.capture() as capture:
        console.print(grid)
    return [line.rstrip() for line in capture.get().splitlines()]


def _painted(text: str, style: str, colour: bool) -> str:
    return f"\x1b[{_COLOURS[style]}m{text}\x1b[0m" if colour else text


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


def _findings(findings: Sequence[Finding], tables: Sequence[Table], width: int | None, colour: bool) -> str:
    """Render the first findings, each with its cells, numbers and what to do."""
    blocks = [_painted(heading(findings), "bold", colour)]
    room = shown(numbered_findings(findings, tables))
    for finding in room:
        text = _filled(f"{finding.number:>2} {finding.severity:<8} {finding.rule}: {finding.text}", width, 14)
        blocks.append(_painted(text, finding.severity, colour))
        blocks += [_filled(f"{'':<12}{name}: {text}", width, 14) for name, text in finding.parts.items()]
    if len(findings) > len(room):
        blocks.append(f"... and {len(findings) - len(room)} more: `--format json` has them all")
    return "\n".join(blocks) + "\n"
