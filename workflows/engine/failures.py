"""Quarantined units of a sweep: written when a unit is given up, read by ``puregrid status``."""

from __future__ import annotations

import json
from dataclasses import dataclass

from workflows.grid.load import Sweep
from workflows.planning.plan import Plan, Unit
from workflows.planning.scheduler import Failure
from workflows.store import Record, Store

__all__ = ["FailureRecord", "describe", "failure_path", "failures", "record_failure"]


@dataclass(frozen=True)
class FailureRecord(Record):
    """The record of a quarantined unit in the store.

    Arguments:
        unit: The unit, in words.
        attempts: How often it was tried.
        error: The last cause, one line.
        traceback: The last traceback, or "" where there is none (a killed or stuck process).
    """

    unit: str
    attempts: int
    error: str
    traceback: str


def describe(plan: Plan, unit: Unit) -> str:
    """Describe a unit for messages."""
    stage = plan.stages[unit.stage]
    chunk = stage.chunks[unit.chunk]
    return f"{stage.spec.stage} {stage.id} chunk {chunk.name}"


def failure_path(sweep: Sweep, plan: Plan, unit: Unit) -> str:
    """Return where the store records the failure of a unit."""
    stage = plan.stages[unit.stage]
    return f"sweeps/{sweep.id}/failures/{stage.id}-{stage.chunks[unit.chunk].name}.json"


def record_failure(sweep: Sweep, plan: Plan, store: Store, failure: Failure) -> None:
    """Record that a unit is quarantined, with its traceback."""
    record = FailureRecord(describe(plan, failure.unit), failure.attempts, failure.error, failure.traceback)
    content = json.dumps(record.to_json(), indent=1)
    store.files.write(failure_path(sweep, plan, failure.unit), content.encode())


def failures(sweep: Sweep, store: Store) -> list[FailureRecord]:
    """Return the quarantined units of the last runs of a sweep."""
    folder = f"sweeps/{sweep.id}/failures"
    names = store.files.names(folder)
    return [FailureRecord.from_json(json.loads(store.files.read(f"{folder}/{name}"))) for name in names]
