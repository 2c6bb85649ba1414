"""Tables as fragments of a page: well-formed XML, every name escaped.

Without a script a table is complete and in the order of the sweep; a script of the page may sort and filter it.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
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
        marks: Numbers of the findings, from 1, by the place of the value that they concern.
        cells: Ids of the cells that it is of.
        links: Where values lead, by their place.
        struck: Places of the values that are struck through.
        why: Why they are, for the first value that leads somewhere, which names the line.
    """

    values: Sequence[str]
    marks: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    cells: tuple[str, ...] = ()
    links: Mapping[int, str] = field(default_factory=dict)
    struck: Collection[int] = ()
    why: str = ""


def lines_of(table: Table, findings: Sequence[Finding]) -> list[Line]:
    """Return the lines of a table with the findings on each."""
    places = {column.name: place for place, column in enumerate(table.visible)}
    cells = table.cells or ((),) * len(table.rows)
    return [
        Line(line, {places[name]: numbers for name, numbers in marks.items()}, own)
        for line, marks, own in zip(table.lines(), table.marks_beside(findings), cells, strict=True)
    ]


def table_html(
    table: Table,
    lines: Sequence[Line],
    findings: Sequence[Mapping[str, Any]],
    images: Mapping[str, str] | None = None,
) -> Markup:
    """Render the table alone, with some of its lines.

    Arguments:
        table: The table.
        lines: The lines to show, from :func:`lines_of`.
        findings: ``severity`` and ``rule`` of each finding, to which a mark leads as ``#finding-NUMBER``.
        images: Where the images of a cell are, by its id: a last column leads there.
    """
    left = [column.left for column in table.visible]
    links = images or {}
    led = any(cell in links for line in lines for cell in line.cells)
    head = "".join(
        f'<th scope="col"{_class(text)} title="{escape(column.meaning)}">{escape(column.title)}</th>'
        for column, text in zip(table.visible, left, strict=True)
    )
    head += '<th scope="col" class="see">look</th>' if led else ""
    once = {cells for cells, n in Counter(line.cells for line in lines).items() if n == len(cells) == 1}
    body = "".join(_row(table.name, line, left, findings, links, led, named=line.cells in once) for line in lines)
    return Markup(  # noqa: S704  escaped
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}\n</tbody></table>"
    )


def _class(left: bool) -> str:
    return ' class="t"' if left else ""


def _row(
    name: str,
    line: Line,
    left: Sequence[bool],
    findings: Sequence[Mapping[str, Any]],
    images: Mapping[str, str],
    led: bool,
    *,
    named: bool,
) -> str:
    cells = []
    first = min(line.links, default=0)
    for place, (text, aligned) in enumerate(zip(line.values, left, strict=True)):
        value, _, interval = text.partition(" [")
        marks = "".join(_mark(number, findings[number - 1]) for number in line.marks.get(place, ()))
        ends = f'<span class="interval">[{escape(interval)}</span>' if interval else ""
        shown = str(escape(value))
        if place in line.links:
            shown = f'<a href="{escape(line.links[place])}">{shown}</a>'
        if place in line.struck:
            shown, ends = f"<s>{shown}</s>", ends and f"<s>{ends}</s>"
        why = f'<span class="why">{escape(line.why)}</span>' if line.why and place == first else ""
        cells.append(f"<td{_class(aligned)}>{shown}{marks}{ends}{why}</td>")
    if led:
        link = next((images[cell] for cell in line.cells if cell in images), None)
        cells.append("<td></td>" if link is None else f'<td><a href="{escape(link)}">images</a></td>')
    anchor = f' id="{escape(name)}-{line.cells[0][:8]}"' if named else ""
    return f"\n<tr{anchor}>{''.join(cells)}</tr>"


def _mark(number: int, finding: Mapping[str, Any]) -> str:
    severity, rule = escape(finding["severity"]), escape(finding["rule"])
    return f'<a class="mark {severity}" href="#finding-{number}" title="{severity}: {rule}">{number}</a>'
