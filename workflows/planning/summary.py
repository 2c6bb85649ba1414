"""Summarise a plan: its stages, its committed units, and the cost of the rest.

It is what ``puregrid plan`` and ``puregrid status`` print, and their JSON.
"""

from dataclasses import dataclass

from workflows.grid.load import Sweep
from workflows.planning.changed_code import changed_code
from workflows.planning.forecast import Forecast, default_workers, predict
from workflows.planning.machine import Footprint, footprint, machine_notices
from workflows.planning.plan import Committed, Plan, PlannedStage
from workflows.planning.stopping import needed
from workflows.store import Record, Store

__all__ = ["PlanSummary", "StageSummary", "notices", "summarise"]


@dataclass(frozen=True)
class StageSummary(Record):
    """A stage of a plan.

    Arguments:
        id: Its content id.
        stage: Kind of stage.
        what: What it is, in words.
        images: Images of all its units.
        units: Its units.
        committed: How many of them are committed.
        inputs: Ids of the stages that it reads.
        seconds: Compute of the units that are missing; None if their cost is unknown.
        seconds_half_interval: Half the width of its 95 % interval; None for fewer than three measured units.
        spared: How many of its units are not needed, because the answers of its cells are precise enough.
        kind: Kind of its units, in words; those of all corruptions are one here.
    """

    id: str
    stage: str
    what: str
    images: int
    units: int
    committed: int
    inputs: tuple[str, ...]
    seconds: float | None
    seconds_half_interval: float | None
    spared: int = 0
    kind: str = ""

    @property
    def missing(self) -> int:
        """Units that need work."""
        return self.units - self.committed - self.spared


@dataclass(frozen=True)
class PlanSummary(Record):
    """A plan, its committed units, and a prediction of the rest.

    Arguments:
        sweep: Name of the sweep.
        sweep_id: Its id.
        cells: Its cells.
        units: Units that the cells ask for.
        distinct: How many of these are distinct.
        committed: How many of those are committed.
        missing: How many are not, and may be needed.
        evaluations: Network evaluations of those.
        estimated_seconds: Their compute, summed over workers; None if it is not known of every kind of unit.
        forecast: The prediction, None likewise.
        stages: The stages, every input before its readers.
        notices: What a reader should know before it runs: files that are left out of data sets, units that other code
            has computed.
        spared: How many of the distinct units are not needed, because the answers of their cells are precise enough.
        footprint: Memory of the batches that take most; None where no unit like them has said what it took.
    """

    sweep: str
    sweep_id: str
    cells: int
    units: int
    distinct: int
    committed: int
    missing: int
    evaluations: int
    estimated_seconds: float | None
    forecast: Forecast | None
    stages: tuple[StageSummary, ...]
    notices: tuple[str, ...] = ()
    spared: int = 0
    footprint: Footprint | None = None

    def to_json(self) -> dict[str, object]:
        """See :class:`Record`; the prediction as in :meth:`Forecast.shown`."""
        return {**super().to_json(), "forecast": None if self.forecast is None else self.forecast.shown()}


def summarise(
    sweep: Sweep,
    plan: Plan,
    store: Store,
    *,
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    gpu: bool | None = None,
    guess: bool = False,
) -> PlanSummary:
    """Summarise a plan, and predict the cost of its missing units in a store.

    Arguments:
        sweep: The sweep.
        plan: Its plan.
        store: Where commits are, and what they took.
        workers: Workers of the predicted run; by default as many as this machine has room for.
        gpus_per_worker: GPUs of each.
        gpu: Believe commits of GPUs only (True) or of processors only (False); None believes all.
        guess: Guess the cost of kinds that this store has never measured, see :mod:`workflows.planning.shipped`.
    """
    committed = plan.committed(store)
    needed(sweep, plan, committed, store)
    threads = max(stage.spec.settings().threads for stage in plan.stages)
    workers = workers or default_workers(threads, gpus_per_worker)
    damaged: list[str] = []
    forecast, costs = predict(
        committed,
        store,
        sweep.id,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        gpu=gpu,
        damaged=damaged,
        guess=guess,
    )
    stages = tuple(
        StageSummary(
            id=stage.id,
            stage=stage.spec.stage,
            what=stage.spec.label(),
            kind=_kind(stage),
            images=stage.images,
            units=len(stage.chunks),
            committed=len(done) - committed.spared_of(position),
            spared=committed.spared_of(position),
            inputs=tuple(plan.stages[position].id for position in stage.inputs.values()),
            seconds=None if cost is None else round(cost.seconds, 4),
            seconds_half_interval=None if cost is None or cost.half is None else round(cost.half, 4),
        )
        for position, ((stage, done), cost) in enumerate(zip(committed.by_stage(), costs, strict=True))
    )
    return PlanSummary(
        sweep=sweep.name,
        sweep_id=sweep.id,
        cells=len(sweep.cells),
        units=plan.requested,
        distinct=plan.units,
        committed=len(committed),
        missing=committed.missing,
        evaluations=int(sum(map(plan.work, committed.missing_units()))),
        estimated_seconds=None if forecast is None else round(forecast.compute_seconds, 1),
        forecast=forecast,
        stages=stages,
        notices=(
            *notices(sweep, plan, store),
            *machine_notices(plan, committed, gpus=gpus_per_worker),
            *damaged,
            *_may_stop(sweep, committed),
        ),
        spared=committed.spared,
        footprint=None if forecast is None else footprint(committed, dict(forecast.costs), workers, gpus_per_worker),
    )


def _kind(stage: PlannedStage) -> str:
    kind = stage.spec.kind
    return kind.name if stage.spec.components.corruption is None else kind.name.replace(kind.threat, "corruptions", 1)


def _may_stop(sweep: Sweep, committed: Committed) -> list[str]:
    """Return that a sweep may need other units than are missing."""
    if not committed.missing:
        return []
    notes = []
    if sweep.converges:
        notes.append("attacks with `converge` may need further cells, which depend on what these show")
    elif sweep.questions:
        notes.append(
            "cells stop as soon as their answers are precise enough, so units and seconds to compute are upper bounds"
        )
    if any(cell.defence.until is not None for cell in sweep.cells):
        notes.append("draws stop where the answer of an image is certain (`until`), so evaluations are upper bounds")
    return notes


def notices(sweep: Sweep, plan: Plan, store: Store) -> tuple[str, ...]:
    """Return notices to read before a sweep runs: what data sets leave out, and which code has changed."""
    datasets = {cell.images.dataset.id: cell.images.dataset for cell in sweep.cells}
    left_out = [notice for dataset in datasets.values() for notice in dataset.notices()]
    return (*left_out, *changed_code(plan, store))
