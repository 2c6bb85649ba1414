"""Render all tables of an analysis as one text, or one of them."""

from collections.abc import Sequence
from typing import Literal, get_args

from workflows.analysis import Analysis
from workflows.audit import Finding
from workflows.formats import latex, machine, markdown, text
from workflows.tables.table import Table

__all__ = ["FORMATS", "Format", "render", "render_tables"]

Format = Literal["text", "md", "csv", "latex", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)


def render(
    analysis: Analysis,
    how: Format,
    *,
    only: str | None = None,
    findings: bool = True,
    width: int | None = None,
    colour: bool = False,
) -> str:
    """Render the tables and findings of a sweep.

    Arguments:
        analysis: The sweep's analysis.
        how: The format. ``csv`` is one table, by default that of robustness; the others are all tables.
        only: Name of the one table to render.
        findings: Whether the auditor's findings are in it, if the analysis has an audit.
        width: Of ``text``, the columns of the terminal; None if lines may be as long as they get.
        colour: Of ``text``, whether a person looks at it in a terminal.
    """
    tables = analysis.tables if only is None else [analysis.table(only)]
    audited = analysis.audited if findings else None
    return render_tables(
        tables, how, title=analysis.sweep.name, findings=audited, whole=only is None, width=width, colour=colour
    )


def render_tables(
    tables: Sequence[Table],
    how: Format,
    *,
    title: str = "",
    findings: Sequence[Finding] | None = None,
    whole: bool = True,
    width: int | None = None,
    colour: bool = False,
) -> str:
    """Render tables as one text.

    Arguments:
        tables: The tables, in the order in which they are read.
        how: The format. ``csv`` is the first table alone, unrounded; if they are a whole analysis, that of
            robustness.
        title: What the tables are of, before their headings.
        findings: The auditor's findings; None if there was no audit, which ``json`` and ``csv`` distinguish from an
            audit without findings.
        whole: Whether these are all tables of an analysis. The findings are then listed, and ``json`` has an empty
            list for the tables that every sweep could have.
        width: See :func:`render`.
        colour: See there.
    """
    if how == "csv":
        chosen = [table for table in tables if table.name == "robustness" or not whole]
        return machine.csv(chosen[0], findings) if chosen else ""
    if how == "json":
        return machine.json_text(tables, findings, whole=whole)
    shown = [table for table in tables if table.for_people or not whole]
    if how == "text":
        return text.document(shown, title, findings or (), width=width, colour=colour)
    writer = {"md": markdown.document, "latex": latex.document}[how]
    return writer(shown, title, findings or ())
