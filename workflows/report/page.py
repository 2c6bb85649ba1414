"""The page: one HTML file that needs nothing else, recomputed from committed rows and nothing else.

It is well-formed XML too and fetches nothing: figures are inline SVG, images and downloads data URIs. Its one script
sorts, filters and searches tables, and is not needed to read any number.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from workflows.analysis import Analysis
from workflows.audit import SILENCED, Finding, counts
from workflows.formats.findings import tally
from workflows.formats.html import lines_of, table_html
from workflows.formats.machine import csv
from workflows.report.figures import VERDICT, Figure, figures
from workflows.report.gallery import Group, Picture, Reading, order, uris
from workflows.report.parts import OPEN_LINES, drawn, environment, finding_cards, look
from workflows.report.size import MOST, Piece, data_uri, fitted, left_out
from workflows.tables.table import Table

__all__ = ["report"]

_FIGURES, _GROUPS, _PICTURES = 4, 4, 2
"""So many figures of a topic, groups of images and pictures of the verdict are open; more are folded."""

_SENTENCES, _TEXT = 40, 100_000
"""Sentences below the verdict, and characters of the sweep file that a page has at most."""

ABLATIONS = ("probe", "probe_gradients", "mechanism", "convergence", "decisions", "quality")
"""Tables that stand behind the images: what was tried of the parts, and how far attacks were driven."""


def report(
    analysis: Analysis,
    *,
    command: str,
    images: int | None = None,
    pages: Mapping[str, str] | None = None,
    most: int = MOST,
) -> str:
    """Render the page, below so many bytes; it lists what was left out to fit.

    Arguments:
        analysis: The sweep's analysis; partial rows make a page that says so.
        command: The command that reproduces it, for the provenance.
        images: Cells to show images of, before anything else; None for as many as there is place for.
        pages: Where the images of cells are in files of their own, by id.
        most: Bytes that it may have.
    """
    findings = analysis.audited or []
    shown = Reading(analysis).gallery(order(analysis), images)
    every = figures(analysis)
    pictures = [figure for figure in every if figure.topic == VERDICT]
    content = _Content(
        [_figure(figure) for figure in every if figure.topic != VERDICT],
        [_table(table, findings) for table in analysis.tables if table.for_people],
        [(group, list(uris(group))) for group in shown.groups],
        finding_cards(findings, analysis.robustness),
        dict(pages or {}),
    )
    sentences = analysis.summary
    if len(sentences) > _SENTENCES:
        sentences = [*sentences[:_SENTENCES], f"{len(sentences) - _SENTENCES} more of these are in the tables."]
    sweep = analysis.sweep
    text = sweep.text
    fixed = {
        "title": sweep.name,
        "subtitle": f"sweep {sweep.id} · {len(sweep.cells)} cells · puregrid report",
        **look(),
        "verdict": analysis.verdict,
        "pictures": [_figure(figure) for figure in pictures],
        "open_pictures": _PICTURES,
        "summary": sentences,
        "findings_counts": {SILENCED: 0, **counts(findings)},
        "findings_tally": tally(findings),
        "audited": analysis.audited is not None,
        "open_lines": OPEN_LINES,
        "gallery": shown,
        "open_groups": _GROUPS,
        "provenance": analysis.provenance(command),
        "sweep_text": text if len(text) <= _TEXT else f"{text[:_TEXT]}\n# ... {len(text) - _TEXT:,} characters more",
    }
    template = environment().get_template("report.html")

    def render(out: frozenset[Piece]) -> str:
        left = left_out(piece for piece in content.pieces(images) if piece in out)
        warnings = [*analysis.warnings, *([left] if left else [])]
        return template.render(**fixed, **content.without(out), warnings=warnings)

    return fitted(render, list(content.pieces(images)), most)


@dataclass(frozen=True)
class _Content:
    """The content of a page that may be left out."""

    figures: list[dict[str, Any]]
    tables: list[dict[str, Any]]
    groups: list[tuple[Group, list[tuple[Picture, list[tuple[str, str]]]]]]
    findings: list[dict[str, Any]]
    pages: dict[str, str] = field(default_factory=dict)

    def pieces(self, images: int | None) -> Iterator[Piece]:
        """Yield the pieces, the most expendable first; requested images come last."""
        place = Counter[str]()
        folded = set()
        for i, figure in enumerate(self.figures):
            place[figure["topic"]] += 1
            if place[figure["topic"]] > _FIGURES:
                folded.add(i)
        order = [*sorted(folded, reverse=True), *(i for i in reversed(range(len(self.figures))) if i not in folded)]
        pictures = [
            Piece("image group", (i,), sum(len(uri) for _, uris in encoded for _, uri in uris))
            for i, (_, encoded) in reversed(list(enumerate(self.groups)))
        ]
        if images is None:
            yield from pictures
        yield from (Piece("SVG file", (i,), len(self.figures[i]["file"])) for i in order)
        yield from (Piece("figure CSV file", (i,), len(self.figures[i]["csv"])) for i in order)
        yield from (Piece("value list", (i,), self.figures[i]["said"]) for i in order)
        yield from (Piece("figure", (i,), len(self.figures[i]["svg"])) for i in order if i in folded)
        for i, table in enumerate(self.tables):
            yield Piece("table CSV file", (i,), len(table["csv"]))
        # From the end of every table, the longest ones first.
        lines = [(i, j) for i, table in enumerate(self.tables) for j in range(OPEN_LINES, len(table["lines"]))]
        for i, j in sorted(lines, key=lambda at: -at[1]):
            line = self.tables[i]["lines"][j]
            # As the template writes it, rather more than less: too much in one go would leave the page half empty.
            size = sum(len(value) + (50 if " [" in value else 20) for value in line.values) + 120 * sum(
                map(len, line.marks.values())
            )
            yield Piece("table line", (i, j), size)
        for i in reversed(range(OPEN_LINES, len(self.findings))):
            yield Piece("finding", (i,), sum(map(len, self.findings[i]["cells"])) + 500)
        yield from (Piece("figure", (i,), len(self.figures[i]["svg"])) for i in order if i not in folded)
        if images is not None:
            yield from pictures

    def without(self, out: frozenset[Piece]) -> dict[str, Any]:
        """Return the remaining content, for the template."""
        gone: dict[str, set[tuple[int | str, ...]]] = {}
        for piece in out:
            gone.setdefault(piece.kind, set()).add(piece.place)

        def shows(kind: str, *place: int) -> bool:
            return place not in gone.get(kind, ())

        shown: list[dict[str, Any]] = []
        more: list[dict[str, Any]] = []
        place = Counter[str]()
        for i, figure in enumerate(self.figures):
            place[figure["topic"]] += 1
            if shows("figure", i):
                drawing = {
                    "file": figure["file"] if shows("SVG file", i) else "",
                    "csv": figure["csv"] if shows("figure CSV file", i) else "",
                    "notes": figure["notes"] if shows("value list", i) else [],
                }
                (shown if place[figure["topic"]] <= _FIGURES else more).append({**figure, **drawing})
        groups = [group for i, group in enumerate(self.groups) if shows("image group", i)]
        links = {**self.pages, **{group.cell: f"#images-{group.cell[:8]}" for group, _ in groups}}
        tables = []
        for i, table in enumerate(self.tables):
            lines = [line for j, line in enumerate(table["lines"]) if shows("table line", i, j)]
            file = table["csv"] if shows("table CSV file", i) else ""
            grid = table_html(table["table"], lines, self.findings, links)
            tables.append({**table, "grid": grid, "count": len(lines), "csv": file})
        return {
            "figures": shown,
            "folded": [(topic, list(folded)) for topic, folded in groupby(more, lambda figure: figure["topic"])],
            "leaderboard": [table for table in tables if table["name"] == "leaderboard"],
            "tables": [table for table in tables if table["name"] not in ("leaderboard", "cost", *ABLATIONS)],
            "ablations": [table for table in tables if table["name"] in ABLATIONS],
            "costs": [table for table in tables if table["name"] == "cost"],
            "groups": groups,
            "pages": len(self.pages),
            "findings": [{**finding, "shown": shows("finding", i)} for i, finding in enumerate(self.findings)],
        }


def _figure(figure: Figure) -> dict[str, Any]:
    return drawn(figure.name, figure.topic, figure.caption, figure.drawing, figure.frame)


def _table(table: Table, findings: Sequence[Finding]) -> dict[str, Any]:
    file, suffix = data_uri(csv(table, findings), "text/csv")
    return {"table": table, "name": table.name, "lines": lines_of(table, findings), "csv": file, "suffix": suffix}
