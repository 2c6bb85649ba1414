"""A worker reads and commits beside the computation: in order, one unit at a time, and each error with its unit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
from fake_ray import fake_pool
from lab import wait_for
from naps import Nap, plan_of

from tasks.compute import Context
from tasks.stages import Chunk, Output, StageSpec
from workflows.engine.worker import Receipt, Trouble, UnitWorker
from workflows.planning.plan import Committed, Unit
from workflows.planning.scheduler import Scheduler
from workflows.store import Store

CHUNKS = tuple(Chunk((i,)) for i in range(6))
EVENTS: list[str] = []
"""What began and ended, in this process: ``compute 3``, ``computed 3``."""
HOLDS: dict[str, str] = {}
"""What does not end before something else has begun beside it."""


def note(event: str) -> None:
    if event in HOLDS:
        wait_for(lambda: HOLDS[event] in EVENTS)  # in vain where one comes after the other
    EVENTS.append(event)


READ_BESIDE = {f"computed {image}": f"read {image + 1}" for image in range(5)}


class Noted(StageSpec):
    stage: Literal["noted"] = "noted"
    version: Literal[1] = 1
    source: Nap | None = None
    raises: int = -1

    def inputs(self) -> dict[str, StageSpec]:
        return {} if self.source is None else {"source": self.source}

    @property
    def reads(self) -> str:
        return "rows"

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        (image,) = chunk.ids
        note(f"compute {image}")
        time.sleep(0.03)
        if image == self.raises:
            raise ArithmeticError(f"image {image}")
        note(f"computed {image}")
        return Output(pa.table({"image_id": pa.array(chunk.ids, pa.int32()), "double": [2 * image]}))


def slowly(name: str, real: Callable[..., Any], fails: int) -> Callable[..., Any]:
    def work(*arguments: Any, **more: Any) -> Any:
        image = next(part.ids[0] for part in arguments if isinstance(part, Chunk))
        note(f"{name} {image}")
        time.sleep(0.02)
        if image == fails:
            raise OSError(f"no {name} of {image}")
        result = real(*arguments, **more)
        note(f"{name} done {image}")
        return result

    return work


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., UnitWorker]:
    """A worker with a slow store, whose commit, or reading of inputs, of one image fails."""

    def made(*, uncommitted: int = -1, unread: int = -1, bucket: bool = True) -> UnitWorker:
        EVENTS.clear()
        HOLDS.clear()
        worker = UnitWorker(f"memory://{tmp_path.name}" if bucket else str(tmp_path / "store"), "cpu")
        worker._read = slowly("read", worker._read, unread)  # type: ignore[method-assign]
        worker._commit = slowly("commit", worker._commit, uncommitted)  # type: ignore[method-assign]
        return worker

    return made


def before(first: str, second: str) -> bool:
    return EVENTS.index(first) < EVENTS.index(second)


def batch(worker: UnitWorker, spec: StageSpec, chunks: tuple[Chunk, ...], turn: int | None = None) -> list[Any]:
    return worker.run_batch(spec, spec.id, chunks, {}, 1e9, turn)


def test_units_of_a_batch_are_read_and_committed_beside_each_other_in_order(make: Callable[..., UnitWorker]) -> None:
    worker, spec = make(), Noted()
    HOLDS.update(READ_BESIDE | {f"commit done {image}": f"compute {image + 1}" for image in range(5)})
    receipts = batch(worker, spec, CHUNKS)
    assert [(receipt.images, receipt.computed) for receipt in receipts] == [(1, True)] * 6
    for image in range(5):
        assert before(f"computed {image}", f"compute {image + 1}")  # one at a time
        assert before(f"commit done {image}", f"commit {image + 1}")
    # None is begun before the last but one is committed.
    assert all(before(f"commit done {image}", f"compute {image + 2}") for image in range(4))
    rows = [worker.store.read_rows("noted", spec.id, chunk.name)["double"].to_pylist() for chunk in CHUNKS]
    assert rows == [[2 * image] for image in range(6)]
    again = batch(worker, spec, CHUNKS)
    assert [receipt.computed for receipt in again] == [False] * 6 and EVENTS.count("compute 3") == 1


def test_on_a_disk_each_unit_is_committed_before_the_next_is_begun(make: Callable[..., UnitWorker]) -> None:
    """So it is known which one was running when a process dies."""
    worker, spec = make(bucket=False), Noted()
    HOLDS.update(READ_BESIDE)
    assert [receipt.computed for receipt in batch(worker, spec, CHUNKS)] == [True] * 6
    assert all(before(f"commit done {image}", f"compute {image + 1}") for image in range(5))


def test_two_batches_take_turns_by_number_and_the_second_computes_while_the_first_commits(
    make: Callable[..., UnitWorker],
) -> None:
    worker, spec = make(), Noted()
    HOLDS["commit done 0"] = "compute 1"
    with ThreadPoolExecutor(2) as threads:
        late = threads.submit(batch, worker, spec, CHUNKS[1:3], 1)  # its thread came first
        while "read done 1" not in EVENTS:
            time.sleep(0.005)
        early = threads.submit(batch, worker, spec, CHUNKS[:1], 0)
        assert [type(result) for result in early.result() + late.result()] == [Receipt] * 3
    assert before("computed 0", "compute 1")
    assert {chunk.name for chunk in CHUNKS[:3]} == worker.store.committed_chunks("noted", spec.id)


@pytest.mark.parametrize("bucket", [True, False])
@pytest.mark.parametrize("what", ["compute", "commit", "read"])
def test_an_error_is_that_of_its_unit_and_ends_its_batch_alone(
    what: str, bucket: bool, make: Callable[..., UnitWorker]
) -> None:
    worker = make(uncommitted=2 if what == "commit" else -1, unread=2 if what == "read" else -1, bucket=bucket)
    spec = Noted(raises=2 if what == "compute" else -1)
    found = batch(worker, spec, CHUNKS[:5])
    assert [type(result) for result in found] == [Receipt, Receipt, Trouble]
    expected = {
        "compute": "ArithmeticError: image 2",
        "commit": "OSError: no commit of 2",
        "read": "OSError: no read",
    }
    assert found[-1].error.startswith(expected[what]) and what in found[-1].traceback.lower()
    assert worker.store.committed_chunks("noted", spec.id) == {chunk.name for chunk in CHUNKS[:2]}
    # The next batch is not concerned, and what was not committed is computed again.
    rest = batch(worker, spec, (*CHUNKS[3:], CHUNKS[1]))
    assert [result.computed for result in rest] == [True, True, True, False]


def test_a_batch_that_waits_is_taken_back_and_one_that_never_came_is_waited_for_no_more(
    make: Callable[..., UnitWorker],
) -> None:
    worker, spec = make(), Noted()
    with ThreadPoolExecutor(3) as threads:
        waits = threads.submit(batch, worker, spec, CHUNKS[1:2], 1)
        while "read done 1" not in EVENTS:
            time.sleep(0.005)
        worker.drop(1)
        assert waits.result(300) == []
        last = threads.submit(batch, worker, spec, CHUNKS[3:4], 3)
        worker.drop(2)  # its message could not be read: it never comes
        assert not last.done()
        first = threads.submit(batch, worker, spec, CHUNKS[:1], 0)
        assert [len(first.result(300)), len(last.result(300))] == [1, 1]
    worker.drop(0)  # it has begun: nothing changes
    assert len(batch(worker, spec, CHUNKS[4:5])) == 1
    assert "compute 1" not in EVENTS


def test_the_time_of_a_batch_ends_it_and_a_unit_alone_runs_whatever_it_takes(
    make: Callable[..., UnitWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, spec = make(), Noted()
    # A clock of the units alone: 0.03 s each.
    monkeypatch.setattr("time.perf_counter", lambda: 0.03 * sum("computed" in event for event in EVENTS))
    assert len(worker.run_batch(spec, spec.id, CHUNKS, {}, 0.0)) == 1
    assert len(worker.run_batch(spec, spec.id, CHUNKS[1:], {}, 0.04)) == 2
    assert worker.store.committed_chunks("noted", spec.id) == {chunk.name for chunk in CHUNKS[:3]}


def test_of_a_dead_worker_the_first_unit_is_blamed_and_the_second_goes_alone(tmp_path: Path) -> None:
    plan = plan_of([Nap(number=0)], 6)
    stage, units = plan.stages[0], [Unit(0, chunk) for chunk in range(6)]
    for store in (f"memory://{tmp_path.name}", str(tmp_path)):
        with fake_pool(store, 1) as (pool, ray):
            (worker,) = pool.idle()
            pool.submit(worker, units[:2], stage, {})
            pool.submit(worker, units[2:4], stage, {})
            ray.die(worker.actor)
            events = {event.unit: event for event in pool.wait(1.0)}
        assert [events[unit].started for unit in units[:4]] == [True, False, False, False]
        # On a disk the second had not begun.
        assert [events[unit].doubtful for unit in units[:4]] == [False, "://" in store, False, False]
    scheduler = Scheduler(Committed(plan))
    taken = [scheduler.take(None) for _ in range(6)]
    scheduler.failed(taken[0], "died")  # type: ignore[arg-type]
    scheduler.put_back(taken[1], alone=True)  # type: ignore[arg-type]
    scheduler.put_back(taken[2])  # type: ignore[arg-type]
    assert scheduler.take(None) == taken[2] and not scheduler.suspect(taken[2])  # type: ignore[arg-type]
    alone = [scheduler.take(None, alone=True) for _ in range(2)]
    assert set(alone) == set(taken[:2]) and all(scheduler.suspect(unit) for unit in alone if unit)
    # No attempt is counted: it may fail as often as any other.
    assert [scheduler.failed(taken[1], "died") is None for _ in range(3)] == [True, True, False]  # type: ignore[arg-type]


def test_what_is_computed_in_other_threads_has_the_same_bytes(tmp_path: Path) -> None:
    """Two workers that overlap and one that does not: equal rows."""

    def rows(name: str, run: Callable[[UnitWorker, StageSpec], None]) -> list[pa.Table]:
        spec, worker = Noted(), UnitWorker(str(tmp_path / name), "cpu")
        run(worker, spec)
        return [Store(worker.store.uri).read_rows("noted", spec.id, chunk.name) for chunk in CHUNKS]

    def serial(worker: UnitWorker, spec: StageSpec) -> None:
        for chunk in CHUNKS:
            worker.run(spec, spec.id, chunk, {})

    def overlapping(worker: UnitWorker, spec: StageSpec) -> None:
        threads = [
            threading.Thread(target=batch, args=(worker, spec, CHUNKS[3 * turn : 3 * turn + 3], turn))
            for turn in (1, 0)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert all(one.equals(other) for one, other in zip(rows("one", serial), rows("two", overlapping), strict=True))
