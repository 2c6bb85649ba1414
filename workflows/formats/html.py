"""Tables as fragments of a page: well-formed XML, every name escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from workflows.audit import Finding
from workflows.tables.table import Table

__all__ = ["Line", "lines_of", "table_html"]


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Arguments:
        values: The cells.
        marks: Numbers of the findings on it, from 1, in their order.
    """

    values: Sequence[str]
    marks: tuple[int, ...] = ()


def lines_of(table: Table, findings: Sequence[Finding]) -> list[Line]:
    """Return the lines of a table with the findings on each."""
    return [Line(line, marks) for line, marks in zip(table.lines(), table.marks(findings), strict=True)]


def table_html(table: Table, lines: Sequence[Line], findings: Sequence[Mapping[str, Any]]) -> Markup:
    """Render the table alone, with some of its lines.

    Arguments:
        table: The table.
        lines: The lines to show, from :func:`lines_of`.
        findings: ``severity`` and ``rule`` of each finding, to which a mark leads as ``#finding-NUMBER``.
    """
    left = [column.left for column in table.visible]
    head = "".join(
        f'<th{_class(text)} title="{escape(column.meaning)}">{escape(column.title)}</th>'
        for column, text in zip(table.visible, left, strict=True)
    )
    body = "".join(_row(line, left, findings) for line in lines)
    return Markup(f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}\n</tbody></table>")  # noqa: S704  escaped


def _class(left: bool) -> str:
    return ' class="t"' if left else ""


def _row(line: Line, left: Sequence[bool], findings: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for place, (text, aligned) in enumerate(zip(line.values, left, strict=True)):
        value, _, interval = text.partition(" [")
        inner = str(escape(value)) + (f'<span class="interval">[{escape(interval)}</span>' if interval else "")
        marks = "".join(_mark(number, findings[number - 1]) for number in line.marks) if place == 0 else ""
        cells.append(f"<td{_class(aligned)}>{inner}{marks}</td>")
    return f"\n<tr>{''.join(cells)}</tr>"


def _mark(number: int, finding: Mapping[str, Any]) -> str:
    severity, rule = escape(finding["severity"]), escape(finding["rule"])
    return f'<a class="mark {severity}" href="#finding-{number}" title="{severity}: {rule}">{number}</a>'
