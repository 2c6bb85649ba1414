"""Workers that come, go, stop and die while a plan runs: real Ray nodes, real processes, known plans."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import ray
from naps import Nap, SharedRay, add_machine, assert_whole, go, plan_of, ran
from ray.cluster_utils import Cluster

from defense.errors import PuregridError
from tasks.stages import Output
from workflows.engine import loop as engine
from workflows.engine.attempts import Event
from workflows.engine.cluster import cluster, slots
from workflows.engine.pool import Pool
from workflows.planning.plan import Unit
from workflows.planning.scheduler import Failure
from workflows.store import Attempt, Store

pytestmark = pytest.mark.slow


def stop_one(log: Path, committed: Callable[[int], object]) -> None:
    """Stop the next worker that begins a unit, while it naps."""
    while True:
        known = len(log.read_text().splitlines())
        while len(lines := log.read_text().splitlines()) == known or len(lines[-1].split()) < 5:
            time.sleep(0.005)
        process, _, image, _ = map(int, lines[-1].split()[1:])
        os.kill(process, signal.SIGSTOP)
        if not committed(image):
            return
        os.kill(process, signal.SIGCONT)  # too late: it is between two units


def test_a_stopped_worker_does_not_hold_up_the_end(two_slots: SharedRay, tmp_path: Path) -> None:
    plan, store = plan_of([Nap(number=1, seconds=0.6)], 12), Store(str(tmp_path / "store"))
    (stage,) = plan.stages
    told: list[Event] = []

    def on_event(event: Event, failure: Failure | None) -> None:
        told.append(event)
        if len(told) == 4:
            committed = partial(store.committed, "nap", stage.id)
            stop_one(two_slots.naps_log, lambda image: committed(stage.chunks[image // 2].name))

    with cluster(2, two_slots.address):
        outcome = go(plan, Pool(store.uri, 2, unit_timeout=3600), store, on_event)
    assert_whole(plan, store)
    assert outcome.computed == 12 and not outcome.failures and outcome.retries == 0
    # The stopped worker's unit was run a second time, and what waited behind it was taken away.
    assert outcome.copies == 1 and outcome.copies_first == 1
    assert sorted(ran(two_slots.naps_log).values()) == [1] * 11 + [2]


def test_a_worker_whose_answer_is_lost_is_not_waited_for(
    two_slots: SharedRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As after a cut of the link: the unit is committed and its worker says nothing. It has a second one in its queue.
    monkeypatch.setattr(engine, "_SILENT_SECONDS", 1.0)
    monkeypatch.setattr(engine, "_OVERDUE_UNKNOWN", 1.0)
    plan, store = plan_of([Nap(number=1, seconds=600), Nap(number=2)], 1), Store(str(tmp_path / "store"))
    silent = plan.stages[0]

    def commit() -> None:
        while not two_slots.naps_log.read_text():
            time.sleep(0.05)
        values = [(1000 + image) % 7919 for image in silent.chunks[0].ids]
        rows = pa.table(
            {"image_id": pa.array(silent.chunks[0].ids, pa.int32()), "value": pa.array(values, pa.int32())}
        )
        record = Attempt("its own", 0.1, "there")
        store.commit(silent.spec, silent.id, silent.chunks[0], Output(rows), record)

    began = time.monotonic()
    with cluster(1, two_slots.address), ThreadPoolExecutor(1) as threads:
        committed = threads.submit(commit)
        outcome = go(plan, Pool(store.uri, 1), store)
        committed.result()
    assert time.monotonic() - began < 300
    assert_whole(plan, store)
    found = store.committed("nap", silent.id, silent.chunks[0].name)
    assert found is not None and found.attempt == "its own"
    assert outcome.replaced == 1 and not outcome.failures and outcome.retries == 0
    assert set(ran(two_slots.naps_log).values()) == {1} and len(ran(two_slots.naps_log)) == 2


@pytest.mark.nightly
def test_a_batch_blames_the_unit_that_was_running(two_slots: SharedRay, tmp_path: Path) -> None:
    # Short units travel together; one kills its process and one raises, and no other counts an attempt.
    plan, store = plan_of([Nap(number=1, seconds=0.002, kills=(250,), raises=(160,))], 200), Store(str(tmp_path))
    retried: list[Unit] = []

    def on_event(event: Event, failure: Failure | None) -> None:
        if event.receipt is None and event.started:
            retried.append(event.unit)

    with cluster(1, two_slots.address):
        outcome = go(plan, Pool(store.uri, 1), store, on_event)
    assert {failure.unit for failure in outcome.failures} == {Unit(0, 125), Unit(0, 80)}
    assert set(retried) == {Unit(0, 125), Unit(0, 80)} and len(retried) == 6
    assert outcome.computed == 198 and outcome.replaced == 3
    attempts = ran(two_slots.naps_log)
    assert attempts[1, 250] == 3 and attempts[1, 160] == 3
    assert all(count == 1 for (_, image), count in attempts.items() if image not in (160, 250))
    died = next(failure for failure in outcome.failures if failure.unit.chunk == 125)
    assert "its worker process died" in died.error and "exit" in died.error.lower()


def test_nodes_join_and_leave_while_a_plan_runs(no_slots: Cluster, log: Path, tmp_path: Path) -> None:
    plan, store = plan_of([Nap(number=n, seconds=0.5) for n in range(6)], 20), Store(str(tmp_path / "store"))
    workers: list[int] = []
    nodes: list[Any] = []
    held: list[psutil.Process] = []

    def on_event(event: Event, failure: Failure | None) -> None:
        workers.append(pool.workers)
        if len(workers) == 3:
            nodes.append(add_machine(no_slots, 3, 4))
            assert slots(1, 0) == 4
            assert slots(2, 0) == 1  # and not 2: a worker lies on one node
        if len(nodes) == 1 and pool.workers < 4 and event.place:  # else it could do all
            held.append(psutil.Process(event.place.pid))
            held[-1].suspend()
        if len(nodes) == 1 and pool.workers == 4:
            nodes.append(None)
            first.all_processes["raylet"][0].process.kill()

    def on_tick(done: int, left: float | None) -> None:
        while held and pool.workers == 4:
            held.pop().resume()

    first = add_machine(no_slots, 1, 3)
    with cluster(1, no_slots.address):
        pool = Pool(store.uri, plan.units, elastic=True)
        outcome = go(plan, pool, store, on_event, on_tick=on_tick)
    lost = first.node_id
    for node in (first, nodes[0]):
        no_slots.remove_node(node)
    assert_whole(plan, store)
    assert not outcome.failures and outcome.computed == plan.units
    assert workers[0] == 1 and max(workers) == 4 == pool.most and workers[-1] == 3
    assert outcome.nodes_lost <= 1 and outcome.retries == 0
    assert len({line.split()[0] for line in log.read_text().splitlines()}) == 2
    assert lost in log.read_text()
    # A worker whose raylet died goes on for a moment: what it was at, and what waited there, may run twice.
    assert sum(ran(log).values()) <= plan.units + 3


def test_ray_that_is_too_slow_is_started_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def slow(**options: Any) -> None:
        tried.append(options["num_cpus"])
        raise Exception("The current node timed out during startup.")  # Ray's own words and class

    monkeypatch.setattr(ray, "init", slow)
    with (
        pytest.raises(PuregridError, match=r"could not be started .*timed out during startup.*overloaded"),
        cluster(3, None),
    ):
        pass
    assert tried == [3, 3]


def test_an_address_where_nothing_answers_is_named() -> None:
    with pytest.raises(PuregridError, match=r"no Ray cluster answers at nobody:x "), cluster(1, "nobody:x"):
        pass
