"""Tables for a wiki or a pull request, in the Markdown of GitHub."""

import re
from collections.abc import Sequence

from defense.text import in_one_line
from workflows.audit import Finding
from workflows.formats.findings import heading, numbered_findings, shown
from workflows.tables.table import Table

__all__ = ["document", "table_markdown"]


def document(tables: Sequence[Table], title: str, findings: Sequence[Finding]) -> str:
    """Render all tables, with the findings before the cost of the sweep."""
    parts = [(table.name, table_markdown(table, title, findings)) for table in tables]
    before = [part for name, part in parts if name != "cost"]
    after = [part for name, part in parts if name == "cost"]
    return "\n".join([*before, *([_findings(findings, tables)] if findings else []), *after])


def table_markdown(table: Table, title: str = "", findings: Sequence[Finding] = ()) -> str:
    """Render a table with its notes; a last column has the numbers of the findings on each line."""
    marks = table.marks(findings)
    marked = any(marks)
    head = [column.title for column in table.visible]
    ruler = [":--" if column.left else "--:" for column in table.visible]
    lines = table.lines()
    if marked:
        head, ruler = [*head, "findings"], [*ruler, ":--"]
        lines = [[*line, ", ".join(map(str, numbers))] for line, numbers in zip(lines, marks, strict=True)]
    rows = (" | ".join(map(_escaped, row)) for row in (head, ruler, *lines))
    parts = [f"**{_escaped(': '.join(filter(None, (title, table.title))))}**"]
    parts += [f"**{_escaped(table.warning)}**"] if table.warning else []
    parts.append("\n".join(f"| {row} |" for row in rows))
    parts += [f"Note: {_escaped(note)}" for note in (table.note, *table.remarks) if note]
    return "\n\n".join(parts) + "\n"


_TAG = re.compile(r"<(?=[A-Za-z/!?])")


def _escaped(text: str) -> str:
    """Escape what would end a cell or be HTML or a link; some readers start cells at bars outside of tables."""
    text = in_one_line(text.replace("\n", " ")).replace("\\", r"\\").replace("|", r"\|").replace("](", r"]\(")
    return _TAG.sub("&lt;", text)


def _findings(findings: Sequence[Finding], tables: Sequence[Table]) -> str:
    """Render the first findings as a numbered list, each with its cells, numbers and what to do."""
    blocks = [f"**{heading(findings)}**\n"]
    room = shown(numbered_findings(findings, tables))
    for finding in room:
        parts = "; ".join(f"{name}: {text}" for name, text in finding.parts.items())
        line = f"{finding.number}. **{finding.severity}** `{finding.rule}`: {finding.text} ({parts})"
        blocks.append(_escaped(line))
    if len(findings) > len(room):
        blocks.append(f"\n... and {len(findings) - len(room)} more: `--format json` has them all")
    return "\n".join(blocks) + "\n"
