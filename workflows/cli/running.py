"""``puregrid plan``, ``run`` and ``status``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defense.bounds import MOST_WORKERS
from defense.errors import PuregridError
from defense.files import writable
from workflows.cli.base import (
    Address,
    AsJson,
    GpusPerWorker,
    NoPlugins,
    Overrides,
    StoreUri,
    SweepFile,
    Workers,
    errors,
    open_sweep,
    report_command,
    say,
    tell,
)
from workflows.cli.output import OutputLost, colours, is_terminal, width
from workflows.cli.tracking import Mlflow, open_tracker, pages

if TYPE_CHECKING:
    from workflows.analysis import Analysis
    from workflows.engine.loop import RunOutcome

__all__ = ["plan", "run", "status"]


class Verify(StrEnum):
    """What ``run`` reads of what is committed."""

    changed = "changed"
    full = "full"


Preflight = Annotated[
    bool,
    typer.Option(
        "--preflight/--no-preflight",
        help="Ask every distinct classifier, defence and attack once, on one image, before anything is computed.",
    ),
]

Verbose = Annotated[bool, typer.Option("--verbose", help="Show every stage, and not those of one kind together.")]


def plan(
    sweep: SweepFile,
    store: StoreUri = "results",
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Run a few units of each kind first, to predict the others from them.")
    ] = False,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = 0.0,
    address: Address = None,
    preflight: Preflight = True,
    verbose: Verbose = False,
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
    json_: AsJson = False,
) -> None:
    """Show cells, units and cost of a sweep without running it; with --calibrate, run a few units to predict it."""
    with errors(plugins=not no_plugins):
        from workflows.monitoring.progress import phase

        with phase("reading the sweep, and its weights and data"):
            loaded, opened = open_sweep(sweep, set_, store)
            from workflows.planning.machine import per_gpu
            from workflows.planning.plan import make_plan
            from workflows.planning.stopping import needed
            from workflows.planning.summary import summarise

            per_gpu(gpus_per_worker)  # refuses what is no share of a GPU
            planned = make_plan(loaded)
        if preflight and not calibrate:  # which does it where units are computed
            from workflows.preflight import preflight as ask_once

            committed = planned.committed(opened)
            needed(loaded, planned, committed, opened)
            ask_once(loaded, committed, opened, say)
        if calibrate:
            from workflows.engine.calibrate import calibrate as measure
            from workflows.engine.execution import Options

            options = Options(workers, gpus_per_worker, address, preflight=preflight)
            workers = measure(loaded, planned, opened, options, say)[0].workers
        # A measured prediction believes units of its own kind of device only; a guess takes what there is.
        gpu = gpus_per_worker > 0 if calibrate or gpus_per_worker else None
        summary = summarise(
            loaded, planned, opened, workers=workers, gpus_per_worker=gpus_per_worker, gpu=gpu, guess=True
        )
        if json_:
            tell(json.dumps(summary.to_json(), indent=1))
            return
        from workflows.formats.plans import plan_lines

        for line in plan_lines(summary, verbose=verbose):
            tell(line)
        for notice in summary.notices:
            tell(f"note: {notice}")


def run(
    sweep: SweepFile,
    store: StoreUri = "results",
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = 0.0,
    address: Address = None,
    unit_timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="A unit that takes longer counts as stuck.")
    ] = 3600.0,
    max_attempts: Annotated[
        int, typer.Option(min=1, max=MOST_WORKERS, metavar="N", help="Attempts before a unit is quarantined.")
    ] = 3,
    mlflow: Mlflow = None,
    strict_tracking: Annotated[
        bool,
        typer.Option("--strict-tracking", help="End with status 1 if MLflow fails, before any compute if it can."),
    ] = False,
    log: Annotated[
        str | None, typer.Option(metavar="FILE", help="Append events to this file, one JSON object per line.")
    ] = None,
    preflight: Preflight = True,
    verify: Annotated[
        Verify,
        typer.Option(help="Committed files to read first: those that changed since they were last read, or all."),
    ] = Verify.changed,
    slow: Annotated[
        bool, typer.Option("--slow", help="Compute even in a precision that this machine's processor emulates.")
    ] = False,
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
    json_: AsJson = False,
) -> None:
    """Compute the missing units of a sweep and print its leaderboard; run again to continue."""
    with errors(plugins=not no_plugins):
        from workflows.monitoring.progress import phase

        with phase("reading the sweep, and its weights and data"):
            loaded, opened = open_sweep(sweep, set_, store, writes=True)
            from workflows.planning.machine import per_gpu

            per_gpu(gpus_per_worker)  # refuses what is no share of a GPU
        if log is not None:
            writable(log, "the log", where="--log", read=(sweep,))
        wanted = "--strict-tracking" if strict_tracking else ""
        tracker = open_tracker(mlflow, loaded, opened.uri, strict=strict_tracking, wanted=wanted)
        if tracker is not None:
            tracker.ask()
        from workflows.analysis import Analysis
        from workflows.engine.run import Options, run_sweep
        from workflows.formats import render
        from workflows.formats.findings import auditor_line
        from workflows.monitoring.versions import driver_versions
        from workflows.regression.baselines import to_text
        from workflows.regression.snapshots import of_results
        from workflows.results.reader import Results
        from workflows.tracking.track import track

        options = Options(
            workers,
            gpus_per_worker,
            address,
            max_attempts,
            unit_timeout,
            log=None if log is None else Path(log),
            preflight=preflight,
            verify=verify.value,
            slow=slow,
        )
        if is_terminal(sys.stderr) and not json_:
            options = replace(options, preview=lambda: _preview(Analysis(Results(opened, loaded)), width()))
        outcome, results, record = run_sweep(loaded, opened, options, say)
        analysis = Analysis(results)
        lost = None
        try:
            if json_:
                tell(json.dumps({**json.loads(render(analysis, "json")), "run": outcome.to_json()}, indent=1))
            else:
                _tell_result(analysis, sweep)
        except OutputLost as error:  # the rows are there and go to MLflow all the same
            lost = error
        say(auditor_line(analysis.findings))
        if outcome.failures or outcome.blocked:
            say(_failed(outcome))
        if outcome.interrupted:
            say("stopped; everything that ran is committed. Run the same command again to continue.")
        # After the messages about units: a broken MLflow must not hide them.
        if tracker is not None:
            tracker.write(
                partial(
                    track,
                    analysis=analysis,
                    versions=driver_versions(),
                    outcomes=to_text(of_results(results)),
                    complete=not (outcome.failures or outcome.blocked or outcome.interrupted),
                    run=None if record is None else record.to_json(),
                    pages=pages(analysis, report_command(sweep, store, set_)),
                )
            )
        if lost is not None:
            raise lost
        if outcome.failures or outcome.blocked:
            raise typer.Exit(1)
        if outcome.interrupted:
            raise typer.Exit(130)


def _preview(analysis: Analysis, columns: int | None) -> str:
    """The table of robustness of what is committed so far; empty if no cell has images."""
    from workflows.formats import render

    if not analysis.robustness["images"].any():
        return ""
    table = render(analysis, "text", only="robustness", findings=False, width=columns)
    return f"Committed so far; accuracy of these images:\n\n{table}"


def _tell_result(analysis: Analysis, sweep: str) -> None:
    """The leaderboard, and where the other tables are; all tables of a sweep that has none, such as of probes."""
    from workflows.formats import render

    names = [table.name for table in analysis.tables]
    only = "leaderboard" if "leaderboard" in names else None
    styled = colours()
    # Findings have a line of their own below: a table that one scrolls past is no place for them.
    tell(render(analysis, "text", only=only, findings=False, width=width(), colour=styled), styled=styled)
    if only is not None:
        others = ", ".join(name for name in names if name != only)
        say(f"other tables: {others}; `puregrid tables {sweep}` shows them")


def _failed(outcome: RunOutcome) -> str:
    """How many units failed, and what to do: an input that is wrong stays wrong however often it is run."""
    final = sum(failure.final for failure in outcome.failures)
    others = len(outcome.failures) - final
    said = f"{len(outcome.failures)} units failed and {outcome.blocked} more need them; `puregrid status` shows why."
    if final:
        which = "" if not others else f" for {final} of them"
        said += f" The input is to blame{which} and must be corrected: computed again, they would fail again."
    if others:
        said += " Run the same command again to retry " + ("the others." if final else "them.")
    return said


def status(
    sweep: SweepFile,
    store: StoreUri = "results",
    workers: Annotated[
        bool, typer.Option("--workers", help="Show how each worker of the last run spent its time.")
    ] = False,
    verbose: Verbose = False,
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
    json_: AsJson = False,
) -> None:
    """Show which units of a sweep are committed, failed (and why) or missing, and the progress of a live run."""
    with errors(plugins=not no_plugins):
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.engine.failures import failures
        from workflows.formats.plans import estimate, failure_lines, status_lines
        from workflows.monitoring.ledger import utilisation_table
        from workflows.monitoring.run_record import look_for_drivers, read_runs, run_line
        from workflows.planning.plan import make_plan
        from workflows.planning.summary import summarise

        summary = summarise(loaded, make_plan(loaded), opened)
        failed = failures(loaded, opened) if summary.missing else []
        runs = look_for_drivers(opened, loaded.id, read_runs(opened, loaded.id))
        if json_:
            content = {
                **summary.to_json(),
                "failures": [failure.to_json() for failure in failed],
                "runs": [record.to_json() for record in runs],
            }
            tell(json.dumps(content, indent=1))
            return
        for line in (*status_lines(summary, verbose=verbose), *failure_lines(failed, verbose=verbose)):
            tell(line)
        tell(f"estimated: {estimate(summary)}")
        for notice in summary.notices:
            tell(f"note: {notice}")
        for line in filter(None, map(run_line, runs if summary.missing else [])):
            tell(line)
        if workers:
            if not runs:
                raise PuregridError(f"no run of this sweep has left a record in {opened.uri}")
            for line in utilisation_table(runs[-1].accounts):
                tell(line)
