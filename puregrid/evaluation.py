"""Load, plan and run a sweep, and open its results, from Python: the functions behind the command line's."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defense.bounds import MOST_WORKERS
from defense.errors import InvalidInput
from defense.packages import installed

if TYPE_CHECKING:
    import pandas as pd

    from puregrid.results import SweepResults, SweepRun
    from workflows.grid.load import Sweep
    from workflows.planning.summary import PlanSummary
    from workflows.store import Store

__all__ = ["PlannedSweep", "bundled_sweeps", "load_sweep", "open_results", "plan", "run"]


def bundled_sweeps() -> list[str]:
    """Return the names of the sweeps that come with puregrid, which every function here takes in place of a file."""
    with installed():
        from workflows.assets import bundled

        return list(bundled.bundled_sweeps())


def load_sweep(name: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Sweep:
    """Read, expand and validate a sweep file; find, hash and check every file that it names.

    Arguments:
        name: A sweep file, or the name of a bundled sweep; a file of that name in the working directory goes first.
        overrides: Values that replace the file's, by dotted path, ``{"datasets.0.images.first": 100}``; or as on the
            command line, ``["datasets.0.images.first=100"]``.

    Raises:
        InvalidInput: Anything that would make the sweep fail or mean something else than was meant.
    """
    if not isinstance(name, str | Path):
        raise InvalidInput(f"a sweep file is named by its path or a bundled name, not by {name!r}.", where="name")
    if isinstance(overrides, str):
        raise InvalidInput(f"overrides are a mapping or a list of KEY=VALUE, not the text {overrides!r}.")
    with installed():
        from workflows.assets.bundled import find_sweep
        from workflows.grid.load import load_sweep as load

        return load(find_sweep(name), _settings(overrides))


def _settings(overrides: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """``KEY=VALUE`` of each override; JSON is YAML."""
    if not isinstance(overrides, Mapping):
        return list(overrides)
    try:
        return [f"{key}={json.dumps(value, allow_nan=False, ensure_ascii=False)}" for key, value in overrides.items()]
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the value of an override is no number, text, list or mapping: {error}.") from error


@dataclass(frozen=True, repr=False)
class PlannedSweep:
    """The units of a sweep, and those that are committed in a store.

    Arguments:
        sweep: The sweep.
        summary: The figures that ``puregrid plan --json`` prints.
    """

    sweep: Sweep
    summary: PlanSummary

    @property
    def cells(self) -> int:
        """Cells of the grid."""
        return self.summary.cells

    @property
    def distinct(self) -> int:
        """Distinct units: one stage of one chunk of images each."""
        return self.summary.distinct

    @property
    def missing(self) -> int:
        """Units that are not committed."""
        return self.summary.missing

    @property
    def evaluations(self) -> int:
        """Network evaluations of the missing units."""
        return self.summary.evaluations

    @property
    def seconds(self) -> float | None:
        """Predicted time of a run; None where the store has not measured a missing kind of unit."""
        return None if self.summary.forecast is None else self.summary.forecast.wall_seconds

    @property
    def stages(self) -> pd.DataFrame:
        """One row per distinct stage: id, stage, what it computes, images, units, committed units."""
        import pandas as pd

        columns = ("id", "stage", "what", "images", "units", "committed")
        return pd.DataFrame([{name: getattr(stage, name) for name in columns} for stage in self.summary.stages])

    def __repr__(self) -> str:
        ahead = "" if self.seconds is None or not self.missing else f", about {self.seconds:.0f} s"
        return (
            f"<PlannedSweep {self.sweep.name!r}: {self.cells} cells, {self.distinct} distinct units, {self.missing} "
            f"to compute with {self.evaluations:,} network evaluations{ahead}>"
        )


def plan(
    sweep: Sweep | str | Path,
    store: str | Path = "results",
    *,
    workers: int | None = None,
    preflight: bool = False,
) -> PlannedSweep:
    """Plan a sweep; computes nothing, and writes nothing but what a preflight found good.

    Arguments:
        sweep: A sweep, a sweep file, or the name of a bundled sweep.
        store: Folder or bucket of the rows.
        workers: For how many workers to predict the time; by default one a processor.
        preflight: Also ask every distinct network, defence and attack once, on one image, as the command does.

    Raises:
        InvalidInput: A wrong sweep, store or number.
    """
    with installed():
        from workflows.planning.plan import make_plan
        from workflows.planning.summary import summarise

        _at_least(1, workers=workers)
        opened = _store(store)
        loaded = _so_far(_sweep(sweep), opened)
        planned = make_plan(loaded)
        if preflight:
            from workflows.preflight import preflight as ask_once

            ask_once(loaded, planned.committed(opened), opened, _notify)
        return PlannedSweep(loaded, summarise(loaded, planned, opened, workers=workers))


def run(
    sweep: Sweep | str | Path,
    store: str | Path = "results",
    *,
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    address: str | None = None,
    max_attempts: int = 3,
    unit_timeout: float = 3600.0,
    log: str | Path | None = None,
    quiet: bool = False,
    preflight: bool = True,
) -> SweepRun:
    """Compute what is missing of a sweep, and return its results; run again to continue.

    Progress goes to stderr. Ctrl-C, or the notebook's stop button, drains the workers and returns what is committed.
    A unit that fails does not raise: it is in ``outcome.failures``, and :attr:`SweepRun.complete` is false.

    Arguments:
        sweep: A sweep, a sweep file, or the name of a bundled sweep.
        store: Folder or bucket for rows and commits; what is committed there is not computed again.
        workers: Workers; by default one a processor or GPU.
        gpus_per_worker: GPUs of each worker, fractions allowed; 0 runs on CPUs.
        address: A running Ray cluster, ``"auto"`` or its address; by default one is started on this machine.
        max_attempts: Attempts before a unit is quarantined.
        unit_timeout: Seconds after which a unit counts as stuck.
        log: File to append events to, one JSON object a line.
        quiet: Show no progress.
        preflight: Ask every distinct network, defence and attack once, on one image, before the compute.

    Raises:
        InvalidInput: A wrong sweep, store or number, before any compute.
        PuregridError: The run could not go on: no cluster answers, the store is gone.
    """
    with installed():
        from puregrid.results import SweepResults, SweepRun
        from workflows.engine.run import Options, run_sweep

        _at_least(1, workers=workers, max_attempts=max_attempts, unit_timeout=unit_timeout)
        _at_least(0, gpus_per_worker=gpus_per_worker)
        options = Options(
            workers,
            gpus_per_worker,
            address,
            max_attempts,
            unit_timeout,
            quiet=quiet,
            log=None if log is None else Path(log),
            preflight=preflight,
        )
        outcome, results, _ = run_sweep(_sweep(sweep), _store(store), options, _silent if quiet else _notify)
        return SweepRun(SweepResults(results), outcome)


def open_results(store: str | Path, sweep: Sweep | str | Path) -> SweepResults:
    """Open the results of a sweep from its committed rows; computes nothing.

    Arguments:
        store: Folder or bucket of the rows.
        sweep: A sweep, a sweep file, or the name of a bundled sweep.

    Raises:
        InvalidInput: A wrong sweep, or a store that holds nothing of it.
    """
    with installed():
        from puregrid.results import SweepResults
        from workflows.planning.plan import make_plan
        from workflows.results.reader import Results

        opened = _store(store)
        loaded = _so_far(_sweep(sweep), opened)
        if not len(make_plan(loaded).committed(opened)):
            raise InvalidInput(
                f"nothing of the sweep {loaded.name!r} is committed here. Run it with this store, or look whether "
                "the store's path and the overrides of the sweep are those of the run.",
                where=str(store),
            )
        return SweepResults(Results(opened, loaded))


def _sweep(sweep: Sweep | str | Path) -> Sweep:
    from workflows.grid.load import Sweep as Loaded

    loaded = sweep if isinstance(sweep, Loaded) else load_sweep(sweep)
    if not loaded.asks_baseline:
        return loaded
    from workflows.regression.baselines import referenced

    return referenced(loaded)


def _so_far(sweep: Sweep, store: Store) -> Sweep:
    """Return a sweep with the cells that its attacks with ``converge`` have led to."""
    if not sweep.converges:
        return sweep
    from workflows.results.convergence import extended

    return extended(sweep, store)


def _store(store: str | Path) -> Store:
    from workflows.store import Store as Opened

    if not isinstance(store, str | Path):
        raise InvalidInput(f"a store is named by the path of a folder or the URI of a bucket, not by {store!r}.")
    opened = Opened(str(store))
    opened.files.check()
    return opened


def _at_least(smallest: int, **numbers: float | None) -> None:
    for name, value in numbers.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and value >= smallest):
            raise InvalidInput(f"{name} is a number of at least {smallest}, not {value!r}.", where=name)
        if value is not None and value > MOST_WORKERS and name != "unit_timeout":
            raise InvalidInput(
                f"{name} = {value!r} is more than {MOST_WORKERS:,}, which cannot be meant.", where=name
            )


def _notify(message: str) -> None:
    print(message, file=sys.stderr)


def _silent(message: str) -> None:
    pass
