"""The command line. Results go to stdout, progress and notes to stderr.

Exit status: 0 when every cell is complete, 1 when units failed, 2 for wrong input (before any compute), 130 after
Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defense.errors import InvalidInput, PuregridError, nearest

if TYPE_CHECKING:
    from workflows.plan import Plan
    from workflows.store import Store
    from workflows.sweep import Sweep

# Modules of the commands are imported inside them: `puregrid list` must not wait for Ray.

app = typer.Typer(
    name="puregrid",
    help="Evaluate diffusion-based adversarial purification on a grid, on one machine or a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="The sweep file.")]
StoreUri = Annotated[str, typer.Option("--store", metavar="URI", help="Folder or bucket for rows and commits.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a value of the sweep file: datasets.0.images.first=100."
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, metavar="N", help="Workers [one per processor or GPU].")]
GpusPerWorker = Annotated[
    float, typer.Option(min=0, metavar="F", help="GPUs per worker, fractions allowed; 0 runs on CPUs.")
]
Address = Annotated[str | None, typer.Option(metavar="auto|HOST", help="A running Ray cluster.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_RUN_HELP = (
    "SWEEP.yaml (in --store), SWEEP.yaml@STORE, a store, a file that promote wrote, mlflow:ALIAS or mlflow:RUN_ID."
)


def _say(message: str) -> None:
    typer.echo(message, err=True)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turn our own exceptions into a message and the exit status that the contract gives them."""
    try:
        yield
    except InvalidInput as error:
        _say(f"error: {error}")
        raise typer.Exit(2) from error
    except PuregridError as error:
        _say(f"error: {error}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        _say("stopped; what was committed is kept. Run the same command again to continue.")
        raise typer.Exit(130) from error


def _load(path: Path, overrides: list[str] | None, store: str) -> tuple[Sweep, Store]:
    from workflows.store import Store
    from workflows.sweep import load_sweep

    loaded, opened = load_sweep(path, overrides or ()), Store(store)
    opened.files.check()
    return loaded, opened


@app.command()
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
    with _errors():
        loaded, opened = _load(sweep, set_, store)
        from workflows.plan import make_plan

        planned = make_plan(loaded)
        if calibrate:
            from workflows.calibrate import calibrate as measure
            from workflows.run import Options

            options = Options(workers, gpus_per_worker, address)
            workers = measure(loaded, planned, opened, options, _say)[0].workers
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

    from workflows.runs import duration

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
    from workflows.forecast import default_workers, predict

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


@app.command()
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
    with _errors():
        loaded, opened = _load(sweep, set_, store)
        from workflows.audit import findings
        from workflows.baselines import to_text
        from workflows.ladders import ladder_table
        from workflows.outcomes import of_results
        from workflows.run import Options, driver_versions, run_sweep
        from workflows.sections import sections
        from workflows.tables import auditor_line, render
        from workflows.tracking import track

        options = Options(workers, gpus_per_worker, address, max_attempts, unit_timeout, log=log)
        outcome, results, record = run_sweep(loaded, opened, options, _say)
        robustness, cost, combined = results.robustness(), results.cost(), results.combined()
        ladders, further = ladder_table(results), sections(results)
        found = findings(results)
        tables = partial(render, robustness, cost, combined=combined, ladders=ladders, further=further)
        if json_:
            typer.echo(json.dumps({**json.loads(tables("json", findings=found)), "run": _outcome(outcome)}, indent=1))
        else:
            # Findings have a line of their own below: a table that one scrolls past is no place for them.
            typer.echo(tables("text", title=loaded.name))
        _say(auditor_line(found))
        if outcome.failures or outcome.blocked:
            _say(
                f"{len(outcome.failures)} units failed and {outcome.blocked} more need them; `puregrid status` shows "
                "why. Run the same command again to retry them."
            )
        if outcome.interrupted:
            _say("stopped; everything that ran is committed. Run the same command again to continue.")
        to_mlflow = partial(
            track,
            sweep=loaded,
            robustness=robustness,
            cost=cost,
            versions=driver_versions(),
            findings=found,
            combined=combined,
            ladders=ladders,
            further=further,
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


def _log_to_mlflow(uri: str | None, store_uri: str, log: Callable[[str, str], str]) -> None:
    from workflows.tracking import default_uri

    chosen = uri or default_uri(store_uri)
    if chosen == "off":
        return
    if chosen is None:
        _say("not logged to MLflow: a bucket holds no SQLite database; give --mlflow URI.")
        return
    try:
        log(chosen, store_uri)
    except Exception as error:  # MLflow raises whatever its stores and servers raise
        raise PuregridError(
            f"the sweep could not be logged to MLflow at {chosen} ({type(error).__name__}: {error}). Rows "
            "are committed; run the same command again to log them, or give --mlflow off."
        ) from error
    _say(f"logged to MLflow; look at it with: mlflow ui --backend-store-uri {shlex.quote(chosen)} --host 127.0.0.1")


@app.command()
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
    with _errors():
        loaded, opened = _load(sweep, set_, store)
        from workflows.plan import make_plan
        from workflows.run import failures
        from workflows.runs import read_runs, run_line
        from workflows.utilisation import utilisation_table

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


@app.command()
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
    with _errors():
        from workflows.tables import FORMATS, render

        if format_ not in FORMATS:
            raise InvalidInput(f"unknown format {format_!r}; {nearest(format_, FORMATS)}", where="--format")
        loaded, opened = _load(sweep, set_, store)
        from workflows.ladders import ladder_table
        from workflows.reader import Results
        from workflows.sections import sections

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


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help=_RUN_HELP)],
    second: Annotated[str | None, typer.Argument(metavar="[RUN]", help="The run to compare with.")] = None,
    with_: Annotated[str | None, typer.Option("--with", metavar="RUN", help="The same, as an option.")] = None,
    store: StoreUri = "results",
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="MLflow tracking URI.")] = None,
    json_: AsJson = False,
) -> None:
    """Compare two runs cell by cell on the same images: paired differences, and what changed in the specs."""
    with _errors():
        other = second if with_ is None else with_
        if other is None or (second is not None and with_ is not None):
            raise InvalidInput("name two runs: `compare RUN RUN`, or `compare RUN --with RUN`.")
        from workflows.baselines import load_pair
        from workflows.compare import compare as compared
        from workflows.compare import comparison_text
        from workflows.tracking import default_uri

        one, two = load_pair(first, other, store=store, tracking_uri=mlflow or default_uri(store))
        found = compared(one, two)
        if json_:
            typer.echo(json.dumps([each.as_dict() for each in found], indent=1))
        else:
            typer.echo(comparison_text(found, first, other), nl=False)


@app.command()
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
    detect: Annotated[float, typer.Option(metavar="D", help="A drop that 80 % of the runs must find.")] = 0.2,
    cost_margin: Annotated[
        float, typer.Option(metavar="S", help="Tolerated growth of network evaluations: 0.1 is 10 %.")
    ] = 0.0,
    seconds_margin: Annotated[
        float | None, typer.Option(metavar="S", help="Judge seconds too, with this tolerated growth.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML, a test case a cell.")] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI|off", help="MLflow tracking URI; the sweep's run is tagged there.")
    ] = None,
    set_: Overrides = None,
    json_: AsJson = False,
) -> None:
    """Compare with a baseline: exit 0 if accuracy and cost hold, 1 if one regressed, 2 if that could not be told."""
    with _errors():
        from workflows.check import Gate

        gate = Gate(margin, alpha, detect, cost_margin, seconds_margin)
        loaded, opened = _load(sweep, set_, store)
        from workflows.baselines import load
        from workflows.check import check as checked
        from workflows.check import check_text, verdict_of
        from workflows.check import junit as junit_xml
        from workflows.outcomes import of_results
        from workflows.reader import Results
        from workflows.tracking import default_uri

        uri = mlflow or default_uri(opened.uri)
        before = load(baseline, sweep=loaded.name, tracking_uri=uri, where="--baseline")
        if before.source == opened.uri:
            _say(f"note: the baseline is this run's own store, {opened.uri}: compared with itself a run holds.")
        verdicts = checked(before, of_results(Results(opened, loaded)), gate)
        verdict = verdict_of(verdicts)
        if junit is not None:
            junit.write_text(junit_xml(verdicts, loaded.name), encoding="utf-8")
        if json_:
            cells = [each.as_dict() for each in verdicts]
            typer.echo(
                json.dumps({"verdict": verdict, "baseline": baseline, **asdict(gate), "cells": cells}, indent=1)
            )
        else:
            typer.echo(check_text(verdicts, gate, baseline, f"{sweep} in {opened.uri}"), nl=False)
        _tag_verdict(uri, loaded, verdict, baseline, [each for each in verdicts if each.verdict != "holds"])
        if verdict != "holds":
            raise typer.Exit(1 if verdict == "regressed" else 2)


def _tag_verdict(uri: str | None, sweep: Sweep, verdict: str, baseline: str, cells: list[Any]) -> None:
    """The verdict on the sweep's run in MLflow; a broken MLflow changes no verdict."""
    from workflows.aliases import record_verdict

    if uri is None or uri == "off":
        return
    why = "; ".join(f"{each.cell}: {each.why}" for each in cells)
    try:
        record_verdict(uri, sweep, {"verdict": verdict, "baseline": baseline, "why": why or "every cell holds"})
    except Exception as error:  # MLflow raises whatever its stores and servers raise
        _say(f"the verdict could not be set in MLflow at {uri} ({type(error).__name__}: {error})")


@app.command()
def promote(
    sweep: SweepFile,
    store: StoreUri = "results",
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a baseline to commit, as JSON.")] = None,
    alias: Annotated[
        str | None, typer.Option(metavar="ALIAS", help="Name of the baseline in MLflow [champion, without --to].")
    ] = None,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="MLflow tracking URI.")] = None,
    set_: Overrides = None,
) -> None:
    """Make the results of a sweep the baseline of `puregrid check`: in MLflow, or in a file."""
    with _errors():
        loaded, opened = _load(sweep, set_, store)
        from workflows import aliases
        from workflows.baselines import complete_text
        from workflows.reader import Results
        from workflows.tracking import default_uri

        if alias is not None:
            aliases.valid_alias(alias)
        text = complete_text(Results(opened, loaded))
        if to is not None:
            to.write_text(text, encoding="utf-8")
            typer.echo(to)
        if alias is not None or to is None:
            name = alias or "champion"
            run_id = aliases.promote(mlflow or default_uri(opened.uri), loaded, name, text)
            typer.echo(f"mlflow:{name} is run {run_id}")


@app.command()
def compact(sweep: SweepFile, store: StoreUri = "results", set_: Overrides = None, json_: AsJson = False) -> None:
    """Copy a sweep's committed rows into one Parquet file a stage, for pandas, DuckDB and the like."""
    with _errors():
        loaded, opened = _load(sweep, set_, store)
        from workflows.compact import compact as compacted

        found = compacted(opened, loaded)
        if json_:
            typer.echo(json.dumps(asdict(found), indent=1))
        else:
            typer.echo(found.folder)
            _say(f"{found.rows} rows of {found.units} units in {found.files} files, {found.written} of them new")
        if found.missing:
            _say(f"{found.missing} units of the sweep are not committed; run it, then compact again")


@app.command()
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
    with _errors():
        from workflows.report import FORMATS, report_to

        if format_ not in FORMATS:
            raise InvalidInput(f"unknown format {format_!r}; {nearest(format_, FORMATS)}", where="--format")
        loaded, opened = _load(sweep, set_, store)
        from workflows.reader import Results

        settings = "".join(f" --set {shlex.quote(setting)}" for setting in set_ or ())
        command = f"puregrid run {sweep}{settings} && puregrid report {sweep}{settings}"
        typer.echo(report_to(Results(opened, loaded), out, format_, command=command, images=gallery))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The training config.")],
    force: Annotated[
        bool, typer.Option("--force", help="Start again, whatever the out folder holds of this or another training.")
    ] = False,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="URI|on|off",
            help="MLflow tracking URI; on: SQLite in the out folder [$MLFLOW_TRACKING_URI, else off].",
        ),
    ] = None,
) -> None:
    """Train a network and write its weights with a card; run again to continue an interrupted training."""
    with _errors():
        import yaml

        from workflows.training import load_config
        from workflows.training import train as run_training
        from workflows.training.tracking import tracking_uri

        try:
            loaded = load_config(config)
            card = run_training(
                loaded,
                command=f"puregrid train {config}",
                force=force,
                mlflow=tracking_uri(mlflow, loaded.out),
                say=_say,
            )
        except InvalidInput as error:
            raise InvalidInput(error.message, where=error.where or str(config)) from error
        typer.echo(yaml.safe_dump(card, sort_keys=False, width=110), nl=False)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="KIND", help="purifiers, attacks, datasets, corruptions, ...")],
    json_: AsJson = False,
) -> None:
    """List what a sweep file can name."""
    with _errors():
        from workflows.catalogue import catalogue

        entries = catalogue(what)
        if json_:
            typer.echo(json.dumps(entries, indent=1))
        else:
            width = max(len(entry["name"]) for entry in entries) + 2
            for entry in entries:
                typer.echo(f"{entry['name']:<{width}}{entry['summary']}")
                if entry["fields"]:
                    typer.echo(f"{'':<{width}}fields: {', '.join(entry['fields'])}")


data = typer.Typer(help="Fetch or verify data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")

Root = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where it lies [$PUREGRID_DATA; of lpips $PUREGRID_WEIGHTS]."),
]


@data.command()
def fetch(name: Annotated[str, typer.Argument(metavar="NAME")], root: Root = None) -> None:
    """Download cifar10, cifar100, cifar10-c, cifar100-c or the weights of lpips; nothing else downloads them."""
    with _errors():
        from workflows.data import fetch_dataset

        typer.echo(fetch_dataset(name, root))


@data.command()
def verify(name: Annotated[str, typer.Argument(metavar="NAME")], root: Root = None) -> None:
    """Check that a data set is complete and undamaged; prints its digest."""
    with _errors():
        from workflows.data import verify_dataset

        typer.echo(verify_dataset(name, root))


def main() -> None:
    """Entry point of ``puregrid``."""
    # Ray would otherwise ask about usage statistics, and warn of an accelerator variable that we do not use.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    app()


if __name__ == "__main__":
    main()
