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
    say,
    tell,
)
from workflows.cli.output import OutputLost, width
from workflows.cli.tracking import Mlflow, open_tracker

if TYPE_CHECKING:
    from workflows.analysis import Analysis
    from workflows.engine.loop import RunOutcome
    from workflows.planning.forecast import Forecast
    from workflows.planning.summary import PlanSummary, StageSummary

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
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
    json_: AsJson = False,
) -> None:
    """Show cells, units and cost of a sweep without running it; with --calibrate, run a few units to predict it."""
    with errors(plugins=not no_plugins):
        from workflows.monitoring.progress import phase

        with phase("reading the sweep, and its weights and data"):
            loaded, opened = open_sweep(sweep, set_, store)
            from workflows.planning.plan import make_plan
            from workflows.planning.stopping import needed
            from workflows.planning.summary import summarise

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
        summary = summarise(loaded, planned, opened, workers=workers, gpus_per_worker=gpus_per_worker, gpu=gpu)
        if json_:
            tell(json.dumps(summary.to_json(), indent=1))
            return
        tell(
            f"{loaded.name} ({loaded.id}): {summary.cells} cells need {summary.units} units, "
            f"{summary.distinct} of them distinct; {summary.committed} committed, {_spared(summary)}"
            f"{summary.missing} to compute"
        )
        width = max(len(stage.stage) for stage in summary.stages)
        for stage in summary.stages:
            tell(
                f"  {stage.stage:<{width}}  {stage.id}  {stage.images:>6} images  "
                f"{stage.committed:>5} of {stage.units} units  {_seconds(stage)}{stage.what}"
            )
        tell(f"estimated: {_duration(summary)}; network evaluations to do: {summary.evaluations:,}")
        for line in _forecast_lines(summary.forecast):
            tell(line)
        for notice in summary.notices:
            tell(f"note: {notice}")


def _seconds(stage: StageSummary) -> str:
    """``6 x 1.25 s = 7.5 ± 0.3 s  ``; nothing where nothing is missing or its cost is unknown."""
    if not stage.missing or stage.seconds is None:
        return ""
    half = "" if stage.seconds_half_interval is None else f" ± {stage.seconds_half_interval:.2g}"
    return f"{stage.missing} x {stage.seconds / stage.missing:.3g} s = {stage.seconds:.3g}{half} s  "


def _spared(summary: PlanSummary) -> str:
    """``12 not needed, ``; nothing where all are."""
    return f"{summary.spared} not needed, " if summary.spared else ""


def _forecast_lines(forecast: Forecast | None) -> list[str]:
    """Wall time, what it is made of and based on."""
    from datetime import UTC, datetime, timedelta

    from workflows.monitoring.run_record import duration

    if forecast is None or not forecast.units:
        return []
    within = ""
    if forecast.low is not None and forecast.high is not None:
        within = f" ({duration(forecast.low)} to {duration(forecast.high)} by the spread between units)"
    gpus = f", {forecast.gpu_hours:.2f} GPU-hours" if forecast.gpus_per_worker else ""
    end = datetime.now(UTC) + timedelta(seconds=forecast.wall_seconds)
    started = (
        "without the start of Ray and workers, which no run here has measured"
        if forecast.startup_seconds is None
        else f"{forecast.startup_seconds:.1f} s of them until the workers are ready"
    )
    lines = [
        f"predicted: {duration(forecast.wall_seconds)}{within} on {forecast.workers} workers{gpus}; "
        f"started now, it ends at {end:%Y-%m-%d %H:%M} UTC",
        f"  {started}; each unit {forecast.overhead_seconds:.2g} s beside its compute; models are loaded once a "
        "worker",
        f"  based on {forecast.measured} measured units:",
    ]
    for kind, cost in forecast.costs:
        spread = "" if cost.spread is None else f", spread {cost.spread / cost.rate:.0%}"
        first = ", each the first of its process, so warm-up is included" if cost.first else ""
        loading = f", loading {cost.loading:.2g} s" if cost.loading else ""
        lines.append(f"    {cost.units} x {kind.name}{spread}{loading}{first}")
    return lines


def _duration(summary: PlanSummary) -> str:
    if not summary.missing:
        return "nothing to compute"
    seconds = summary.estimated_seconds
    if seconds is None:
        return "unknown until units of every kind are committed in this store"
    return f"{seconds:.0f} s of compute" if seconds < 600 else f"{seconds / 3600:.1f} h of compute"


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
    """Compute the missing units of a sweep and print its tables; run again to continue."""
    with errors(plugins=not no_plugins):
        from workflows.monitoring.progress import phase

        with phase("reading the sweep, and its weights and data"):
            loaded, opened = open_sweep(sweep, set_, store, writes=True)
        if log is not None:
            writable(log, "the log", where="--log")
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
        if sys.stderr.isatty() and not json_:
            options = replace(options, preview=lambda: _preview(Analysis(Results(opened, loaded)), width()))
        outcome, results, record = run_sweep(loaded, opened, options, say)
        analysis = Analysis(results)
        lost = None
        try:
            if json_:
                tell(json.dumps({**json.loads(render(analysis, "json")), "run": outcome.to_json()}, indent=1))
            else:
                # Findings have a line of their own below: a table that one scrolls past is no place for them.
                tell(render(analysis, "text", findings=False, width=width()))
        except OutputLost as error:  # the rows are there and go to MLflow all the same
            lost = error
        say(auditor_line(analysis.findings))
        if outcome.failures or outcome.blocked:
            say(_failed(outcome))
        if outcome.interrupted:
            say("stopped; everything that ran is committed. Run the same command again to continue.")
        to_mlflow = partial(
            track,
            analysis=analysis,
            versions=driver_versions(),
            outcomes=to_text(of_results(results)),
            complete=not (outcome.failures or outcome.blocked or outcome.interrupted),
            run=None if record is None else record.to_json(),
        )
        # After the messages about units: a broken MLflow must not hide them.
        if tracker is not None:
            tracker.write(to_mlflow)
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
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
    json_: AsJson = False,
) -> None:
    """Show which units of a sweep are committed, failed (and why) or missing, and the progress of a live run."""
    with errors(plugins=not no_plugins):
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.engine.failures import failures
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
        tell(
            f"{loaded.name} ({loaded.id}): {summary.committed} of {summary.distinct} units committed"
            f"{', ' * bool(summary.spared)}{_spared(summary).removesuffix(', ')}"
        )
        width = max(len(stage.stage) for stage in summary.stages)
        for stage in summary.stages:
            if stage.missing:
                done = f"{stage.committed} of {stage.units}"
                tell(f"  {stage.stage:<{width}}  {stage.id}  {done}  {stage.what}")
        for failure in failed:
            attempts = "1 attempt" if failure.attempts == 1 else f"{failure.attempts} attempts"
            why = ", since the input is to blame" if failure.final else ""
            tell(f"failed: {failure.unit} after {attempts}{why}")
            tell(failure.traceback or failure.error)
        tell(f"estimated: {_duration(summary)}")
        for notice in summary.notices:
            tell(f"note: {notice}")
        for line in filter(None, map(run_line, runs if summary.missing else [])):
            tell(line)
        if workers:
            if not runs:
                raise PuregridError(f"no run of this sweep has left a record in {opened.uri}")
            for line in utilisation_table(runs[-1].accounts):
                tell(line)
