"""``puregrid run``: check what is committed, compute the rest, make the tables, log them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from defense.errors import PuregridError
from workflows.engine import Outcome, describe, run_plan
from workflows.estimate import missing_work
from workflows.plan import Plan, Unit, make_plan
from workflows.pool import Event, Pool, cluster, slots
from workflows.progress import SweepProgress
from workflows.reader import CellRecord, Results, latest_path
from workflows.scheduler import Failure
from workflows.store import Store
from workflows.sweep import Sweep

__all__ = ["Options", "default_workers", "driver_versions", "failures", "run_sweep", "verified"]

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
    """

    workers: int | None = None
    gpus_per_worker: float = 0.0
    address: str | None = None
    max_attempts: int = 3
    unit_timeout: float = 3600.0
    quiet: bool = False


def default_workers(threads: int) -> int:
    """As many CPU workers as have ``threads`` processors each."""
    return max(1, len(os.sched_getaffinity(0)) // threads)


def driver_versions() -> dict[str, str]:
    """Versions of what matters for a result."""
    found = {"python": platform.python_version()}
    for name in ("puregrid", "torch", "torchvision", "diffusers", "ray", "numpy", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


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


def run_sweep(sweep: Sweep, store: Store, options: Options, say: Say) -> tuple[Outcome, Results]:
    """Compute everything of a sweep that is not committed.

    Arguments:
        sweep: The sweep.
        store: Where to commit.
        options: How to run.
        say: Where notes go, one line each.
    """
    plan = make_plan(sweep)
    committed = verified(plan, store, say)
    _record(sweep, plan, store)
    missing = plan.units - sum(map(len, committed))
    done = plan.units - missing
    say(f"{len(sweep.cells)} cells, {plan.units} distinct units, {done} committed, {missing} to compute")
    if not missing:
        return Outcome(), Results(store, sweep)
    threads = max(stage.spec.settings().threads for stage in plan.stages)
    here = min(options.workers or default_workers(threads), missing)

    known = set(store.files.names(f"sweeps/{sweep.id}/failures"))

    def on_event(event: Event, failure: Failure | None) -> None:
        if event.receipt is not None and not looked[0]:
            on_first_receipt(event)
        if failure is not None:
            say(f"{describe(plan, event.unit)} failed {failure.attempts} times, last: {failure.error}")
            _record_failure(sweep, plan, store, failure)
        elif event.receipt is None and event.started:
            say(f"{describe(plan, event.unit)} is tried again: {event.error}")
        elif (
            event.receipt is not None and (path := _failure_path(sweep, plan, event.unit)).rpartition("/")[2] in known
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
    with cluster(here * threads, options.address):
        workers = min(options.workers or slots(threads, options.gpus_per_worker), missing)
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
        )
        try:
            work = missing_work(plan, committed)
            with SweepProgress(plan.units, done, work, quiet=options.quiet) as progress:
                outcome = run_plan(
                    plan, committed, pool, progress, max_attempts=options.max_attempts, store=store, on_event=on_event
                )
        finally:
            pool.close()
    return outcome, Results(store, sweep)


def _record(sweep: Sweep, plan: Plan, store: Store) -> None:
    """The sweep's folder: its file and its plan; and what each stage id stands for."""
    folder = f"sweeps/{sweep.id}"
    store.files.write(f"{folder}/sweep.yaml", sweep.text.encode())
    stages = [
        {"id": stage.id, "stage": stage.spec.stage, "chunks": len(stage.chunks), "images": stage.images}
        for stage in plan.stages
    ]
    content = {"sweep": sweep.name, "cells": [cell.id for cell in sweep.cells], "stages": stages}
    store.files.write(f"{folder}/plan.json", (json.dumps(content, indent=1) + "\n").encode())
    cells = [asdict(record) for record in CellRecord.of_sweep(sweep)]
    latest = json.dumps({"sweep": sweep.name, "sweep_id": sweep.id, "cells": cells})
    store.files.write(latest_path(sweep.name), latest.encode())
    with ThreadPoolExecutor(16) as threads:
        for _ in threads.map(store.put_spec, (stage.spec for stage in plan.stages)):
            pass


def _failure_path(sweep: Sweep, plan: Plan, unit: Unit) -> str:
    stage = plan.stages[unit.stage]
    return f"sweeps/{sweep.id}/failures/{stage.id}-{stage.chunks[unit.chunk].name}.json"


def _record_failure(sweep: Sweep, plan: Plan, store: Store, failure: Failure) -> None:
    content = {
        "unit": describe(plan, failure.unit),
        "attempts": failure.attempts,
        "error": failure.error,
        "traceback": failure.traceback,
    }
    store.files.write(_failure_path(sweep, plan, failure.unit), json.dumps(content, indent=1).encode())


def failures(sweep: Sweep, store: Store) -> list[dict[str, Any]]:
    """Quarantined units of the last runs of a sweep."""
    folder = f"sweeps/{sweep.id}/failures"
    return [json.loads(store.files.read(f"{folder}/{name}")) for name in store.files.names(folder)]
