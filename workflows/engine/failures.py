"""Quarantined units of a sweep: written when a unit is given up, read by ``puregrid status``."""

import contextlib
import json
from dataclasses import dataclass

from defense.redaction import redacted
from workflows.grid.load import Sweep
from workflows.planning.plan import Plan, Unit
from workflows.planning.scheduler import Failure
from workflows.store import Record, Store
from workflows.store.record import Count

__all__ = ["FailureRecord", "describe", "failure_path", "failures", "record_failure"]


@dataclass(frozen=True)
class FailureRecord(Record):
    """The record of a quarantined unit in the store.

    Arguments:
        unit: The unit, in words.
        attempts: How often it was tried.
        error: The last cause, one line.
        traceback: The last traceback, or "" where there is none (a killed or stuck process).
        final: Whether the input is to blame, which must be corrected first.
    """

    unit: str
    attempts: Count
    error: str
    traceback: str
    final: bool = False


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
    unit = describe(plan, failure.unit)
    record = FailureRecord(unit, failure.attempts, failure.error, failure.traceback, failure.final)
    content = redacted(json.dumps(record.to_json(), indent=1))
    store.files.write(failure_path(sweep, plan, failure.unit), content.encode())


def failures(sweep: Sweep, store: Store) -> list[FailureRecord]:
    """Return the quarantined units of the last runs of a sweep."""
    folder = f"sweeps/{sweep.id}/failures"
    found = []
    for name in store.files.names(folder):
        with contextlib.suppress(FileNotFoundError):  # its unit was committed in this moment
            found.append(_read(store, f"{folder}/{name}"))
    return found


def _read(store: Store, path: str) -> FailureRecord:
    """The record at a path; of a damaged one that it is damaged, since the unit did fail."""
    try:
        return FailureRecord.from_text(store.files.read(path))
    except ValueError as error:
        name = path.rpartition("/")[2].removesuffix(".json")
        return FailureRecord(name, 0, f"the record of its failure is damaged ({error}); run the sweep again", "")
