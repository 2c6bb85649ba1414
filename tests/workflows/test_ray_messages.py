"""The installed Ray still says in these words why an actor is gone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from naps import HERE, Nap, add_machine, go, plan_of
from ray.cluster_utils import Cluster
from ray.exceptions import RayActorError, RayError

from defense.errors import PuregridError
from workflows.engine import ray_messages
from workflows.engine.attempts import cause
from workflows.engine.cluster import cluster
from workflows.engine.pool import Pool
from workflows.store import Store

PREDICATES = (
    ray_messages.node_has_died,
    ray_messages.out_of_memory,
    ray_messages.error_at_start,
    ray_messages.death_of_actor,
)


@pytest.fixture(autouse=True)
def workers_find_this_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", HERE)


class Frail:
    """An actor that dies as it is told to."""

    def __init__(self, fails: bool = False) -> None:
        if fails:
            raise OSError("libcuda.so.1: cannot open shared object file")

    def ready(self) -> None:
        """Say that it is there."""

    def stay(self) -> None:
        time.sleep(600)

    def leave(self) -> None:
        os._exit(13)


def hold(error: BaseException) -> list[Callable[[BaseException], object]]:
    """The predicates that hold for an error."""
    return [predicate for predicate in PREDICATES if predicate(error)]


def error_of(reference: object) -> RayActorError:
    with pytest.raises(RayActorError) as found:
        ray.get(reference, timeout=300)
    return found.value


@pytest.mark.slow
def test_each_end_of_an_actor_is_distinguished_from_the_others(no_slots: Cluster) -> None:
    frail = ray.remote(Frail)
    stays, node = (add_machine(no_slots, cpus, 40 + cpus) for cpus in (2, 1))
    with cluster(1, no_slots.address):
        broken = error_of(frail.options(num_cpus=1).remote(fails=True).ready.remote())
        assert ray_messages.error_at_start in hold(broken)
        assert not {ray_messages.node_has_died, ray_messages.out_of_memory} & set(hold(broken))
        assert cause(broken) == "OSError: libcuda.so.1: cannot open shared object file"

        exited = error_of(frail.options(num_cpus=1).remote().leave.remote())
        assert hold(exited) == [ray_messages.death_of_actor]
        assert cause(exited).startswith("The actor ") and "exit" in cause(exited).lower()
        assert "common causes" not in cause(exited)

        actors = []
        for cpus in (2, 1):  # one a node, the large one first
            actors.append(frail.options(num_cpus=cpus).remote())
            ray.get(actors[-1].ready.remote(), timeout=300)
        no_slots.remove_node(node)
        lost = []
        for actor in actors:
            try:
                ray.get(actor.ready.remote(), timeout=300)
            except RayActorError as error:
                lost.append(error)
        (gone,) = lost
        assert ray_messages.node_has_died in hold(gone)
        assert not {ray_messages.error_at_start, ray_messages.out_of_memory} & set(hold(gone))
    no_slots.remove_node(stays)


@pytest.mark.nightly
def test_a_machine_without_memory_is_distinguished_from_an_exit_and_named_by_a_run(
    no_slots: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's memory monitor ends workers above a share of memory that every machine is above.
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "500")
    node = add_machine(no_slots, 1, 43)
    plan, store = plan_of([Nap(number=1, seconds=30)], 1), Store(str(tmp_path / "store"))
    with cluster(1, no_slots.address):
        actor = ray.remote(Frail).options(num_cpus=1, max_restarts=0).remote()
        with pytest.raises(RayError) as found:  # of which class depends on whether it had begun
            ray.get(actor.stay.remote(), timeout=300)
        try:
            told = go(plan, Pool(store.uri, 1), store, max_attempts=1).failures[0].error
        except PuregridError as error:  # killed before it could begin
            told = str(error)
    no_slots.remove_node(node)
    assert "its machine ran out of memory" in told and "fewer --workers" in told
    assert ray_messages.out_of_memory(found.value) and not ray_messages.node_has_died(found.value)
    assert "its machine ran out of memory" in cause(found.value)


def test_other_words_mean_nothing() -> None:
    error = RuntimeError("the link to the store is slow")
    assert hold(error) == []
    assert cause(error) == "RuntimeError: the link to the store is slow"
