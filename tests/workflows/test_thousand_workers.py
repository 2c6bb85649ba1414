"""The driver of a thousand workers, without Ray: who is free, what a unit costs, and who is asked next."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from fake_ray import fake_pool
from naps import Nap, go, plan_of

from workflows.engine.attempts import Event
from workflows.planning.free_list import FreeList
from workflows.planning.plan import Unit
from workflows.store import Store


@pytest.mark.parametrize("seed", range(3))
def test_the_free_list_has_those_that_a_search_through_all_finds_the_emptiest_first(seed: int) -> None:
    choose, depth = random.Random(seed), 3
    held: dict[int, int] = {}
    free = FreeList[int](depth)
    for _ in range(2_000):
        worker, count = choose.randrange(40), choose.randrange(depth + 2)
        if count > depth:
            held.pop(worker, None)
            free.remove(worker)
        else:
            held.pop(worker, None)  # whoever changes goes to the end
            held[worker] = count
            if count < depth:
                free.put(worker, count)
            else:
                free.remove(worker)
        searched = sorted((worker for worker in held if held[worker] < depth), key=held.__getitem__)
        assert list(free) == searched


def test_every_unit_runs_once_and_no_worker_holds_more_than_two_batches(tmp_path: Path) -> None:
    source = Nap(number=0)
    plan = plan_of([Nap(number=number, source=source) for number in range(1, 30)], 100)
    seen: list[Unit] = []
    with fake_pool(str(tmp_path), 1_000) as (pool, ray):

        def on_event(event: Event, failure: object) -> None:
            seen.append(event.unit)
            if len(seen) % 50 == 0:
                assert max(len(worker.queue) for worker in pool._workers) <= 2
                assert set(pool.idle()) == {worker for worker in pool._workers if len(worker.queue) < 2}

        outcome = go(plan, pool, Store(str(tmp_path)), on_event)
        assert outcome.computed == plan.units == len(set(seen)) == len(seen) == 3_000
        # 100 sources come first, in two rounds at most; 2,900 readers then keep 1,000 workers busy for three.
        assert ray.clock <= 6 * ray.seconds
        assert pool.workers == 0 and not list(pool.idle())


def test_a_worker_that_dies_leaves_the_free_list_and_its_place_is_taken(tmp_path: Path) -> None:
    plan = plan_of([Nap(number=1)], 300)
    with fake_pool(str(tmp_path), 100) as (pool, ray):
        lost: list[object] = []

        def on_event(event: Event, failure: object) -> None:
            if not lost:
                dead = next(worker for worker in pool._workers if worker.queue)
                lost.append(dead)
                ray.die(dead.actor)
            elif lost[0] not in pool._workers:
                assert lost[0] not in set(pool.idle())

        outcome = go(plan, pool, Store(str(tmp_path)), on_event)
        assert lost[0] not in pool._workers
        assert outcome.computed == 300 and not outcome.failures
        assert pool.replaced == 1


def test_a_suspect_has_its_worker_for_itself(tmp_path: Path) -> None:
    plan = plan_of([Nap(number=1)], 3)
    stage = plan.stages[0]
    with fake_pool(str(tmp_path), 2) as (pool, _):
        first, second = pool.idle()
        pool.submit(first, [Unit(0, 0)], stage, {}, reserved=True)
        assert list(pool.idle()) == [second]
        pool.submit(second, [Unit(0, 1)], stage, {})
        assert list(pool.idle()) == [second]
        pool.submit(second, [Unit(0, 2)], stage, {})
        assert list(pool.idle()) == []
        pool.wait(1.0)
        assert set(pool.idle()) == {first, second}


def test_handing_out_a_unit_costs_the_same_with_many_workers_as_with_few(tmp_path: Path) -> None:
    def price(workers: int) -> float:
        plan = plan_of([Nap(number=1)], 2 * workers)
        with fake_pool(str(tmp_path), workers) as (pool, _):
            began = time.process_time()
            for chunk in range(2 * workers):
                pool.submit(next(pool.idle()), [Unit(0, chunk)], plan.stages[0], {})
            return (time.process_time() - began) / (2 * workers)

    few, many = (min(price(workers) for _ in range(3)) for workers in (50, 2_000))
    assert many < 5 * few  # a search through all workers makes it some forty times
