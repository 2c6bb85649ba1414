"""``puregrid tables``, ``report`` and ``compact``: what the rows say."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from defense.errors import InvalidInput, nearest
from workflows.cli.base import AsJson, Overrides, StoreUri, SweepFile, errors, open_sweep, say

__all__ = ["compact", "report", "tables"]


def tables(
    sweep: SweepFile,
    store: StoreUri = "results",
    format_: Annotated[str, typer.Option("--format", metavar="text|md|csv|latex|json")] = "text",
    audit: Annotated[
        bool, typer.Option("--audit/--no-audit", help="Audit rows and stored images, which reads all of them.")
    ] = True,
    mce: Annotated[
        str | None, typer.Option(metavar="CLASSIFIER", help="Mean corruption errors relative to this one's.")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Print the tables of a sweep with the auditor's findings, recomputed from its committed rows."""
    with errors():
        from workflows.tables.render import FORMATS, render

        if format_ not in FORMATS:
            raise InvalidInput(f"unknown format {format_!r}; {nearest(format_, FORMATS)}", where="--format")
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.results.reader import Results
        from workflows.tables.ladders import ladder_table
        from workflows.tables.sections import sections

        results = Results(opened, loaded)
        robustness, cost, combined = results.robustness(), results.cost(), results.combined()
        ladders, further = ladder_table(results), sections(results, mce)
        found = None
        if audit:
            from workflows.audit import findings

            found = findings(results)
        text = render(
            robustness,
            cost,
            format_,
            title=loaded.name,
            findings=found,
            combined=combined,
            ladders=ladders,
            further=further,
        )
        typer.echo(text, nl=False)


def report(
    sweep: SweepFile,
    store: StoreUri = "results",
    out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The page [report.html], or the folder [report].")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", metavar="html|md|latex", help="A page, or a folder of tables and SVG figures.")
    ] = "html",
    gallery: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Cells to show images of on the page [8, if they fit].")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Write a self-contained HTML page: figures, tables, images, provenance; recomputed from committed rows."""
    with errors():
        from workflows.report import FORMATS, report_to

        if format_ not in FORMATS:
            raise InvalidInput(f"unknown format {format_!r}; {nearest(format_, FORMATS)}", where="--format")
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.results.reader import Results

        settings = "".join(f" --set {shlex.quote(setting)}" for setting in set_ or ())
        command = f"puregrid run {sweep}{settings} && puregrid report {sweep}{settings}"
        typer.echo(report_to(Results(opened, loaded), out, format_, command=command, images=gallery))


def compact(sweep: SweepFile, store: StoreUri = "results", set_: Overrides = None, json_: AsJson = False) -> None:
    """Copy a sweep's committed rows into one Parquet file a stage, for pandas, DuckDB and the like."""
    with errors():
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.results.compact import compact as compacted

        found = compacted(opened, loaded)
        if json_:
            typer.echo(json.dumps(asdict(found), indent=1))
        else:
            typer.echo(found.folder)
            say(f"{found.rows} rows of {found.units} units in {found.files} files, {found.written} of them new")
        if found.missing:
            say(f"{found.missing} units of the sweep are not committed; run it, then compact again")
