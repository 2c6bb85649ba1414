"""The page: one HTML file that needs nothing else, recomputed from committed rows and nothing else.

It is well-formed XML too, has no script and fetches nothing: figures are inline SVG, images and downloads data URIs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from workflows.audit import Finding, counts, findings
from workflows.published.table import published_table
from workflows.report.charts import DARK, LIGHT, style
from workflows.report.figures import Figure, figures
from workflows.report.gallery import Group, Picture, gallery, uris
from workflows.report.provenance import provenance
from workflows.report.size import Piece, data_uri, fitted, said
from workflows.report.summary import missing, summary
from workflows.report.tables import Tabular, tabulars
from workflows.results.reader import Results
from workflows.tables.columns import TEXT_COLUMNS
from workflows.tables.render import cell_names, evidence_text, notes, tally
from workflows.tables.sections import sections

__all__ = ["report"]

_FIGURES, _LINES, _GROUPS = 4, 40, 4
"""So many figures of a topic, lines of a table and groups of images are open; more are folded."""

_SENTENCES, _CELLS, _TEXT = 40, 20, 100_000
"""Sentences at the head, cells named by a finding, and characters of the sweep file that a page has at most."""


def report(results: Results, *, command: str, images: int | None = None) -> str:
    """The page: below :data:`workflows.report.size.MOST` bytes; what does not fit is left out, which it says.

    Arguments:
        results: The sweep's results; partial ones make a page that says so.
        command: The command that reproduces it, for the provenance.
        images: Cells to show images of, before anything else; None for as many as there is place for.
    """
    robustness, cost, further, found = results.robustness(), results.cost(), sections(results), findings(results)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["code"] = _code
    published = published_table(results)
    shown = gallery(results, images)
    content = _Content(
        [_figure(figure) for figure in figures(results, robustness, further, published)],
        [_table(table) for table in tabulars(results, robustness, cost, further, found, published)],
        [(group, list(uris(group))) for group in shown.groups],
        [_finding(finding, robustness) for finding in found],
    )
    warning = [] if published is None or not published.warning else [published.warning]
    sentences = summary(robustness, further, found)
    if len(sentences) > _SENTENCES:
        sentences = [*sentences[:_SENTENCES], f"{len(sentences) - _SENTENCES} more of these are in the tables."]
    text = results.sweep.text
    fixed = {
        "title": results.sweep.name,
        "subtitle": f"sweep {results.sweep.id} · {len(results.sweep.cells)} cells · puregrid report",
        "style": Markup(style({name: f"var(--{name})" for name in LIGHT})),  # noqa: S704  constants
        "light": LIGHT,
        "dark": DARK,
        "summary": sentences,
        "findings_counts": counts(found),
        "findings_tally": tally(found),
        "open_lines": _LINES,
        "text_columns": TEXT_COLUMNS,
        "gallery": shown,
        "open_groups": _GROUPS,
        "provenance": provenance(results, command),
        "sweep_text": text if len(text) <= _TEXT else f"{text[:_TEXT]}\n# ... {len(text) - _TEXT:,} characters more",
    }
    warnings = [*warning, *missing(results), *notes(robustness)]
    template = environment.get_template("report.html")

    def render(out: frozenset[Piece]) -> str:
        left = said(piece for piece in content.pieces(images) if piece in out)
        return template.render(**fixed, **content.without(out), warnings=[*warnings, *([left] if left else [])])

    return fitted(render, list(content.pieces(images)))


@dataclass(frozen=True)
class _Content:
    """What a page may have to do without."""

    figures: list[dict[str, Any]]
    tables: list[dict[str, Any]]
    groups: list[tuple[Group, list[tuple[Picture, list[str]]]]]
    findings: list[dict[str, Any]]

    def pieces(self, images: int | None) -> Iterator[Piece]:
        """The most expendable first; images that were asked for last."""
        place = Counter[str]()
        folded = set()
        for i, figure in enumerate(self.figures):
            place[figure["topic"]] += 1
            if place[figure["topic"]] > _FIGURES:
                folded.add(i)
        order = [*sorted(folded, reverse=True), *(i for i in reversed(range(len(self.figures))) if i not in folded)]
        pictures = [
            Piece("image group", (i,), sum(len(uri) for _, uris in own for uri in uris))
            for i, (_, own) in reversed(list(enumerate(self.groups)))
        ]
        if images is None:
            yield from pictures
        yield from (Piece("SVG file", (i,), len(self.figures[i]["file"])) for i in order)
        yield from (Piece("figure CSV file", (i,), len(self.figures[i]["csv"])) for i in order)
        yield from (Piece("figure", (i,), len(self.figures[i]["svg"])) for i in order if i in folded)
        for i, table in enumerate(self.tables):
            yield Piece("table CSV file", (i,), len(table["csv"]))
        # From the end of every table, the longest ones first.
        lines = [(i, j) for i, table in enumerate(self.tables) for j in range(_LINES, len(table["lines"]))]
        for i, j in sorted(lines, key=lambda at: -at[1]):
            line = self.tables[i]["lines"][j]
            # As the template writes it, rather more than less: too much in one go would leave the page half empty.
            size = sum(len(value) + (50 if " [" in value else 20) for value in line.values) + 120 * len(line.marks)
            yield Piece("table line", (i, j), size)
        for i in reversed(range(_LINES, len(self.findings))):
            yield Piece("finding", (i,), sum(map(len, self.findings[i]["cells"])) + 500)
        yield from (Piece("figure", (i,), len(self.figures[i]["svg"])) for i in order if i not in folded)
        if images is not None:
            yield from pictures

    def without(self, out: frozenset[Piece]) -> dict[str, Any]:
        """What is left, for the template."""
        gone: dict[str, set[tuple[int | str, ...]]] = {}
        for piece in out:
            gone.setdefault(piece.kind, set()).add(piece.place)

        def there(kind: str, *place: int) -> bool:
            return place not in gone.get(kind, ())

        shown: list[dict[str, Any]] = []
        more: list[dict[str, Any]] = []
        place = Counter[str]()
        for i, figure in enumerate(self.figures):
            place[figure["topic"]] += 1
            if there("figure", i):
                kept = {
                    "file": figure["file"] if there("SVG file", i) else "",
                    "csv": figure["csv"] if there("figure CSV file", i) else "",
                }
                (shown if place[figure["topic"]] <= _FIGURES else more).append({**figure, **kept})
        tables = []
        for i, table in enumerate(self.tables):
            lines = [line for j, line in enumerate(table["lines"]) if there("table line", i, j)]
            csv = table["csv"] if there("table CSV file", i) else ""
            tables.append({**table, "lines": lines, "csv": csv})
        return {
            "figures": shown,
            "folded": [(topic, list(own)) for topic, own in groupby(more, lambda figure: figure["topic"])],
            "tables": tables,
            "groups": [own for i, own in enumerate(self.groups) if there("image group", i)],
            "findings": [{**each, "shown": there("finding", i)} for i, each in enumerate(self.findings)],
        }


def _code(text: str) -> Markup:
    """Text whose words in back quotes are code."""
    parts = re.split(r"`([^`]+)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts)
    )


def _figure(figure: Figure) -> dict[str, Any]:
    csv, suffix = data_uri(figure.frame.to_csv(index=False), "text/csv")
    return {
        "name": figure.name,
        "topic": figure.topic,
        "caption": figure.caption,
        "svg": Markup(figure.drawing.inline() + figure.drawing.legend()),  # noqa: S704  built here, names escaped
        "file": data_uri(figure.drawing.file(), "image/svg+xml")[0],
        "csv": csv,
        "suffix": suffix,
    }


def _table(table: Tabular) -> dict[str, Any]:
    csv, suffix = data_uri(table.frame.to_csv(index=False), "text/csv")
    return {
        "name": table.name,
        "title": table.title,
        "note": table.note,
        "names": table.names,
        "lines": table.lines,
        "remarks": table.remarks,
        "csv": csv,
        "suffix": suffix,
    }


def _finding(finding: Finding, robustness: pd.DataFrame) -> dict[str, Any]:
    """What the page shows of a finding."""
    cells = cell_names(finding, robustness)
    if len(cells) > _CELLS:
        cells = [*cells[:_CELLS], f"and {len(cells) - _CELLS} more"]
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "text": finding.text,
        "cells": cells,
        "count": len(finding.cells),
        "evidence": evidence_text(finding),
        "action": finding.action,
    }
