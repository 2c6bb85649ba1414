"""What the pages share: templates with the style, and tables whose lines lead to other pages."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from workflows.formats.html import Line, lines_of
from workflows.report.parts import OPEN_LINES, environment, look
from workflows.tables.table import Table

__all__ = ["linked", "rendered"]


def rendered(template: str, **content: Any) -> str:
    """Render a template with what every page needs."""
    return environment().get_template(template).render(**look(), open_lines=OPEN_LINES, **content)


def linked(table: Table, column: str, links: Sequence[str]) -> list[Line]:
    """Return the lines of a table whose values of a column lead somewhere."""
    place = [shown.name for shown in table.visible].index(column)
    return [replace(line, links={place: link}) for line, link in zip(lines_of(table, ()), links, strict=True)]
