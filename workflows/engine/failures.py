"""Quarantined units of a sweep: written when a unit is given up, read by ``puregrid status``."""

from __future__ import annotations

import json
from typing import Any

from workflows.grid.load import Sweep
from workflows.planning.plan import Plan, Unit
from workflows.planning.scheduler import Failure
from workflows.store import Store

__all__ = ["describe", "failure_path", "failures", "record_failure"]


def describe(plan: Plan, unit: Unit) -> str:
    """A unit in words, for messages."""
    stage = plan.stages[unit.stage]
    chunk = stage.chunks[unit.chunk]
    return f"{stage.spec.stage} {stage.id} chunk {chunk.name}"


def failure_path(sweep: Sweep, plan: Plan, unit: Unit) -> str:
    """Where the failure of a unit is recorded in the store."""
    stage = plan.stages[unit.stage]
    return f"sweeps/{sweep.id}/failures/{stage.id}-{stage.chunks[unit.chunk].name}.json"


def record_failure(sweep: Sweep, plan: Plan, store: Store, failure: Failure) -> None:
    """Record that a unit is quarantined, with its traceback."""
    content = {
        "unit": describe(plan, failure.unit),
        "attempts": failure.attempts,
        "error": failure.error,
        "traceback": failure.traceback,
    }
    store.files.write(failure_path(sweep, plan, failure.unit), json.dumps(content, indent=1).encode())


def failures(sweep: Sweep, store: Store) -> list[dict[str, Any]]:
    """Quarantined units of the last runs of a sweep."""
    folder = f"sweeps/{sweep.id}/failures"
    return [json.loads(store.files.read(f"{folder}/{name}")) for name in store.files.names(folder)]
