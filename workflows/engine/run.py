"""``puregrid run``: check what is committed, compute the rest, and say what that took and was predicted to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defense.errors import PuregridError
from tasks.stages.kind import Kind
from workflows.engine.attempts import Event
from workflows.engine.cluster import cluster, slots
from workflows.engine.failures import describe, failure_path, record_failure
from workflows.engine.loop import Outcome, run_plan
from workflows.engine.pool import Pool
from workflows.grid.load import Sweep
from workflows.monitoring.events import log_to, tell
from workflows.monitoring.progress import SweepProgress
from workflows.monitoring.run_record import RunRecord, duration
from workflows.planning.costs import Cost, Pace, missing_work
from workflows.planning.forecast import Forecast, default_workers, forecast, read_forecast
from workflows.planning.plan import Plan, make_plan
from workflows.planning.scheduler import Failure
from workflows.results.reader import Results
from workflows.results.records import record_sweep
from workflows.store import Store

__all__ = [
    "Options",
    "execute",
    "run_sweep",
    "verified",
]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to run a sweep; nothing of this changes a row.

    Arguments:
        workers: Number of workers; by default as many as there are processors or GPUs for, also of nodes that join a
            cluster later.
        gpus_per_worker: GPUs each worker takes, fractions allowed; 0 for CPU workers.
        address: Address of a Ray cluster, ``auto``, or None to start one here.
        max_attempts: Attempts per unit before it is quarantined.
        unit_timeout: Seconds after which a unit counts as stuck.
        quiet: No progress bar.
        log: File to which events are appended, one JSON object a line.
    """

    workers: int | None = None
    gpus_per_worker: float = 0.0
    address: str | None = None
    max_attempts: int = 3
    unit_timeout: float = 3600.0
    quiet: bool = False
    log: Path | None = None


def verified(plan: Plan, store: Store, say: Say) -> list[set[int]]:
    """Positions of the committed chunks of each stage, after comparing all data with its commit.

    A commit whose data is missing or damaged is reported and revoked, so that the unit is computed again.
    """
    committed = plan.committed(store)
    units = [(stage, chunk) for stage, chunks in enumerate(committed) for chunk in sorted(chunks)]

    def problem(unit: tuple[int, int]) -> str | None:
        stage = plan.stages[unit[0]]
        return store.problem(stage.spec.stage, stage.id, stage.chunks[unit[1]].name)

    with ThreadPoolExecutor(8) as threads:
        for unit, trouble in zip(units, threads.map(problem, units), strict=True):
            if trouble is not None:
                stage = plan.stages[unit[0]]
                name = stage.chunks[unit[1]].name
                say(f"{stage.spec.stage} {stage.id} chunk {name} was committed but {trouble}; it is computed again")
                store.revoke(stage.spec.stage, stage.id, name)
                committed[unit[0]].discard(unit[1])
    return committed


def run_sweep(
    sweep: Sweep, store: Store, options: Options, say: Say
) -> tuple[Outcome, Results, dict[str, Any] | None]:
    """Compute everything of a sweep that is not committed.

    Arguments:
        sweep: The sweep.
        store: Where to commit.
        options: How to run.
        say: Where notes go, one line each.

    Returns:
        How it ended, the results, and the record of the run (:mod:`workflows.monitoring.run_record`), None if nothing
        was missing.
    """
    plan = make_plan(sweep)
    committed = verified(plan, store, say)
    record_sweep(sweep, plan, store)
    missing = plan.units - sum(map(len, committed))
    say(
        f"{len(sweep.cells)} cells, {plan.units} distinct units, {plan.units - missing} committed, "
        f"{missing} to compute"
    )
    if not missing:
        return Outcome(), Results(store, sweep), None
    predicted = read_forecast(store, sweep.id)
    costs = {} if predicted is None else dict(predicted.costs)
    outcome, record = execute(sweep, plan, lambda workers: committed, store, options, say, costs=costs)
    if outcome.computed:
        say(
            f"run: {outcome.computed} units in {duration(record['wall_seconds'])} on {record['workers_at_most']} "
            f"workers: {record['units_per_second']:.2f} units/s, {record['images_per_second']:.1f} images/s, "
            f"workers busy {record['utilisation']:.0%} of their time"
        )
    if predicted is not None and not (outcome.failures or outcome.interrupted or outcome.elsewhere):
        said = _held_against(predicted, plan, committed, record)
        if said:
            say(said)
    return outcome, Results(store, sweep), record


def _held_against(predicted: Forecast, plan: Plan, committed: list[set[int]], record: dict[str, Any]) -> str | None:
    """The prediction and what came of it; None where the run was not what was predicted.

    Of units that were committed since, the prediction is made again from the costs that it recorded.
    """
    same = (predicted.workers, predicted.gpus_per_worker) == (record["workers_at_most"], record["gpus_per_worker"])
    if not same or 2 * record["units"] < predicted.units:
        return None
    again, _ = forecast(
        plan,
        committed,
        dict(predicted.costs),
        workers=predicted.workers,
        gpus_per_worker=predicted.gpus_per_worker,
        startup_seconds=predicted.startup_seconds,
        overhead_seconds=predicted.overhead_seconds,
    )
    if again is None:
        return None
    measured = float(record["wall_seconds"])
    error = again.wall_seconds / measured - 1
    return (
        f"predicted {duration(again.wall_seconds)} for these {again.units} units, measured {duration(measured)}: "
        f"{abs(error):.0%} too {'long' if error > 0 else 'short'}"
    )


def execute(
    sweep: Sweep,
    plan: Plan,
    committed_for: Callable[[int], Sequence[set[int]]],
    store: Store,
    options: Options,
    say: Say,
    *,
    purpose: str = "run",
    costs: dict[Kind, Cost] | None = None,
) -> tuple[Outcome, dict[str, Any]]:
    """Start workers and compute what is missing.

    Arguments:
        sweep: The sweep.
        plan: Its plan.
        committed_for: Per stage the chunks that need no work, given the number of workers that there is room for.
        store: Where to commit.
        options: How to run.
        say: Where notes go, one line each.
        purpose: ``run`` or ``calibration``.
        costs: What units are known to cost, for the time left.

    Returns:
        How it ended, and the record of the run.
    """
    threads = max(stage.spec.settings().threads for stage in plan.stages)
    wanted = options.workers or default_workers(threads)
    units = plan.units - sum(map(len, committed_for(wanted)))
    here = min(wanted, units)
    known = set(store.files.names(f"sweeps/{sweep.id}/failures"))
    recorded = RunRecord(store, sweep.id, purpose, options.gpus_per_worker, units)

    def on_event(event: Event, failure: Failure | None) -> None:
        if event.receipt is not None and not looked[0]:
            on_first_receipt(event)
        if failure is not None:
            say(f"{describe(plan, event.unit)} failed {failure.attempts} times, last: {failure.error}")
            record_failure(sweep, plan, store, failure)
        elif event.receipt is None and event.started:
            say(f"{describe(plan, event.unit)} is tried again: {event.error}")
        elif (
            event.receipt is not None and (path := failure_path(sweep, plan, event.unit)).rpartition("/")[2] in known
        ):
            store.files.delete(path)

    looked = [options.address is None]

    def on_first_receipt(event: Event) -> None:
        """Workers on other machines and this driver see one store, or what they commit is lost to it."""
        stage = plan.stages[event.unit.stage]
        chunk = stage.chunks[event.unit.chunk].name
        if store.committed(stage.spec.stage, stage.id, chunk) is None:
            raise PuregridError(
                f"a worker says that {describe(plan, event.unit)} is committed, but the store {store.uri} that this "
                "driver sees does not have it: the folder is another one on the worker's machine. Give --store a "
                "folder that all machines share, or a bucket."
            )
        looked[0] = True

    elastic = options.workers is None and options.address is not None  # nodes may join and leave
    outcome, ended = Outcome(), "failed"
    with log_to(options.log, run=recorded.id), cluster(here * threads, options.address):
        room = options.workers or slots(threads, options.gpus_per_worker)
        committed = committed_for(room)
        missing = recorded.to_compute = plan.units - sum(map(len, committed))
        workers = min(room, missing)
        tell("planned", sweep=sweep.name, sweep_id=sweep.id, purpose=purpose, units=missing, workers=workers)
        pool = Pool(
            store.uri,
            missing if elastic else workers,
            gpus_per_worker=options.gpus_per_worker,
            threads=threads,
            unit_timeout=options.unit_timeout,
            # Machines of a cluster may have to be ordered first.
            start_timeout=300.0 if options.address is None else 1800.0,
            elastic=elastic,
            say=say,
            ledger=recorded.ledger,
        )
        try:
            work, done = missing_work(plan, committed), plan.units - missing
            shown = (plan.units, done) if purpose == "run" else (missing, 0)
            with SweepProgress(*shown, work, quiet=options.quiet) as progress:
                if purpose != "run":
                    progress.phase("measuring")
                outcome = run_plan(
                    plan,
                    committed,
                    pool,
                    progress,
                    max_attempts=options.max_attempts,
                    store=store,
                    on_event=on_event,
                    on_tick=lambda done, left: recorded.progress(pool.workers, done, left),
                    pace=Pace(plan, committed, costs),
                )
            ended = "stopped" if outcome.interrupted else "failed" if outcome.failures else "finished"
        except KeyboardInterrupt:
            ended = "stopped"
            raise
        finally:
            record = recorded.finish(ended, outcome.elsewhere, workers_at_most=pool.most)
            pool.close()
            tell(
                "drained" if ended == "stopped" else ended,
                units=outcome.computed,
                elsewhere=outcome.elsewhere or None,
                failed=len(outcome.failures) or None,
                seconds=record["wall_seconds"],
            )
    return outcome, record
