"""``puregrid plan``, ``run`` and ``status``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defense.errors import PuregridError
from workflows.cli.base import (
    Address,
    AsJson,
    GpusPerWorker,
    Overrides,
    StoreUri,
    SweepFile,
    Workers,
    errors,
    open_sweep,
    say,
)

if TYPE_CHECKING:
    from workflows.grid.load import Sweep
    from workflows.planning.plan import Plan
    from workflows.store import Store

__all__ = ["plan", "run", "status"]


def plan(
    sweep: SweepFile,
    store: StoreUri = "results",
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Run a few units of each kind first, to predict the others from them.")
    ] = False,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = 0.0,
    address: Address = None,
    set_: Overrides = None,
    json_: AsJson = False,
) -> None:
    """Show cells, units and cost of a sweep; computes nothing, or with --calibrate what it takes to predict."""
    with errors():
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.planning.plan import make_plan

        planned = make_plan(loaded)
        if calibrate:
            from workflows.engine.calibrate import calibrate as measure
            from workflows.engine.run import Options

            options = Options(workers, gpus_per_worker, address)
            workers = measure(loaded, planned, opened, options, say)[0].workers
        # A measured prediction believes units of its own kind of device only; a guess takes what there is.
        gpu = gpus_per_worker > 0 if calibrate or gpus_per_worker else None
        content = _plan_content(loaded, planned, opened, workers, gpus_per_worker, gpu)
        if json_:
            typer.echo(json.dumps(content, indent=1))
            return
        typer.echo(
            f"{loaded.name} ({loaded.id}): {content['cells']} cells ask for {content['units']} units, "
            f"{content['distinct']} of them distinct; {content['committed']} committed, "
            f"{content['missing']} to compute"
        )
        width = max(len(stage["stage"]) for stage in content["stages"])
        for stage in content["stages"]:
            typer.echo(
                f"  {stage['stage']:<{width}}  {stage['id']}  {stage['images']:>6} images  "
                f"{stage['committed']:>5} of {stage['units']} units  {_seconds(stage)}{stage['what']}"
            )
        typer.echo(f"estimated: {_duration(content)}; network evaluations to do: {content['evaluations']:,}")
        for line in _forecast_lines(content["forecast"]):
            typer.echo(line)


def _seconds(stage: dict[str, Any]) -> str:
    """``6 x 1.25 s = 7.5 ± 0.3 s  ``; nothing where nothing is missing or its cost is unknown."""
    left = stage["units"] - stage["committed"]
    if not left or stage["seconds"] is None:
        return ""
    half = "" if stage["seconds_half_interval"] is None else f" ± {stage['seconds_half_interval']:.2g}"
    return f"{left} x {stage['seconds'] / left:.3g} s = {stage['seconds']:.3g}{half} s  "


def _forecast_lines(forecast: dict[str, Any] | None) -> list[str]:
    """Wall time, what it is made of and based on."""
    from datetime import UTC, datetime, timedelta

    from workflows.monitoring.run_record import duration

    if forecast is None or not forecast["units"]:
        return []
    wall, low, high = forecast["wall_seconds"], forecast["low"], forecast["high"]
    within = "" if low is None else f" ({duration(low)} to {duration(high)} by the spread between units)"
    gpus = f", {forecast['gpu_hours']:.2f} GPU-hours" if forecast["gpus_per_worker"] else ""
    end = datetime.now(UTC) + timedelta(seconds=wall)
    startup = forecast["startup_seconds"]
    started = (
        "the start of Ray and workers is not in it, no run here has measured it"
        if startup is None
        else f"{startup:.1f} s of them until the workers are ready"
    )
    lines = [
        f"predicted: {duration(wall)}{within} on {forecast['workers']} workers{gpus}; "
        f"started now, it ends at {end:%Y-%m-%d %H:%M} UTC",
        f"  {started}; each unit {forecast['overhead_seconds']:.2g} s beside its compute; models are loaded once a "
        "worker",
        f"  based on {forecast['measured']} measured units:",
    ]
    for cost in forecast["kinds"]:
        spread = "" if cost["spread"] is None else f", spread {cost['spread'] / cost['rate']:.0%}"
        first = ", first of their process only, so with warming up" if cost["first"] else ""
        loading = f", loading {cost['loading']:.2g} s" if cost["loading"] else ""
        lines.append(f"    {cost['units']} x {cost['kind']}{spread}{loading}{first}")
    return lines


def _plan_content(
    sweep: Sweep,
    planned: Plan,
    store: Store,
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    gpu: bool | None = None,
) -> dict[str, Any]:
    from workflows.planning.forecast import default_workers, predict

    committed = planned.committed(store)
    threads = max(stage.spec.settings().threads for stage in planned.stages)
    found, costs = predict(
        planned,
        committed,
        store,
        sweep.id,
        workers=workers or default_workers(threads, gpus_per_worker),
        gpus_per_worker=gpus_per_worker,
        gpu=gpu,
    )
    stages = [
        {
            "id": stage.id,
            "stage": stage.spec.stage,
            "what": stage.spec.label(),
            "images": stage.images,
            "units": len(stage.chunks),
            "committed": len(done),
            "inputs": [planned.stages[i].id for i in stage.inputs.values()],
            "seconds": None if cost is None else round(cost.seconds, 4),
            "seconds_half_interval": None if cost is None or cost.half is None else round(cost.half, 4),
        }
        for stage, done, cost in zip(planned.stages, committed, costs, strict=True)
    ]
    evaluations = sum(map(planned.work, planned.missing(committed)))
    done = sum(map(len, committed))
    return {
        "sweep": sweep.name,
        "sweep_id": sweep.id,
        "cells": len(sweep.cells),
        "units": planned.requested,
        "distinct": planned.units,
        "committed": done,
        "missing": planned.units - done,
        "evaluations": int(evaluations),
        "estimated_seconds": None if found is None else round(found.compute_seconds, 1),
        "forecast": None if found is None else found.as_dict(),
        "stages": stages,
    }


def _duration(content: dict[str, Any]) -> str:
    if not content["missing"]:
        return "nothing to compute"
    seconds = content["estimated_seconds"]
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
    max_attempts: Annotated[int, typer.Option(min=1, metavar="N", help="Attempts before a unit is quarantined.")] = 3,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI|off", help="MLflow tracking URI [SQLite in the store's folder].")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append what happens to this file, one JSON object a line.")
    ] = None,
    set_: Overrides = None,
    json_: AsJson = False,
) -> None:
    """Compute what is missing of a sweep and print its tables; run again to continue."""
    with errors():
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.analysis import Analysis
        from workflows.engine.run import Options, run_sweep
        from workflows.formats import render
        from workflows.formats.findings import auditor_line
        from workflows.monitoring.versions import driver_versions
        from workflows.regression.baselines import to_text
        from workflows.regression.snapshots import of_results
        from workflows.tracking.track import track

        options = Options(workers, gpus_per_worker, address, max_attempts, unit_timeout, log=log)
        outcome, results, record = run_sweep(loaded, opened, options, say)
        analysis = Analysis(results)
        if json_:
            typer.echo(json.dumps({**json.loads(render(analysis, "json")), "run": _outcome(outcome)}, indent=1))
        else:
            # Findings have a line of their own below: a table that one scrolls past is no place for them.
            typer.echo(render(analysis, "text", findings=False))
        say(auditor_line(analysis.findings))
        if outcome.failures or outcome.blocked:
            say(
                f"{len(outcome.failures)} units failed and {outcome.blocked} more need them; `puregrid status` shows "
                "why. Run the same command again to retry them."
            )
        if outcome.interrupted:
            say("stopped; everything that ran is committed. Run the same command again to continue.")
        to_mlflow = partial(
            track,
            analysis=analysis,
            versions=driver_versions(),
            outcomes=to_text(of_results(results)),
            complete=not (outcome.failures or outcome.blocked or outcome.interrupted),
            run=record,
        )
        # After the messages about units: a broken MLflow must not hide them.
        _log_to_mlflow(mlflow, opened.uri, to_mlflow)
        if outcome.failures or outcome.blocked:
            raise typer.Exit(1)
        if outcome.interrupted:
            raise typer.Exit(130)


def _outcome(outcome: Any) -> dict[str, Any]:
    return {
        "computed_units": outcome.computed,
        "images": outcome.images,
        "compute_seconds": round(outcome.seconds, 2),
        "retries": outcome.retries,
        "workers_replaced": outcome.replaced,
        "nodes_lost": outcome.nodes_lost,
        "copies": outcome.copies,
        "copies_first": outcome.copies_first,
        "committed_elsewhere": outcome.elsewhere,
        "failed_units": len(outcome.failures),
        "blocked_units": outcome.blocked,
        "interrupted": outcome.interrupted,
    }


def _log_to_mlflow(uri: str | None, store_uri: str, log: Callable[[str], str]) -> None:
    from workflows.tracking.track import default_uri

    chosen = uri or default_uri(store_uri)
    if chosen == "off":
        return
    if chosen is None:
        say("not logged to MLflow: a bucket holds no SQLite database; give --mlflow URI.")
        return
    try:
        log(chosen)
    except Exception as error:  # MLflow raises whatever its stores and servers raise
        raise PuregridError(
            f"the sweep could not be logged to MLflow at {chosen} ({type(error).__name__}: {error}). Rows "
            "are committed; run the same command again to log them, or give --mlflow off."
        ) from error
    say(f"logged to MLflow; look at it with: mlflow ui --backend-store-uri {shlex.quote(chosen)} --host 127.0.0.1")


def status(
    sweep: SweepFile,
    store: StoreUri = "results",
    workers: Annotated[
        bool, typer.Option("--workers", help="Show what each worker of the last run did with its time.")
    ] = False,
    set_: Overrides = None,
    json_: AsJson = False,
) -> None:
    """Show what of a sweep is committed, failed (and why) and missing, and how a run that is going on is doing."""
    with errors():
        loaded, opened = open_sweep(sweep, set_, store)
        from workflows.engine.failures import failures
        from workflows.monitoring.ledger import utilisation_table
        from workflows.monitoring.run_record import read_runs, run_line
        from workflows.planning.plan import make_plan

        content = _plan_content(loaded, make_plan(loaded), opened)
        content["failures"] = failures(loaded, opened) if content["missing"] else []
        content["runs"] = read_runs(opened, loaded.id)
        if json_:
            typer.echo(json.dumps(content, indent=1))
            return
        typer.echo(f"{loaded.name} ({loaded.id}): {content['committed']} of {content['distinct']} units committed")
        width = max(len(stage["stage"]) for stage in content["stages"])
        for stage in content["stages"]:
            if stage["committed"] < stage["units"]:
                done = f"{stage['committed']} of {stage['units']}"
                typer.echo(f"  {stage['stage']:<{width}}  {stage['id']}  {done}  {stage['what']}")
        for failure in content["failures"]:
            typer.echo(f"failed: {failure['unit']} after {failure['attempts']} attempts")
            typer.echo(failure["traceback"] or failure["error"])
        typer.echo(f"estimated: {_duration(content)}")
        for line in filter(None, map(run_line, content["runs"] if content["missing"] else [])):
            typer.echo(line)
        if workers:
            if not content["runs"]:
                raise PuregridError(f"no run of this sweep has left a record in {opened.uri}")
            for line in utilisation_table(content["runs"][-1]):
                typer.echo(line)
