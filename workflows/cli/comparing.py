"""``puregrid compare``, ``check``, ``promote``, ``judge`` and ``leaderboard``: one result beside another."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defense.errors import InvalidInput
from defense.files import writable, writable_folder, write_text
from workflows.cli.base import (
    RUN_HELP,
    AsJson,
    NoPlugins,
    Overrides,
    StoreUri,
    SweepFile,
    complete_sweep,
    errors,
    open_sweep,
    say,
    tell,
)

if TYPE_CHECKING:
    from workflows.grid.load import Sweep

__all__ = ["check", "compare", "judge", "leaderboard", "promote"]


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)],
    second: Annotated[str | None, typer.Argument(metavar="[RUN]", help="The run to compare with.")] = None,
    with_: Annotated[
        str | None, typer.Option("--with", metavar="RUN", help="The run to compare with, as an option.")
    ] = None,
    store: StoreUri = "results",
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="MLflow tracking URI.")] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Write a page: differences, specs, images that changed sides; PATH/ also a page for each of these.",
        ),
    ] = None,
    no_plugins: NoPlugins = False,
    json_: AsJson = False,
) -> None:
    """Compare two runs cell by cell on the same images: paired differences, and what changed in the specs."""
    with errors(plugins=not no_plugins):
        other = second if with_ is None else with_
        if other is None or (second is not None and with_ is not None):
            raise InvalidInput("name two runs: `compare RUN RUN`, or `compare RUN --with RUN`.")
        whole = out is not None and out.endswith(("/", os.sep))
        if out is not None and whole:
            writable_folder(out, "the folder of the pages", where="--out")
        elif out is not None:
            writable(out, "the page", where="--out", read=(one.partition("@")[0] for one in (first, other)))
        from workflows.monitoring.mlflow_client import named_uri
        from workflows.regression.baselines import load_pair
        from workflows.regression.compare import compare_runs
        from workflows.regression.texts import comparison_text
        from workflows.tracking.track import default_uri

        runs = load_pair(first, other, store=store, tracking_uri=named_uri(mlflow, "--mlflow") or default_uri(store))
        if out is not None and whole:
            from workflows.regression.folder import comparison_folder

            tell(comparison_folder(*runs, (first, other), Path(out)))
            return
        if out is not None:
            from workflows.regression.page import comparison_page

            write_text(Path(out), comparison_page(*runs, (first, other)), "the page")
            tell(out)
            return
        comparisons = compare_runs(*runs)
        if json_:
            tell(json.dumps([comparison.as_dict() for comparison in comparisons], indent=1))
        else:
            tell(comparison_text(comparisons, first, other), end="")


def check(
    sweep: SweepFile,
    baseline: Annotated[
        str,
        typer.Option(
            metavar="STORE|FILE|mlflow:ALIAS", help="A store, a file that promote wrote, or a promoted run."
        ),
    ],
    store: StoreUri = "results",
    margin: Annotated[float, typer.Option(metavar="D", help="Tolerated drop in accuracy: 0.01 is one point.")] = 0.01,
    alpha: Annotated[float, typer.Option(metavar="A", help="Chance of a false alarm in the whole sweep.")] = 0.05,
    detect: Annotated[
        float, typer.Option(metavar="D", help="A cell holds only if 80 % of the runs would find this drop.")
    ] = 0.2,
    cost_margin: Annotated[
        float, typer.Option(metavar="S", help="Tolerated growth of network evaluations: 0.1 is 10 %.")
    ] = 0.0,
    seconds_margin: Annotated[
        float | None, typer.Option(metavar="S", help="Judge seconds too, with this tolerated growth.")
    ] = None,
    junit: Annotated[str | None, typer.Option(metavar="FILE", help="Write JUnit XML, a test case per cell.")] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI|off", help="MLflow tracking URI; the sweep's run is tagged there.")
    ] = None,
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
    json_: AsJson = False,
) -> None:
    """Compare with a baseline: exit 0 if accuracy and cost hold, 1 if one regressed, 2 if the verdict is unknown."""
    with errors(plugins=not no_plugins):
        from workflows.regression.check import Gate

        gate = Gate(margin, alpha, detect, cost_margin, seconds_margin)
        if junit is not None:
            writable(junit, "the JUnit file", where="--junit", read=(sweep, baseline))
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.monitoring.mlflow_client import named_uri
        from workflows.regression.baselines import load
        from workflows.regression.check import check as checked
        from workflows.regression.check import junit as junit_xml
        from workflows.regression.check import verdict_of
        from workflows.regression.snapshots import of_results
        from workflows.regression.texts import check_text
        from workflows.results.reader import Results
        from workflows.tracking.track import default_uri

        uri = named_uri(mlflow, "--mlflow") or default_uri(opened.uri)
        before = load(baseline, sweep=loaded.name, tracking_uri=uri, where="--baseline")
        if before.source == opened.uri:
            say(f"note: the baseline is this run's own store, {opened.uri}: a run compared with itself always holds.")
        verdicts = checked(before, of_results(Results(opened, loaded)), gate)
        verdict = verdict_of(verdicts)
        if junit is not None:
            write_text(Path(junit), junit_xml(verdicts, loaded.name), "the JUnit file")
        if json_:
            cells = [cell.as_dict() for cell in verdicts]
            tell(json.dumps({"verdict": verdict, "baseline": baseline, **asdict(gate), "cells": cells}, indent=1))
        else:
            tell(check_text(verdicts, gate, baseline, f"{sweep} in {opened.uri}"), end="")
        _tag_verdict(
            uri, opened.uri, loaded, verdict, baseline, [cell for cell in verdicts if cell.verdict != "holds"]
        )
        if verdict != "holds":
            raise typer.Exit(1 if verdict == "regressed" else 2)


def _tag_verdict(
    uri: str | None, store_uri: str, sweep: Sweep, verdict: str, baseline: str, cells: list[Any]
) -> None:
    """The verdict on the sweep's run in MLflow; a broken MLflow changes no verdict."""
    from workflows.monitoring.mlflow_client import cause
    from workflows.tracking.aliases import record_verdict

    if uri is None or uri == "off":
        return
    why = "; ".join(f"{cell.cell}: {cell.why}" for cell in cells)
    try:
        tags = {"verdict": verdict, "baseline": baseline, "why": why or "every cell holds"}
        record_verdict(uri, sweep, tags, store_uri=store_uri, say=say)
    except Exception as error:  # MLflow raises whatever its stores and servers raise
        say(f"the verdict could not be set in MLflow at {uri} ({cause(error)})")


def promote(
    sweep: SweepFile,
    store: StoreUri = "results",
    to: Annotated[str | None, typer.Option(metavar="FILE", help="Write a baseline to commit, as JSON.")] = None,
    alias: Annotated[
        str | None, typer.Option(metavar="ALIAS", help="Name of the baseline in MLflow [champion, without --to].")
    ] = None,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="MLflow tracking URI.")] = None,
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Make the results of a sweep the baseline of `puregrid check`: in MLflow, or in a file."""
    with errors(plugins=not no_plugins):
        if to is not None:
            writable(to, "the baseline", where="--to", read=(sweep,))
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.monitoring.mlflow_client import named_uri
        from workflows.regression.baselines import complete_text
        from workflows.results.reader import Results
        from workflows.tracking import aliases
        from workflows.tracking.track import default_uri

        if alias is not None:
            aliases.valid_alias(alias)
        text = complete_text(Results(opened, loaded))
        if to is not None:
            write_text(Path(to), text, "the baseline")
            tell(to)
        if alias is not None or to is None:
            name = alias or "champion"
            uri = named_uri(mlflow, "--mlflow") or default_uri(opened.uri)
            run_id = aliases.promote(uri, loaded, name, text, store_uri=opened.uri, say=say)
            tell(f"mlflow:{name} is run {run_id}")


def judge(
    archive: Annotated[
        str, typer.Argument(metavar="ARCHIVE", help="The folder `adversarial` that `report --format paper` wrote.")
    ],
    sweep: Annotated[
        str | None, typer.Option(metavar="SWEEP", help="Its sweep file here, where its weights lie elsewhere.")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="The sha256 of its manifest, as the paper states it.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Other draws than those of the archive.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="What computes.")] = "cpu",
    json_: AsJson = False,
) -> None:
    """Judge the adversarial images of an archive again: hashes, budgets, answers; status 1 where they differ."""
    with errors():
        from workflows.assets.bundled import find_sweep
        from workflows.cli.output import colours, width
        from workflows.formats import render_tables
        from workflows.paper.archive import judge as judge_again
        from workflows.paper.archive import open_archive

        if device not in ("cpu", "cuda"):
            raise InvalidInput(f"unknown device {device!r}; cpu or cuda.", where="--device")
        opened = open_archive(Path(archive), sha256)
        loaded = opened.sweep(None if sweep is None else find_sweep(sweep))
        table = judge_again(opened, loaded, device=device, seed=seed)
        if json_:
            tell(render_tables([table], "json", whole=False), end="")
        else:
            styled = colours()
            text = render_tables([table], "text", title=loaded.name, whole=False, width=width(), colour=styled)
            tell(text, end="", styled=styled)
        agreed = (table.frame["verdict"] == "agrees").sum()
        say(f"{agreed} of {len(table.frame)} cells agree; sha256 of the manifest: {opened.sha256}")
        if agreed < len(table.frame):
            raise typer.Exit(1)


def leaderboard(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="SWEEP (in --store), SWEEP@STORE, or a STORE with all sweeps on record [all of --store].",
            autocompletion=complete_sweep,
        ),
    ] = None,
    store: StoreUri = "results",
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Where the site is written.")] = "leaderboard",
    no_plugins: NoPlugins = False,
) -> None:
    """Write a site: one board of many sweeps, claims beside measured numbers, a page a defence and a page a claim."""
    with errors(plugins=not no_plugins):
        from workflows.leaderboard.site import check_folder, write_site
        from workflows.leaderboard.sources import sources_of

        check_folder(out)
        tell(write_site(sources_of(runs or (), store, say), out))
