"""Describe what happened to a unit, and why a worker died."""

from dataclasses import dataclass

from defense.redaction import redacted
from workflows.engine import ray_messages
from workflows.engine.worker import Receipt, Trouble, one_line
from workflows.monitoring.ledger import Place
from workflows.planning.plan import Unit

__all__ = ["Event", "cause", "event_of"]


@dataclass(frozen=True)
class Event:
    """What happened to a unit: a receipt, or an error.

    Arguments:
        unit: The unit.
        receipt: Set if it is committed.
        error: Else the cause, one line.
        traceback: The remote traceback, if the unit raised.
        started: False if the unit was only queued when its worker died; it is not to blame.
        node_lost: The worker is gone with its whole node; the unit is hardly to blame.
        doubtful: Whether it may have been running all the same: its next attempt is alone on its worker.
        unavailable: The store is to blame, and no unit would fare better.
        other_code: The worker has other code than the driver, and no attempt there would fare better.
        final: The input is to blame, and another attempt would end alike.
        seconds: From begin to end, with reading and writing, as the driver sees it.
        copy: The attempt was a second one beside a slow first one.
        place: The worker that had it.
    """

    unit: Unit
    receipt: Receipt | None = None
    error: str = ""
    traceback: str = ""
    started: bool = True
    node_lost: bool = False
    doubtful: bool = False
    unavailable: bool = False
    other_code: bool = False
    final: bool = False
    seconds: float = 0.0
    copy: bool = False
    place: Place | None = None


def event_of(unit: Unit, result: Receipt | Trouble, seconds: float, copy: bool, place: Place | None) -> Event:
    """Turn what a worker returned for a unit into an event."""
    if isinstance(result, Receipt):
        return Event(unit, result, seconds=seconds, copy=copy, place=place)
    return Event(
        unit,
        error=result.error,
        traceback=result.traceback,
        unavailable=result.unavailable,
        other_code=result.other_code,
        final=result.final,
        copy=copy,
        place=place,
    )


def cause(error: BaseException) -> str:
    """Return in one line why an actor died."""
    if ray_messages.out_of_memory(error):
        return (
            "Ray killed it because its machine ran out of memory; give fewer --workers, or a smaller chunk or "
            "compute.batch in the sweep file"
        )
    ray_cause = ray_messages.error_at_start(error) or ray_messages.death_of_actor(error)
    return one_line(error) if ray_cause is None else redacted(ray_cause)[:300]
