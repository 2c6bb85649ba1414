"""The page: one HTML file that needs nothing else, recomputed from committed rows and nothing else.

It is well-formed XML too, has no script and fetches nothing: figures are inline SVG, images and downloads data URIs.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from workflows.audit import Finding, counts, findings
from workflows.charts import DARK, LIGHT, style
from workflows.reader import Results
from workflows.report.figures import Figure, figures
from workflows.report.gallery import gallery, uris
from workflows.report.provenance import provenance
from workflows.report.tables import Tabular, tabulars
from workflows.report.words import missing, summary
from workflows.sections import sections
from workflows.tables import TEXT_COLUMNS, cell_names, evidence_text, notes, tally

__all__ = ["report"]

_FIGURES, _LINES, _GROUPS = 4, 40, 4
"""So many figures of a topic, lines of a table and groups of images are open; more are folded."""


def report(results: Results, *, command: str) -> str:
    """The page.

    Arguments:
        results: The sweep's results; partial ones make a page that says so.
        command: The command that reproduces it, for the provenance.
    """
    robustness, cost, further, found = results.robustness(), results.cost(), sections(results), findings(results)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["code"] = _code
    environment.filters["uri"] = _uri
    drawn = figures(results, robustness, further)
    place = Counter[str]()
    shown: list[Figure] = []
    more: list[Figure] = []
    for figure in drawn:
        place[figure.topic] += 1
        (shown if place[figure.topic] <= _FIGURES else more).append(figure)
    images = gallery(results)
    return environment.get_template("report.html").render(
        title=results.sweep.name,
        subtitle=f"sweep {results.sweep.id} · {len(results.sweep.cells)} cells · puregrid report",
        style=Markup(style({name: f"var(--{name})" for name in LIGHT})),  # noqa: S704  constants
        light=LIGHT,
        dark=DARK,
        summary=summary(robustness, further, found),
        warnings=[*missing(results), *notes(robustness)],
        findings=[_finding(finding, robustness) for finding in found],
        findings_counts=counts(found),
        findings_tally=tally(found),
        figures=[_figure(figure) for figure in shown],
        folded=[(topic, [_figure(figure) for figure in own]) for topic, own in groupby(more, lambda f: f.topic)],
        tables=[_table(table) for table in tabulars(results, robustness, cost, further, found)],
        open_lines=_LINES,
        text_columns=TEXT_COLUMNS,
        gallery=images,
        open_groups=_GROUPS,
        groups=[(group, list(uris(group))) for group in images.groups],
        provenance=provenance(results, command),
        sweep_text=results.sweep.text,
    )


def _code(text: str) -> Markup:
    """Text whose words in back quotes are code."""
    parts = re.split(r"`([^`]+)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts)
    )


def _uri(text: str, kind: str) -> str:
    """A file as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "topic": figure.topic,
        "caption": figure.caption,
        "svg": Markup(figure.drawing.inline() + figure.drawing.legend()),  # noqa: S704  built here, names escaped
        "file": figure.drawing.file(),
        "csv": figure.frame.to_csv(index=False),
    }


def _table(table: Tabular) -> dict[str, Any]:
    return {
        "name": table.name,
        "title": table.title,
        "note": table.note,
        "names": table.names,
        "lines": table.lines,
        "csv": table.frame.to_csv(index=False),
    }


def _finding(finding: Finding, robustness: pd.DataFrame) -> dict[str, Any]:
    """What the page shows of a finding."""
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "text": finding.text,
        "cells": cell_names(finding, robustness),
        "evidence": evidence_text(finding),
        "action": finding.action,
    }
