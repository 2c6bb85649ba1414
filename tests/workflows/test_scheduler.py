"""The scheduler against a model of it, on random plans, with random successes, failures and deaths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.compute import Context
from tasks.stages import Chunk, Output, StageSpec
from workflows.planning.plan import Committed, Plan, PlannedStage, Unit
from workflows.planning.scheduler import MAX_LOSSES, Failure, Scheduler


class Fake(StageSpec):
    """A stage with a number, a model and nothing to compute."""

    stage: Literal["evaluate"] = "evaluate"
    version: Literal[1] = 1
    number: int
    model: str

    def model_key(self) -> str:
        return self.model

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        raise AssertionError("the scheduler computes nothing")


def make(models: str, inputs: list[list[int]], chunks: int) -> Plan:
    """A plan whose stage i has the model ``models[i]`` and reads the stages ``inputs[i]``."""
    ids = tuple(Chunk((i,)) for i in range(chunks))
    stages = []
    for number, (model, sources) in enumerate(zip(models, inputs, strict=True)):
        spec = Fake(number=number, model=model)
        roles = {f"role{i}": source for i, source in enumerate(sources)}
        stages.append(PlannedStage(spec, spec.id, roles, ids, chunks))
    return Plan(stages, sum(len(stage.chunks) for stage in stages))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Up to five stages on up to three models; a stage may read several earlier ones, or one in two roles."""
    count = draw(st.integers(1, 5))
    models = "".join(draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count)))
    inputs = [draw(st.lists(st.integers(0, i - 1), max_size=2)) if i else [] for i in range(count)]
    return make(models, inputs, draw(st.integers(1, 4)))


def all_units(plan: Plan) -> list[Unit]:
    return [Unit(i, chunk) for i, stage in enumerate(plan.stages) for chunk in range(len(stage.chunks))]


def sources(plan: Plan, unit: Unit) -> set[Unit]:
    return {Unit(source, unit.chunk) for source in plan.stages[unit.stage].inputs.values()}


@given(plan=plans(), data=st.data())
def test_every_unit_succeeds_once_or_is_quarantined_or_blocked(plan: Plan, data: st.DataObject) -> None:
    units = all_units(plan)
    max_attempts = data.draw(st.integers(1, 3), "max attempts")
    committed = data.draw(st.sets(st.sampled_from(units)), "committed")
    troubles = {unit: data.draw(st.integers(0, 4), f"failures of {unit}") for unit in units}
    scheduler = Scheduler(
        Committed(plan, [{u.chunk for u in committed if u.stage == i} for i in range(len(plan.stages))]), max_attempts
    )
    assert scheduler.remaining == len(units) - len(committed)

    done, quarantined, running = set(committed), set[Unit](), list[Unit]()
    attempts, succeeded = Counter[Unit](), Counter[Unit]()

    def ready() -> set[Unit]:
        return {u for u in units if not {u} & (done | quarantined | set(running)) and sources(plan, u) <= done}

    while ready() or running:
        possible = ready()
        assert scheduler.has_ready() is bool(possible)
        if possible and (not running or data.draw(st.booleans(), "start another")):
            loaded = data.draw(st.sampled_from([None, "a", "b", "c"]), "loaded")
            fresh = {u for u in possible if not attempts[u]}
            if not fresh:  # what failed before waits for a worker of its own
                assert scheduler.take(loaded, alone=False) is None
            unit = scheduler.take(loaded, alone=not fresh or data.draw(st.booleans(), "alone"))
            assert unit in (fresh or possible)
            assert unit is not None and scheduler.suspect(unit) is bool(attempts[unit])
            assert scheduler.key(unit) == plan.stages[unit.stage].spec.model_key()
            if any(scheduler.key(u) == loaded for u in fresh):
                assert scheduler.key(unit) == loaded
            running.append(unit)
            continue
        if not possible:
            assert scheduler.take("a") is None
        unit = running.pop(data.draw(st.integers(0, len(running) - 1), "who ends"))
        if data.draw(st.sampled_from([False, False, False, True]), "its worker died before it"):
            scheduler.put_back(unit)
        elif attempts[unit] < troubles[unit]:
            attempts[unit] += 1
            failure = scheduler.failed(unit, f"error {attempts[unit]}", f"trace {attempts[unit]}")
            if attempts[unit] == max_attempts:
                assert failure == Failure(unit, max_attempts, f"error {max_attempts}", f"trace {max_attempts}")
                quarantined.add(unit)
            else:
                assert failure is None
        else:
            scheduler.succeeded(unit)
            succeeded[unit] += 1
            done.add(unit)

    assert scheduler.take(None) is None and not scheduler.has_ready()
    # A unit runs unless it is committed, or something that it needs was quarantined or itself not run.
    blocked = set[Unit]()
    for unit in units:
        if unit not in committed and sources(plan, unit) & (quarantined | blocked):
            blocked.add(unit)
    wanted = set(units) - committed - blocked
    assert {u for u in wanted if troubles[u] >= max_attempts} == quarantined
    assert succeeded == Counter(wanted - quarantined)
    assert not set(attempts) - wanted
    assert {failure.unit for failure in scheduler.failures} == quarantined
    assert len(scheduler.failures) == len(quarantined)
    assert scheduler.retries == sum(attempts.values()) - len(quarantined)
    assert scheduler.remaining == len(quarantined) + len(blocked)


def drain(scheduler: Scheduler, loaded: str | None = None) -> list[Unit]:
    taken = []
    while (unit := scheduler.take(loaded)) is not None:
        taken.append(unit)
    return taken


def test_a_worker_gets_units_of_its_loaded_model_first() -> None:
    plan = make("aab", [[], [], []], 2)
    found = [unit.stage for unit in drain(Scheduler(Committed(plan)), "b")]
    assert found[:2] == [2, 2] and sorted(found[2:]) == [0, 0, 1, 1]


def test_a_worker_with_nothing_loaded_gets_sources_before_readers_then_the_longest_queue() -> None:
    # Stage 0 feeds stage 1; stages 2 and 3 stand alone, 3 has more left to do.
    plan = make("abcd", [[], [0], [], []], 4)
    committed = Committed(plan, [{0, 1, 2}, set(), {0, 1}, set()])
    scheduler = Scheduler(committed)
    assert [scheduler.take(None), scheduler.take(None)] == [Unit(0, 3), Unit(3, 0)]
    # Affinity goes before both.
    assert Scheduler(committed).take("c") == Unit(2, 2)


def test_a_reader_is_ready_only_when_its_own_chunk_is() -> None:
    plan = make("ab", [[], [0]], 3)
    scheduler = Scheduler(Committed(plan))
    taken = drain(scheduler)
    assert taken == [Unit(0, 0), Unit(0, 1), Unit(0, 2)]
    scheduler.succeeded(Unit(0, 1))
    assert drain(scheduler) == [Unit(1, 1)]
    scheduler.succeeded(Unit(0, 2))
    scheduler.succeeded(Unit(0, 0))
    assert drain(scheduler) == [Unit(1, 2), Unit(1, 0)]


def test_a_reader_with_two_inputs_waits_for_both_and_comes_once() -> None:
    for inputs in ([0, 1], [1, 0], [0, 0]):
        scheduler = Scheduler(Committed(make("abc", [[], [], inputs], 1)))
        assert set(drain(scheduler)) == {Unit(0, 0), Unit(1, 0)}
        scheduler.succeeded(Unit(0, 0))
        early = drain(scheduler)
        scheduler.succeeded(Unit(1, 0))
        late = drain(scheduler)
        assert (early, late) == (([Unit(2, 0)], []) if inputs == [0, 0] else ([], [Unit(2, 0)]))


def test_committed_sources_make_their_readers_ready_at_once() -> None:
    scheduler = Scheduler(Committed(make("ab", [[], [0]], 3), [{0, 2}, {2}]))
    assert scheduler.remaining == 3
    assert set(drain(scheduler)) == {Unit(0, 1), Unit(1, 0)}


def test_a_failed_unit_goes_to_the_back_and_one_that_never_started_to_the_front() -> None:
    scheduler = Scheduler(Committed(make("a", [[]], 4)))
    first, second = scheduler.take(None), scheduler.take(None)
    assert first == Unit(0, 0) and second == Unit(0, 1)
    assert scheduler.failed(first, "broken") is None
    scheduler.put_back(second)
    assert drain(scheduler) == [Unit(0, 1), Unit(0, 2), Unit(0, 3), Unit(0, 0)]


def test_a_failed_unit_waits_for_a_worker_that_holds_no_other() -> None:
    scheduler = Scheduler(Committed(make("a", [[]], 2)))
    unit = scheduler.take(None)
    assert unit is not None
    scheduler.failed(unit, "broken")
    assert scheduler.take("a", alone=False) == Unit(0, 1)
    assert scheduler.take("a", alone=False) is None and scheduler.has_ready()
    assert scheduler.take("b", alone=True) == unit and scheduler.suspect(unit)
    scheduler.put_back(unit)
    assert scheduler.take("a", alone=False) is None and scheduler.take("a") == unit


@pytest.mark.parametrize("max_attempts", [1, 2, 5])
def test_putting_back_is_no_attempt(max_attempts: int) -> None:
    scheduler = Scheduler(Committed(make("a", [[]], 1)), max_attempts)
    unit = Unit(0, 0)
    for attempt in range(1, max_attempts + 1):
        for _ in range(3):
            assert scheduler.take(None) == unit
            scheduler.put_back(unit)
        assert scheduler.take(None) == unit
        failure = scheduler.failed(unit, "broken")
        assert (failure is not None) is (attempt == max_attempts)
    assert scheduler.failures == [Failure(unit, max_attempts, "broken", "")]
    assert scheduler.retries == max_attempts - 1 and scheduler.take(None) is None


def test_a_plan_merges_equal_stages_and_keeps_others_apart() -> None:
    plan = Plan()
    chunks, fewer = (Chunk((0, 1)), Chunk((2,))), (Chunk((7, 8)),)

    class Reading(Fake):
        source: Fake

        def inputs(self) -> dict[str, StageSpec]:
            return {"source": self.source}

    source = Fake(number=0, model="a")
    one, two = (Reading(number=number, model="b", source=source) for number in (1, 2))
    assert [plan.add(spec, chunks) for spec in (one, two, one, source)] == [1, 2, 1, 0]
    assert plan.add(one, fewer) == 4  # other images of the same data set: the stage once more, with its input
    assert [(stage.id, stage.inputs, stage.images) for stage in plan.stages] == [
        (source.id, {}, 3),
        (one.id, {"source": 0}, 3),
        (two.id, {"source": 0}, 3),
        (source.id, {}, 2),
        (one.id, {"source": 3}, 2),
    ]
    assert plan.units == 8
    assert plan.requested == 2 * (2 + 2 + 2 + 1) + 1 * 2


def test_a_batch_is_of_one_stage_and_no_unit_is_in_two() -> None:
    scheduler = Scheduler(Committed(make("ab", [[], []], 5)))
    first = scheduler.take("a")
    assert first == Unit(0, 0) and scheduler.more(first, 2) == [Unit(0, 1), Unit(0, 2)]
    assert scheduler.ready == 7
    assert scheduler.more(first, 99) == [Unit(0, 3), Unit(0, 4)] and scheduler.more(first, 1) == []
    assert {unit.stage for unit in drain(scheduler, "a")} == {1} and scheduler.ready == 0


def test_what_another_driver_has_committed_is_not_handed_out_and_its_readers_are_ready() -> None:
    scheduler = Scheduler(Committed(make("ab", [[], [0]], 4)))
    running = scheduler.take(None)
    assert running == Unit(0, 0)
    assert scheduler.committed_elsewhere(0, {0, 1, 3}) == [Unit(0, 1), Unit(0, 3)]  # 0 runs here: its receipt decides
    assert scheduler.committed_elsewhere(0, {0, 1, 3}) == []
    assert scheduler.remaining == 6
    assert set(drain(scheduler)) == {Unit(0, 2), Unit(1, 1), Unit(1, 3)}


def test_beside_another_driver_chunks_come_in_random_order_and_each_once() -> None:
    plan = make("a", [[]], 50)
    orders = set()
    for _ in range(5):
        scheduler = Scheduler(Committed(plan))
        scheduler.shared = True
        order = tuple(unit.chunk for unit in drain(scheduler))
        assert sorted(order) == list(range(50))
        orders.add(order)
    assert len(orders) == 5  # 50! orders: two equal ones are a defect


def test_lost_nodes_are_no_attempts_until_they_are_many() -> None:
    scheduler = Scheduler(Committed(make("a", [[]], 1)), max_attempts=1)
    for _ in range(MAX_LOSSES - 1):
        assert scheduler.take(None) == Unit(0, 0)
        assert scheduler.node_lost(Unit(0, 0), "its node was lost") is None
    assert scheduler.lost == MAX_LOSSES - 1 and scheduler.retries == 0
    assert scheduler.take(None) == Unit(0, 0)
    failure = scheduler.node_lost(Unit(0, 0), "its node was lost")
    assert failure is not None and failure.error.startswith(f"{MAX_LOSSES} nodes were lost while it ran")
    assert scheduler.take(None) is None


def test_what_is_committed_is_a_set_of_units_that_knows_what_is_missing() -> None:
    plan = make("ab", [[], [0]], 3)
    committed = Committed(plan, [{0, 2}, {2}])
    assert list(committed) == [Unit(0, 0), Unit(0, 2), Unit(1, 2)]
    assert (len(committed), committed.missing, committed.missing_of(0), committed.missing_of(1)) == (3, 3, 1, 2)
    assert list(committed.missing_units()) == [Unit(0, 1), Unit(1, 0), Unit(1, 1)]
    committed.add(Unit(0, 1))
    committed.discard(Unit(1, 2))
    assert Unit(0, 1) in committed and Unit(1, 2) not in committed
    assert committed.of(0) == {0, 1, 2} and committed.of(1) == set()
    assert committed == Committed.all_but(plan, [Unit(1, chunk) for chunk in range(3)])
    assert committed != Committed(plan) and Committed(plan).missing == plan.units
    with pytest.raises(ValueError, match="the plan has 2 stages, and chunks are given of 1"):
        Committed(plan, [set()])
