"""How long units take: the rest of a sweep, from what its store has measured; the next unit, from this run.

The cost of a unit is taken as proportional to images x network evaluations, with one rate per kind of stage and
model, measured by the commits in the store. Where nothing comparable is committed the estimate says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from workflows.plan import Plan, PlannedStage, Unit
from workflows.store import Store

__all__ = ["Pace", "missing_work", "remaining_seconds"]

_SAMPLE = 8
"""Commits read per stage to measure its rate."""


def remaining_seconds(plan: Plan, committed: Sequence[set[int]], store: Store) -> tuple[float, bool]:
    """Compute seconds of the units that are missing, and whether every one of them could be estimated.

    Divide by the number of workers for the time to wait.
    """
    rates: dict[tuple[str, str], list[float]] = {}
    for stage, done in zip(plan.stages, committed, strict=True):
        for chunk in sorted(done)[:_SAMPLE]:
            name = stage.chunks[chunk].name
            commit = store.committed(stage.spec.stage, stage.id, name)
            if commit is not None:
                rates.setdefault(_kind(stage), []).append(commit.seconds / (commit.rows * _per_image(stage)))
    total, known = 0.0, True
    for stage, done in zip(plan.stages, committed, strict=True):
        images = _missing_images(stage, done)
        measured = rates.get(_kind(stage))
        if measured:
            total += images * _per_image(stage) * sum(measured) / len(measured)
        elif images:
            known = False
    return total, known


def missing_work(plan: Plan, committed: Sequence[set[int]]) -> float:
    """Network evaluations of all units that are missing."""
    # Stage by stage: a plan may have a million units.
    return sum(
        _missing_images(stage, done) * stage.spec.work_per_image()
        for stage, done in zip(plan.stages, committed, strict=True)
    )


def _missing_images(stage: PlannedStage, done: set[int]) -> int:
    return stage.images - sum(len(stage.chunks[chunk].ids) for chunk in done)


def _per_image(stage: PlannedStage) -> float:
    # A stage that asks no network is measured by the image.
    return stage.spec.work_per_image() or 1.0


class Pace:
    """What units have taken in this run, with reading, writing and loading, as the driver saw it.

    Arguments:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rates: dict[tuple[str, str], float] = {}

    def took(self, unit: Unit, seconds: float) -> None:
        """A unit has finished. Recent ones count most: the first of a worker loads models."""
        rate = seconds / self._cost(unit)
        kind = _kind(self._plan.stages[unit.stage])
        self._rates[kind] = 0.8 * self._rates.get(kind, rate) + 0.2 * rate

    def expected(self, unit: Unit) -> float | None:
        """Seconds that a unit should take, or None if none of its kind has finished."""
        rate = self._rates.get(_kind(self._plan.stages[unit.stage]))
        return None if rate is None else rate * self._cost(unit)

    def _cost(self, unit: Unit) -> float:
        stage = self._plan.stages[unit.stage]
        return _per_image(stage) * len(stage.chunks[unit.chunk].ids)


def _kind(stage: PlannedStage) -> tuple[str, str]:
    return stage.spec.stage, stage.spec.model_key()
