"""What a cluster may lose and a sweep survives: all nodes, the head, workers that cannot start, the right time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from broken_worker import Broken
from heads import head
from lab import SMALL, SMALL_UNITS, Lab, calm, wait_for
from naps import HERE, Nap, SharedRay, add_machine, assert_whole, go, plan_of, ran
from ray.cluster_utils import Cluster

from defense.errors import PuregridError
from workflows.engine.attempts import Event
from workflows.engine.cluster import cluster
from workflows.engine.pool import Pool
from workflows.engine.worker import UnitWorker
from workflows.planning.scheduler import Failure
from workflows.store import Store

pytestmark = pytest.mark.slow


class Lame(UnitWorker):
    """A worker that cannot start, but for the first one on a store."""

    def __init__(self, store_uri: str, device: str, sharing: int) -> None:
        try:
            Path(store_uri, "taken").touch(exist_ok=False)
        except FileExistsError:
            raise ImportError("libcuda.so.1: cannot open shared object file") from None
        super().__init__(store_uri, device, sharing)


@pytest.mark.parametrize("elastic", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_a_sweep_without_nodes_waits_for_one_and_goes_on(
    elastic: bool, no_slots: Cluster, log: Path, tmp_path: Path
) -> None:
    plan, store = plan_of([Nap(number=1, seconds=0.2)], 12), Store(str(tmp_path / "store"))
    nodes = [add_machine(no_slots, 1, 10 + elastic)]

    def on_event(event: Event, failure: Failure | None) -> None:
        if len(nodes) == 1 and len(log.read_text().splitlines()) > 3:
            no_slots.remove_node(nodes[0])
            nodes.append(None)

    with cluster(1, no_slots.address):
        pool = Pool(store.uri, 2 if elastic else 1, elastic=elastic, start_timeout=600)
        waited: list[float] = []
        look = pool._look

        def look_and_join() -> list[Event]:
            events = look()
            if len(nodes) == 2 and pool.workers == 0:
                waited.append(time.monotonic())
                if waited[-1] - waited[0] > 4:
                    nodes.append(add_machine(no_slots, 1, 20 + elastic))
            return events

        pool._look = look_and_join  # type: ignore[method-assign]
        outcome = go(plan, pool, store, on_event)
    no_slots.remove_node(nodes[-1])
    assert len(nodes) == 3 and len(waited) > 1, "the sweep was over before the node was lost"
    assert_whole(plan, store)
    assert outcome.computed == 12 and not outcome.failures and outcome.retries == 0 and outcome.nodes_lost <= 1
    assert sum(ran(log).values()) <= 13
    assert {line.split()[0] for line in log.read_text().splitlines()} == {nodes[0].node_id, nodes[2].node_id}


@pytest.mark.nightly
def test_a_sweep_that_no_node_comes_to_ends_and_continues_another_time(
    no_slots: Cluster, log: Path, tmp_path: Path
) -> None:
    plan, store = plan_of([Nap(number=1, seconds=0.2)], 8), Store(str(tmp_path / "store"))
    node = add_machine(no_slots, 1, 30)
    with cluster(1, no_slots.address):

        def on_event(event: Event, failure: Failure | None) -> None:
            if event.receipt is not None and ran(log)[1, 4] and node in no_slots.worker_nodes:
                pool._start_timeout = 5
                no_slots.remove_node(node)

        pool = Pool(store.uri, 1, elastic=True)
        with pytest.raises(PuregridError, match=r"no worker started in 5 s: .*run the same command again"):
            go(plan, pool, store, on_event)
        done = len(plan.committed(store))
        assert 2 <= done < 8
        node = add_machine(no_slots, 1, 31)
        outcome = go(plan, Pool(store.uri, 8, elastic=True), store)
    no_slots.remove_node(node)
    assert outcome.computed == 8 - done
    assert_whole(plan, store)


def test_workers_that_cannot_start_end_the_run_with_the_cause_or_leave_it_to_the_others(
    two_slots: SharedRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store = plan_of([Nap(number=1, seconds=0.3)], 12), Store(str(tmp_path))
    told: list[str] = []
    with cluster(2, two_slots.address):
        monkeypatch.setattr("workflows.engine.pool.UnitWorker", Broken)
        with pytest.raises(PuregridError, match=r"workers cannot be started \(.*libcuda\.so\.1.*same packages"):
            go(plan, Pool(store.uri, 1), store)
        assert not any(plan.committed(store))
        monkeypatch.setattr("workflows.engine.pool.UnitWorker", Lame)
        pool = Pool(store.uri, 2, notify=told.append)
        wait_for(lambda: not pool.wait(0.1) and bool(told))
        outcome = go(plan, pool, store)
    assert len(told) == 1 and "could not be started" in told[0] and "goes on with 1" in told[0]
    assert outcome.computed == 12 and outcome.retries == 0
    assert_whole(plan, store)


WRONG_CLOCK = """
import os, time
if skew := float(os.environ.get("WRONG_CLOCK", 0)):
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + skew
    time.time_ns = lambda: right_ns() + int(skew * 1e9)
"""
DAY = 86400.0


@pytest.mark.nightly
def test_clocks_that_are_days_apart_change_nothing(
    no_slots: Cluster, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Nap(number=1, seconds=0.2)
    plan, store = plan_of([source, Nap(number=2, seconds=0.2)], 10), Store(str(tmp_path / "store"))
    (tmp_path / "sitecustomize.py").write_text(WRONG_CLOCK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{HERE}")
    nodes = []
    for number, skew in ((40, -2 * DAY), (41, 3 * DAY)):
        monkeypatch.setenv("WRONG_CLOCK", str(skew))
        nodes.append(add_machine(no_slots, 1, number))
    monkeypatch.delenv("WRONG_CLOCK")
    monkeypatch.setattr("workflows.engine.loop._OVERDUE_SECONDS", 1e9)  # no copies
    with cluster(1, no_slots.address):
        pool = Pool(store.uri, 2)
        wait_for(lambda: not pool.wait(0.1) and pool.workers == 2)
        outcome = go(plan, pool, store)
    for node in nodes:
        no_slots.remove_node(node)
    days = {round((float(line.split()[4]) - time.time()) / DAY) for line in log.read_text().splitlines()}
    assert days == {-2, 3}, "the clocks were right"
    assert_whole(plan, store)
    assert outcome.computed == 20 and outcome.retries == outcome.copies == outcome.elsewhere == 0
    assert set(ran(log).values()) == {1}
    # What a commit says of time is how long a unit took, and, for people, when it ended by its worker's clock.
    for path in (tmp_path / "store" / "commits").rglob("*.json"):
        record = json.loads(path.read_text())
        assert 0.2 <= record["seconds"] < 60
        others = [value for name, value in record.items() if name != "ended"]
        assert not [value for value in others if isinstance(value, (int, float)) and value > DAY]


def test_a_head_that_dies_ends_the_run_and_the_same_command_on_another_completes_it(
    two_slots: SharedRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SMALL.replace("seconds: 0.05", "seconds: 0.3")
    lab = Lab(tmp_path, "store", sweep=slow)
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    with head(1) as found:
        driver = lab.start(None, "--address", found.address)
        wait_for(lambda: len(lab.commits()) >= 5, driver)
        found.parts("gcs_server")[0].kill()
        _, err = driver.communicate(timeout=300)
    assert driver.returncode == 1
    assert f"the head of the Ray cluster at {found.address} has not answered for 30 s" in err, err
    assert "run the same command again" in err and "Traceback" not in err
    before = lab.attempts()
    assert 5 <= len(before) < SMALL_UNITS
    lab.shared = two_slots
    status, _, err = lab.run(1)
    assert status == 0 and f"{len(before)} committed, {SMALL_UNITS - len(before)} to compute" in err, err
    assert lab.data() == calm(tmp_path / "calm", slow)
    assert lab.attempts().items() >= before.items()
