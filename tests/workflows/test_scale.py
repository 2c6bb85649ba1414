"""A plan of a million units: planned, scheduled and drained by a driver of bounded time and memory."""

from __future__ import annotations

import resource
import time

import pytest
from naps import Nap, plan_of

from workflows.planning.costs import missing_work
from workflows.planning.plan import Committed
from workflows.planning.scheduler import Scheduler

CHUNKS = 100


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize(
    "stages", [pytest.param(1000, marks=pytest.mark.slow), pytest.param(10_000, marks=pytest.mark.nightly)]
)
def test_a_million_units_are_planned_and_handed_out_once_each(stages: int) -> None:
    """By day a tenth of them, and a tenth of the bounds; a price that grows with their number is shown below."""
    before, began = peak_mib(), time.process_time()
    plan = plan_of([Nap(number=number) for number in range(stages)], CHUNKS)
    nothing = Committed(plan)
    scheduler = Scheduler(nothing)
    assert scheduler.take(None) is not None
    planned = time.process_time() - began
    assert plan.units == scheduler.remaining == stages * CHUNKS
    assert missing_work(nothing) == 2 * plan.units  # two images a unit, one evaluation each

    seen = bytearray(plan.units)
    seen[0] = 1
    began = time.process_time()
    while (unit := scheduler.take("")) is not None:
        place = unit.stage * CHUNKS + unit.chunk
        assert not seen[place]
        seen[place] = 1
        scheduler.succeeded(unit)
    drained = time.process_time() - began
    assert all(seen) and scheduler.remaining == 1
    # Seconds of processor, which other programs do not lengthen much; measured: 2 and 4.
    assert planned < stages / 1000 and drained < stages / 250
    assert peak_mib() - before < 500


@pytest.mark.slow
def test_the_price_of_a_unit_does_not_grow_with_the_number_of_stages() -> None:
    def price(stages: int) -> float:
        plan = plan_of([Nap(number=number) for number in range(stages)], 20_000 // stages)
        scheduler = Scheduler(Committed(plan))
        began = time.process_time()
        while (unit := scheduler.take("")) is not None:
            scheduler.succeeded(unit)
        return (time.process_time() - began) / 20_000

    few, many = (min(price(stages) for _ in range(3)) for stages in (10, 5_000))
    assert many < 5 * few  # a search through all stages makes it some hundred times


@pytest.mark.slow
def test_readers_of_one_source_become_ready_in_time_proportional_to_their_number() -> None:
    source = Nap(number=0)
    plan = plan_of([Nap(number=number, source=source) for number in range(1, 2_001)], 10)
    scheduler = Scheduler(Committed(plan))
    began = time.process_time()
    count = 0
    while (unit := scheduler.take("")) is not None:
        scheduler.succeeded(unit)
        count += 1
    assert count == plan.units == 2_001 * 10
    assert time.process_time() - began < 5
