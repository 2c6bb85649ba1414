"""``puregrid tables``, ``report``, ``show``, ``rows`` and ``compact``: what the rows say."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from defense.errors import InvalidInput, nearest
from defense.files import writable, writable_folder, write_text
from workflows.cli.base import (
    AsJson,
    NoPlugins,
    Overrides,
    StoreUri,
    SweepFile,
    errors,
    open_sweep,
    report_command,
    say,
    tell,
)
from workflows.cli.output import colours

if TYPE_CHECKING:
    from workflows.analysis import Analysis
    from workflows.report.files import Format

__all__ = ["compact", "report", "rows", "show", "tables"]


def tables(
    sweep: SweepFile,
    store: StoreUri = "results",
    format_: Annotated[str, typer.Option("--format", metavar="text|md|csv|latex|json")] = "text",
    table: Annotated[
        str | None, typer.Option(metavar="NAME|module:attribute", help="Only this table, built in or your own [all].")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Write one CSV file per table, and a README about their columns."),
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit/--no-audit", help="Audit rows and stored images; this reads all of them.")
    ] = True,
    mce: Annotated[
        str | None, typer.Option(metavar="CLASSIFIER", help="Mean corruption errors relative to this classifier's.")
    ] = None,
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Print the tables of a sweep with the auditor's findings, recomputed from its committed rows."""
    with errors(plugins=not no_plugins):
        from workflows.cli.output import width
        from workflows.formats import FORMATS, render

        if format_ not in FORMATS:
            raise InvalidInput(f"unknown format {format_!r}; {nearest(format_, FORMATS)}", where="--format")
        if out is not None and format_ != "csv":
            raise InvalidInput("only --format csv writes a folder, with a file per table.", where="--out")
        if out is not None:
            if os.path.isfile(out):
                raise InvalidInput(f"{out} is a file: with --format csv give a folder.", where="--out")
            writable_folder(out, "the folder of tables", where="--out")
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.analysis import Analysis
        from workflows.formats.machine import write_csv
        from workflows.results.reader import Results

        analysis = Analysis(Results(opened, loaded), mce=mce, audit=audit)
        if out is not None:
            for path in write_csv(analysis, Path(out), table):
                tell(path)
            return
        colour = format_ == "text" and colours()
        tell(render(analysis, format_, only=table, width=width(), colour=colour), end="", styled=colour)
        if format_ == "csv":
            _say_beside(analysis, table)


def _say_beside(analysis: Analysis, name: str | None) -> None:
    """What CSV on stdout has no place for: the notes of the table, and which others there are."""
    names = [table.name for table in analysis.tables]
    chosen = analysis.table(name) if name else analysis.table("robustness") if "robustness" in names else None
    if chosen is None:
        say("this sweep has no robustness table")
    else:
        for note in filter(None, (chosen.warning, chosen.note, *chosen.remarks)):
            say(f"note: {note}")
    others = [other for other in names if chosen is None or other != chosen.name]
    if others:
        say(f"other tables: {', '.join(others)}; --table NAME prints one, --out FOLDER writes all of them")


def report(
    sweep: SweepFile,
    store: StoreUri = "results",
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The page [report.html], PATH/ for a page with a file per image, or the folder [report; appendix].",
        ),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="html|md|latex|paper",
            help="A page; a folder of tables and SVG figures; or an appendix with figures and adversarial images.",
        ),
    ] = "html",
    gallery: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Number of cells whose images the page shows [8, if they fit]."),
    ] = None,
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Write a self-contained HTML page: figures, tables, images, provenance; recomputed from committed rows."""
    with errors(plugins=not no_plugins):
        from workflows.report import FORMATS, check_out, report_to

        formats = (*FORMATS, "paper")
        if format_ not in formats:
            raise InvalidInput(f"unknown format {format_!r}; {nearest(format_, formats)}", where="--format")
        if format_ == "paper":
            from workflows.paper.appendix import check_folder, write_appendix

            folder = check_folder(out)
        else:
            check_out(out, cast("Format", format_))
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.analysis import Analysis
        from workflows.results.reader import Results

        how = f" --format {format_}" * (format_ != "html")
        how += "" if out is None else f" --out {shlex.quote(out)}"
        how += "" if gallery is None else f" --gallery {gallery}"
        command = report_command(sweep, store, set_) + how
        analysis = Analysis(Results(opened, loaded))
        if format_ == "paper":
            tell(write_appendix(analysis, folder, command=command))
            return
        tell(report_to(analysis, out, cast("Format", format_), command=command, images=gallery))


def show(
    sweep: SweepFile,
    image: Annotated[int, typer.Option("--image", min=0, metavar="N", help="Id of the image.")],
    cell: Annotated[
        str | None, typer.Option(metavar="CELL", help="Beginning of the cell's id, or words of its name.")
    ] = None,
    store: StoreUri = "results",
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Show the states on the way of each draw, computed from the keys.")
    ] = False,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a page instead.")] = None,
    images: Annotated[
        str,
        typer.Option(
            "--images",
            metavar="auto|sixel|blocks|none",
            help="Draw images by pixels or by coloured blocks, or describe them; auto asks the terminal.",
        ),
    ] = "auto",
    color: Annotated[
        str, typer.Option("--color", metavar="auto|always|never", help="Whether --images auto draws images.")
    ] = "auto",
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
    json_: AsJson = False,
) -> None:
    """Show one image of a cell: original, adversarial, and what each draw made of it, computed from its key."""
    with errors(plugins=not no_plugins):
        from workflows.cli.output import is_terminal, paint, width
        from workflows.images.graphics import CHOICES, cell_size, wanted_images

        for option, value, known in (("--color", color, ("auto", "always", "never")), ("--images", images, CHOICES)):
            if value not in known:
                raise InvalidInput(f"unknown {option} {value!r}; {nearest(value, known)}", where=option)
        if images == "sixel" and not is_terminal(sys.stdout):
            raise InvalidInput("stdout is no terminal, and nothing else shows sixel images.", where="--images")
        if html is not None:
            writable(html, "the page", where="--html", read=(sweep,))
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.images import find_cell, single
        from workflows.report.single import single_json, single_page, single_text
        from workflows.results.reader import Results

        chosen = find_cell(loaded, cell)
        found = single(Results(opened, loaded), chosen, image, trajectory=trajectory)
        if json_:
            tell(json.dumps(single_json(found), indent=1))
        elif html is not None:
            way = f"puregrid show {shlex.quote(sweep)} --cell {chosen.id[:8]} --image {image}"
            write_text(Path(html), single_page(found, way + " --trajectory" * trajectory), "the page")
            tell(html)
        else:
            drawn = wanted_images(images, color, colours=colours())
            deep = os.environ.get("COLORTERM", "") in ("truecolor", "24bit") or color == "always"
            cell_pixels = cell_size() if drawn == "sixel" else None
            paint(
                single_text(found, width() or 110, colour=drawn != "none", true_colour=deep, sixel=cell_pixels),
            )


def rows(
    sweep: SweepFile,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="CONDITION", help="defence=none, 'right<0.5', image_id=17; all must hold."),
    ] = None,
    stage: Annotated[
        str, typer.Option(metavar="judged|attack|quality", help="Judgements, what the attack says, image quality.")
    ] = "judged",
    format_: Annotated[str, typer.Option("--format", metavar="csv|json|parquet|markdown")] = "csv",
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write to a file; parquet needs one.")] = None,
    store: StoreUri = "results",
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Print the rows of images across cells, a line an image and cell, with what the cell is."""
    with errors(plugins=not no_plugins):
        formats, stages = ("csv", "json", "parquet", "markdown"), ("judged", "attack", "quality")
        for value, known, option in ((format_, formats, "--format"), (stage, stages, "--stage")):
            if value not in known:
                raise InvalidInput(f"unknown {option} {value!r}; {nearest(value, known)}", where=option)
        if format_ == "parquet" and out is None:
            raise InvalidInput("parquet is no text: give a file with --out.", where="--out")
        if out is not None:
            writable(out, "the rows", where="--out", read=(sweep,))
        from workflows.images.rows import Condition, flat_rows, image_rows, markdown_rows

        conditions = [Condition.parse(text) for text in where or ()]
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.results.reader import Results

        frame = image_rows(Results(opened, loaded), conditions, stage)
        if format_ == "parquet":
            frame.to_parquet(str(out), index=False)
        else:
            from workflows.formats.machine import frame_csv, frame_json

            writers = {"csv": lambda rows: frame_csv(flat_rows(rows)), "json": frame_json, "markdown": markdown_rows}
            text = writers[format_](frame)
            if out is None:
                tell(text, end="")
                return
            write_text(Path(str(out)), text, "the rows")
        tell(out)
        say(f"{len(frame)} rows")


def compact(
    sweep: SweepFile,
    store: StoreUri = "results",
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
    json_: AsJson = False,
) -> None:
    """Copy a sweep's committed rows into one Parquet file per stage, for pandas, DuckDB and other tools."""
    with errors(plugins=not no_plugins):
        loaded, opened = open_sweep(sweep, set_, store, writes=True)
        from workflows.results.compact import compact as compacted

        found = compacted(opened, loaded)
        if json_:
            tell(json.dumps(asdict(found), indent=1))
        else:
            tell(found.folder)
            say(f"{found.rows} rows of {found.units} units in {found.files} files, {found.written} of them new")
        if found.missing:
            say(f"{found.missing} units of the sweep are not committed; run it, then compact again")
