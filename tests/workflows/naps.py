"""Stages that only sleep, die on demand, and say where they ran: what tests and benchmarks of the engine run.

Each run writes a line ``node pid stage chunk clock`` into the file that the environment variable NAPS_LOG names.
``kills`` and ``raises`` are first image ids of chunks that end their process, or raise.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from tasks.compute import Context
from tasks.stages import Chunk, Output, StageSpec
from workflows.engine.attempts import Event
from workflows.engine.loop import RunOutcome, run_plan
from workflows.engine.pool import Pool
from workflows.monitoring.progress import SweepProgress
from workflows.planning.plan import Plan
from workflows.planning.scheduler import Failure
from workflows.store import Store

HERE = str(Path(__file__).parent)


class Nap(StageSpec):
    """Sleeps; its rows are a function of its number and the image ids."""

    stage: Literal["nap"] = "nap"
    version: Literal[1] = 1
    number: int
    seconds: float = 0.0
    work: float = 0.0
    kills: tuple[int, ...] = ()
    raises: tuple[int, ...] = ()
    source: Nap | None = None

    def inputs(self) -> dict[str, StageSpec]:
        return {} if self.source is None else {"source": self.source}

    @property
    def reads(self) -> str:
        return "rows"

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        log = os.environ.get("NAPS_LOG")
        if log:
            node = ray.get_runtime_context().get_node_id()
            with Path(log).open("a") as file:
                file.write(f"{node} {os.getpid()} {self.number} {chunk.ids[0]} {time.time():.0f}\n")
        if chunk.ids[0] in self.kills:
            os._exit(13)
        if chunk.ids[0] in self.raises:
            raise RuntimeError("this chunk is poison")
        time.sleep(self.seconds)
        end = time.process_time() + self.work
        while time.process_time() < end:
            pass
        before = sum(inputs["source"]["value"].to_pylist()) if inputs else 0
        values = [(before + 1000 * self.number + image) % 7919 for image in chunk.ids]
        return Output(pa.table({"image_id": pa.array(chunk.ids, pa.int32()), "value": pa.array(values, pa.int32())}))


def plan_of(specs: list[Nap], chunks: int) -> Plan:
    """A plan of these stages, two images a chunk."""
    plan = Plan()
    ids = tuple(Chunk((2 * i, 2 * i + 1)) for i in range(chunks))
    for spec in specs:
        plan.add(spec, ids)
    return plan


def ran(log: Path) -> Counter[tuple[int, int]]:
    """How often each (stage, first image) was run."""
    lines = (line.split() for line in log.read_text().splitlines())
    return Counter((int(number), int(image)) for _, _, number, image, _ in lines)


def go(
    plan: Plan,
    pool: Pool,
    store: Store,
    on_event: Callable[[Event, Failure | None], None] = lambda event, failure: None,
    **options: Any,
) -> RunOutcome:
    """Run what is not committed, and end the pool."""
    committed = plan.committed(store)
    with SweepProgress(plan.units, 0, plan.units, quiet=True) as progress:
        try:
            return run_plan(committed, pool, progress, store=store, on_event=on_event, **options)
        finally:
            pool.close()


def assert_whole(plan: Plan, store: Store) -> None:
    """Every unit is committed, and its rows are what they should be."""
    for stage in plan.stages:
        assert store.committed_chunks("nap", stage.id) == {chunk.name for chunk in stage.chunks}
        for chunk in stage.chunks:
            rows = store.read_rows("nap", stage.id, chunk.name)
            assert rows["value"].to_pylist() == [(1000 * stage.spec.number + image) % 7919 for image in chunk.ids]


@contextmanager
def machines(head_cpus: int, **options: Any) -> Iterator[Cluster]:
    """A Ray cluster of several nodes on this machine, each with a loopback address of its own.

    A node that dies is noticed within a second or two instead of half a minute. Ray's autoscaler and its reader of
    logs, which no test asks for anything, are left out: each is a process that takes a second to start.
    """
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {
        "num_cpus": head_cpus,
        "include_dashboard": False,
        "include_log_monitor": False,
        "no_monitor": True,
        "object_store_memory": 80 * 1024**2,
        "node_ip_address": "127.0.0.2",
        "_system_config": {**quick, **options},
    }
    found = _started(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


def add_machine(cluster: Cluster, cpus: int, number: int, gpus: int = 0) -> Any:
    """A further node; its workers have the environment of this moment, and its GPUs are in Ray's books alone."""
    return _started(
        lambda: cluster.add_node(
            num_cpus=cpus,
            num_gpus=gpus,
            object_store_memory=80 * 1024**2,
            node_ip_address=f"127.0.0.{number}",
        )
    )


def _started(start: Callable[[], Any]) -> Any:
    """Once more where the first time failed: Ray gives a node 30 s, which a busy machine may be too slow for."""
    try:
        return start()
    except Exception:  # Ray raises this very class
        return start()


class SharedRay:
    """One Ray cluster for all tests of a process: a head without slots, and a node of two when it is asked for.

    A Ray that starts for one test takes ten processor seconds. What differs between tests reaches the workers of the
    shared node through files whose names are known when it starts. A test that breaks the cluster, or comes when the
    machine is too busy to start it, leaves the next one a new start.

    Arguments:
        folder: Of those files.
    """

    def __init__(self, folder: Path) -> None:
        self.naps_log = folder / "naps.log"
        self.orders = folder / "orders"
        self._open = ExitStack()
        self._found: Cluster | None = None
        self._node: Any = None

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def _cluster(self) -> Cluster:
        if self._found is not None and not self._found.head_node.remaining_processes_alive():
            self.close()
        if self._found is None:
            # It lives long, and a machine is busier than this for a moment: 5 s of silence instead of 2.
            self._found = self._open.enter_context(machines(0, health_check_failure_threshold=10))
        return self._found

    def two_slots(self) -> SharedRay:
        """Have the node of two slots, and an empty log of naps."""
        self.naps_log.write_text("")
        cluster = self._cluster
        if self._node is None or not self._node.remaining_processes_alive():
            self.no_slots()
            own = {"NAPS_LOG": str(self.naps_log), "UNRULY": str(self.orders), "PYTHONPATH": HERE}
            with patch.dict(os.environ, {**own, "PYTHONDONTWRITEBYTECODE": "1"}):
                self._node = add_machine(cluster, 2, 9)
        return self

    def no_slots(self) -> Cluster:
        """The cluster without nodes, for tests that bring their own and take them away."""
        cluster = self._cluster
        for node in list(cluster.worker_nodes):  # also what a test that failed has left
            cluster.remove_node(node)
        self._node = None
        return cluster

    def close(self) -> None:
        """End it."""
        self._open.close()
        self._found = self._node = None
