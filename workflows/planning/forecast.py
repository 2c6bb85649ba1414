"""How long a sweep will take: measured costs, played through the scheduler that will hand out the units.

Virtual workers take units as real ones do, with the same dependencies and the same preference for loaded models, each
unit for as long as :mod:`workflows.planning.costs` expects. This includes the end, when the last long units leave
workers idle, and the loading of models, once per worker. What Ray and the workers take to start, and what a unit
takes beside its compute (reading, committing, messages), are those of the last run in this store.
"""

import heapq
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from tasks.stages.kind import Kind
from workflows.monitoring.run_record import read_runs
from workflows.planning.costs import Cost, costs_of, interval, kinds_of, unit_work
from workflows.planning.machine import workers_on
from workflows.planning.plan import Committed, Unit
from workflows.planning.scheduler import Scheduler
from workflows.planning.shipped import shipped_costs
from workflows.store import Record, Store
from workflows.store.record import Count, Seconds, Share

__all__ = ["Forecast", "StageCost", "default_workers", "forecast", "predict", "read_forecast", "write_forecast"]

_PLAYED = 200_000
"""Of more units than this the schedule is not played: their seconds are divided by the workers."""


@dataclass(frozen=True)
class StageCost:
    """The remaining work of one stage.

    Arguments:
        units: Missing units.
        seconds: Their compute.
        half: Half the width of its 95 % interval, or None of fewer than three measured units.
    """

    units: int
    seconds: float
    half: float | None


@dataclass(frozen=True)
class Forecast(Record):
    """A prediction, and everything that it was made from.

    Arguments:
        workers: Number of workers.
        gpus_per_worker: GPUs of each.
        units: Units that were missing.
        compute_seconds: Their compute, summed over workers.
        wall_seconds: From the start of Ray to the last commit.
        low: Lower end of the 95 % interval of the wall time, for the spread between units; None if unknown.
        high: Its upper end.
        startup_seconds: In it: until the workers were ready, in the last run.
        overhead_seconds: In it, per unit: reading, committing, messages, in the last run.
        measured: Units that it is based on.
        costs: Cost of each kind of unit that was missing.
        made: When, in UTC.
    """

    workers: Count
    gpus_per_worker: Share
    units: Count
    compute_seconds: Seconds
    wall_seconds: Seconds
    low: Seconds | None
    high: Seconds | None
    startup_seconds: Seconds | None
    overhead_seconds: Seconds
    measured: Count
    costs: tuple[tuple[Kind, Cost], ...]
    made: str

    @property
    def gpu_hours(self) -> float:
        """GPUs x hours that the run holds them."""
        return self.workers * self.gpus_per_worker * self.wall_seconds / 3600

    def shown(self) -> dict[str, object]:
        """Return the prediction and the measured cost of each kind of unit, for people and scripts."""
        content = self.to_json()
        del content["costs"]
        kinds = [{"kind": kind.name, **asdict(cost)} for kind, cost in self.costs]
        return {**content, "gpu_hours": self.gpu_hours, "kinds": kinds}


def default_workers(threads: int, gpus_per_worker: float = 0.0) -> int:
    """Return as many workers as this machine has processors for ``threads`` each, and shares of GPUs."""
    workers = max(1, len(os.sched_getaffinity(0)) // threads)
    if gpus_per_worker:
        import torch

        return max(1, min(workers, workers_on(torch.cuda.device_count(), gpus_per_worker)))
    return workers


def predict(
    committed: Committed,
    store: Store,
    sweep_id: str,
    *,
    workers: int,
    gpus_per_worker: float = 0.0,
    gpu: bool | None = None,
    damaged: list[str] | None = None,
    guess: bool = False,
) -> tuple[Forecast | None, list[StageCost | None]]:
    """:func:`forecast` from what this store has measured, on GPUs, processors, or with ``gpu=None`` on whatever.

    Messages about commits that cannot be read are added to ``damaged``. With ``guess`` kinds that were never measured
    are taken from :mod:`workflows.planning.shipped`, which knows processors alone; they have no measured unit.
    """
    costs = costs_of(committed, store, gpu=gpu, damaged=damaged)
    if guess and not gpus_per_worker and not gpu:
        stages = enumerate(kinds_of(committed.plan))
        missing = {kind for position, kind in stages if committed.missing_of(position)}
        costs |= shipped_costs(missing - costs.keys())
    startup, overhead = None, 0.0
    for record in read_runs(store, sweep_id):
        measured = record.accounts
        if gpu in (None, record.gpus_per_worker > 0) and measured.overhead_seconds is not None:
            startup, overhead = measured.startup_seconds, measured.overhead_seconds
    return forecast(
        committed,
        costs,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        startup_seconds=startup,
        overhead_seconds=overhead,
    )


def forecast(
    committed: Committed,
    costs: Mapping[Kind, Cost],
    *,
    workers: int,
    gpus_per_worker: float = 0.0,
    startup_seconds: float | None = None,
    overhead_seconds: float = 0.0,
) -> tuple[Forecast | None, list[StageCost | None]]:
    """Predict what is missing; None, and None for its stages, where a kind of unit was never measured.

    Arguments:
        committed: The units of the plan that are committed.
        costs: Measured costs.
        workers: Number of workers.
        gpus_per_worker: GPUs of each.
        startup_seconds: Until the workers are ready; None if never measured.
        overhead_seconds: Per unit, beside its compute.
    """
    kinds = kinds_of(committed.plan)
    stages: list[StageCost | None] = []
    works: dict[Kind, tuple[float, float]] = {}
    for kind, (stage, done) in zip(kinds, committed.by_stage(), strict=True):
        missing = list(unit_work(stage, done))
        total, squares = sum(missing), sum(work * work for work in missing)
        cost = costs.get(kind)
        stages.append(
            None if cost is None else StageCost(len(missing), cost.rate * total, interval(cost, total, squares))
        )
        if missing:
            before = works.get(kind, (0.0, 0.0))
            works[kind] = before[0] + total, before[1] + squares
    if not works.keys() <= costs.keys():
        return None, stages
    units = committed.missing
    wall = _played(committed, costs, workers, overhead_seconds)
    wall += (startup_seconds or 0.0) if units else 0.0
    # Kinds are independent of each other; a common slowness of the machine is in none of them.
    halves = [interval(costs[kind], total, squares) for kind, (total, squares) in works.items()]
    known = [half for half in halves if half is not None]
    half = math.hypot(*known) / workers if len(known) == len(halves) else None
    return (
        Forecast(
            workers,
            gpus_per_worker,
            units,
            sum(costs[kind].rate * total for kind, (total, _) in works.items()),
            wall,
            None if half is None else max(wall - half, 0.0),
            None if half is None else wall + half,
            startup_seconds,
            overhead_seconds,
            sum(costs[kind].units for kind in works),
            tuple((kind, costs[kind]) for kind in works),
            datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        stages,
    )


def _played(
    committed: Committed,
    costs: Mapping[Kind, Cost],
    workers: int,
    overhead: float,
) -> float:
    """Return the seconds from the first unit to the last."""
    plan, units = committed.plan, committed.missing
    kinds = kinds_of(plan)
    if units > _PLAYED:
        total = sum(
            costs[kind].rate * sum(unit_work(stage, done))
            for kind, (stage, done) in zip(kinds, committed.by_stage(), strict=True)
            if len(done) < len(stage.chunks)
        )
        loading = {kind.model: costs[kind].loading for kind in kinds if kind in costs}
        return (total + units * overhead) / workers + sum(loading.values())
    scheduler = Scheduler(committed)
    work_per_image = [stage.spec.work_per_image() or 1.0 for stage in plan.stages]
    loaded: list[str | None] = [None] * workers
    held: list[set[str]] = [set() for _ in range(workers)]
    idle, now = list(range(workers)), 0.0
    busy: list[tuple[float, int, int, Unit]] = []
    while True:
        while idle and (unit := scheduler.take(loaded[idle[0]])) is not None:
            worker, kind = idle.pop(0), kinds[unit.stage]
            cost = costs[kind]
            seconds = (
                cost.rate * work_per_image[unit.stage] * len(plan.stages[unit.stage].chunks[unit.chunk].ids)
                + overhead
            )
            if kind.model not in held[worker]:
                held[worker].add(kind.model)
                seconds += cost.loading
            loaded[worker] = kind.model
            heapq.heappush(busy, (now + seconds, worker, unit.stage, unit))
        if not busy:
            return now
        now, worker, _, unit = heapq.heappop(busy)
        scheduler.succeeded(unit)
        idle.append(worker)


def _path(sweep_id: str) -> str:
    return f"sweeps/{sweep_id}/forecast.json"


def write_forecast(store: Store, sweep_id: str, prediction: Forecast) -> None:
    """Record the prediction, which the run is compared with."""
    store.files.write(_path(sweep_id), (json.dumps(prediction.to_json(), indent=1) + "\n").encode())


def read_forecast(store: Store, sweep_id: str) -> Forecast | None:
    """Return the last recorded prediction of a sweep, or None without one that this version can read."""
    try:
        return Forecast.from_text(store.files.read(_path(sweep_id)))
    except FileNotFoundError:
        return None
    except ValueError:  # a prediction of another version is no reason to stop
        return None
