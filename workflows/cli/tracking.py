"""``puregrid track``, and the tracker of ``puregrid run``."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from defense.errors import InvalidInput, PuregridError
from workflows.cli.base import NoPlugins, Overrides, StoreUri, errors, open_sweep, report_command, say

if TYPE_CHECKING:
    from workflows.analysis import Analysis
    from workflows.grid.load import Sweep
    from workflows.store import Store
    from workflows.tracking.tracker import Tracker

__all__ = ["Mlflow", "open_tracker", "pages", "track"]

Mlflow = Annotated[
    str | None,
    typer.Option("--mlflow", metavar="URI|off", help="MLflow tracking URI [SQLite in the store's folder]."),
]

_INSTALL = "MLflow is not installed: pip install 'puregrid[mlflow]'"
_BUCKET = "a bucket holds no SQLite database: give --mlflow URI"


def open_tracker(mlflow: str | None, sweep: Sweep, store_uri: str, *, strict: bool, wanted: str) -> Tracker | None:
    """Where a sweep is logged; None for nowhere, which is said unless it was asked for.

    Arguments:
        mlflow: The option ``--mlflow``.
        sweep: The sweep.
        store_uri: Its store.
        strict: Whether a tracker that fails is an error.
        wanted: The option because of which there must be a tracker; "" if there need not be one.

    Raises:
        InvalidInput: There must be a tracker and there is none; or one is named and MLflow is not installed.
    """
    from workflows.monitoring.mlflow_client import named_uri
    from workflows.tracking.track import default_uri

    uri = named_uri(mlflow, "--mlflow") or default_uri(store_uri)
    if uri == "off":
        if wanted:
            raise InvalidInput("--mlflow off logs nowhere: give a URI, or leave it out.", where=wanted)
        return None
    trouble = _INSTALL if importlib.util.find_spec("mlflow") is None else _BUCKET if uri is None else None
    if trouble is not None or uri is None:
        if wanted or mlflow is not None:
            raise InvalidInput(f"{trouble}.", where="--mlflow" if mlflow is not None else wanted)
        say(f"not logged to MLflow: {trouble}, or --mlflow off.")
        return None
    from workflows.tracking.tracker import Tracker

    return Tracker(uri, sweep, store_uri, strict, say)


def pages(analysis: Analysis, command: str) -> dict[str, str]:
    """Return the report and its figures as artifacts of the sweep's run; the same rows give the same pages."""
    from workflows.report import report
    from workflows.report.figures import figures

    drawn = {f"figures/{figure.name}.svg": figure.drawing.file() for figure in figures(analysis)}
    return {"report.html": report(analysis, command=command), **drawn}


def track(
    sweep: Annotated[
        str | None,
        typer.Argument(metavar="[SWEEP]", help="A sweep file or bundled sweep; without it every sweep of the store."),
    ] = None,
    store: StoreUri = "results",
    mlflow: Mlflow = None,
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Log what is committed of a sweep, or of every sweep of a store, to MLflow; computes nothing."""
    with errors(plugins=not no_plugins):
        if sweep is not None:
            loaded, opened = open_sweep(sweep, set_, store)
            if not _track(loaded, opened, mlflow, report_command(sweep, store, set_)):
                raise PuregridError(
                    f"nothing of {loaded.name} is committed in {opened.uri}: `puregrid run` it first."
                )
            return
        if set_:
            raise InvalidInput(
                "an override is of one sweep: name it, `puregrid track SWEEP --set ...`.", where="--set"
            )
        _track_all(store, mlflow)


def _track_all(store: str, mlflow: str | None) -> None:
    """Log every sweep that a store has on record; one that cannot be made again is said and left out."""
    from workflows.results.records import recorded_sweeps, remade
    from workflows.store import Store

    opened = Store(store)
    opened.files.check()
    recorded = recorded_sweeps(opened)
    if not recorded:
        raise PuregridError(f"no sweep is on record in {opened.uri}: `puregrid run` one first.")
    failed = 0
    for sweep_id, text, folder in recorded:
        try:
            loaded = remade(sweep_id, text, folder)
            say(f"sweep {loaded.name!r} ({sweep_id}):")
            if not _track(loaded, opened, mlflow, report_command(loaded.name, store)):
                say("nothing of it is committed.")
        except PuregridError as error:
            failed += 1
            say(f"warning: sweep {sweep_id} is not logged: {error}")
    if failed:
        raise PuregridError(f"{failed} of {len(recorded)} sweeps on record in {opened.uri} could not be logged.")


def _track(loaded: Sweep, opened: Store, mlflow: str | None, command: str) -> bool:
    """Log what is committed of a sweep; returns whether anything is."""
    tracker = open_tracker(mlflow, loaded, opened.uri, strict=True, wanted="track")
    assert tracker is not None
    from workflows.analysis import Analysis
    from workflows.monitoring.run_record import read_runs
    from workflows.planning.plan import make_plan
    from workflows.regression.baselines import to_text
    from workflows.regression.snapshots import of_results
    from workflows.results.reader import Results
    from workflows.tracking.track import track as log

    planned = make_plan(loaded)
    missing = planned.committed(opened).missing
    if missing == planned.units:
        return False
    if missing:
        say(f"partial: {missing} of {planned.units} units are missing; what is committed is logged.")
    results = Results(opened, loaded)
    snapshot = of_results(results)
    runs = [run for run in read_runs(opened, loaded.id) if run.purpose == "run" and run.ended is not None]
    analysis = Analysis(results)
    tracker.write(
        partial(
            log,
            analysis=analysis,
            versions=snapshot.versions,
            outcomes=to_text(snapshot),
            complete=not missing,
            run=runs[-1].to_json() if runs else None,
            pages=pages(analysis, command),
        )
    )
    return True
