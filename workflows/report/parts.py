"""What pages share: templates and their style, tables, figures and findings as the templates take them."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from workflows.audit import Finding
from workflows.formats.findings import CellNames, evidence_text, reason
from workflows.formats.html import Line, lines_of, table_html
from workflows.formats.machine import csv, frame_csv
from workflows.report.charts import DARK, LIGHT, Drawing, Panels, style
from workflows.report.size import data_uri
from workflows.tables.table import Table

__all__ = ["OPEN_LINES", "drawn", "environment", "finding_card", "finding_cards", "grid_of", "look"]

OPEN_LINES = 40
"""Longer tables than this scroll in a window."""

_CELLS = 20
"""Cells named by a finding at most."""


@cache
def environment() -> Environment:
    """It keeps the templates that it has compiled."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["code"] = _code
    environment.filters["css"] = _in_css
    for name in ("report.js", "report.css"):
        text = (Path(__file__).parent / "templates" / name).read_text("utf-8")
        environment.globals[name.replace(".", "_")] = Markup(text)  # noqa: S704  files of this package
    return environment


def look() -> dict[str, Any]:
    """Return what every page needs of the style: that of drawings, and the colours of both schemes."""
    return {
        "style": Markup(style({name: f"var(--{name})" for name in LIGHT})),  # noqa: S704  constants
        "light": LIGHT,
        "dark": DARK,
        "toggles": range(_TOGGLES),
    }


_TOGGLES = 64
"""Lines of a figure that its legend can show and hide."""


def drawn(name: str, topic: str, caption: str, drawing: Drawing | Panels, frame: pd.DataFrame) -> dict[str, Any]:
    """Return what the macro of figures needs: the figure, its values in words, and both as files."""
    file, suffix = data_uri(frame_csv(frame), "text/csv")
    return {
        "name": name,
        "topic": topic,
        "caption": caption,
        "svg": Markup(drawing.inline() + drawing.legend()),  # noqa: S704  built here, names escaped
        "notes": list(drawing.notes),
        "said": sum(map(len, drawing.notes)) + 12 * len(drawing.notes),
        "large": isinstance(drawing, Panels) or drawing.width > _LARGE,
        "file": data_uri(drawing.file(), "image/svg+xml")[0],
        "csv": file,
        "suffix": suffix,
    }


def grid_of(
    table: Table,
    findings: Sequence[Finding] = (),
    cards: Sequence[Mapping[str, Any]] = (),
    lines: Sequence[Line] | None = None,
) -> dict[str, Any]:
    """Return what the macro of tables needs: the whole table, and its file.

    Arguments:
        table: The table.
        findings: Whose marks stand on its lines.
        cards: Their cards on the page, to which the marks lead.
        lines: Its lines, where these lead somewhere; by default those of the table.
    """
    file, suffix = data_uri(csv(table, findings or None), "text/csv")
    lines = lines_of(table, findings) if lines is None else lines
    grid = table_html(table, lines, cards)
    return {
        "table": table,
        "name": table.name,
        "count": len(lines),
        "grid": grid,
        "csv": file,
        "suffix": suffix,
    }


def finding_cards(findings: Sequence[Finding], robustness: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the cards of findings, with their cells as the robustness frame calls them."""
    names = CellNames(robustness)
    return [finding_card(finding, names.of(finding)) for finding in findings]


def finding_card(finding: Finding, cells: list[str]) -> dict[str, Any]:
    """Return what the page shows of a finding and the names of its cells."""
    if len(cells) > _CELLS:
        cells = [*cells[:_CELLS], f"and {len(cells) - _CELLS} more"]
    return {
        "rule": finding.rule,
        "severity": finding.standing,
        "silenced": reason(finding),
        "text": finding.text,
        "cells": cells,
        "count": len(finding.cells),
        "evidence": evidence_text(finding),
        "action": finding.action,
    }


def _code(text: str) -> Markup:
    """Set the words in back quotes as code."""
    parts = re.split(r"`([^`]+)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts)
    )


def _in_css(text: str) -> Markup:
    """Return a text that stands between quotes in a style sheet, and within HTML."""
    plain = "".join(letter if letter.isalnum() or letter in " -=.,()*" else f"\\{ord(letter):x} " for letter in text)
    return Markup(plain)  # noqa: S704  no letter of markup is left


_LARGE = 700
"""Wider drawings than this take the width of the page."""
