"""Long-lived Ray actors, one per CPU or GPU slot, replaced when they die, more or fewer as nodes come and go.

Each worker holds at most ``depth`` batches: one that runs and the next, so that it never waits for the driver, and
reads and commits beside the computation (:mod:`workflows.engine.worker`). A batch is one unit, or several of a stage
where units are so short that messages would cost as much as they do. Ray restarts nothing by itself
(``max_restarts=0``): the pool sees each death and asks the store which units of the worker are committed. The first
one that is not counts as the one that was running (a batch ends at its first failure). Where the store is a bucket it
may have been the next one, while the first was being committed: that one is then begun alone, without an attempt
counted, so that it shows whether it was the cause. The rest had not begun.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from defense.errors import PuregridError, StoreError
from tasks.stages.kind import Kind
from workflows.engine.attempts import Event, cause, event_of
from workflows.engine.cluster import Head, room
from workflows.engine.ray_messages import node_has_died
from workflows.engine.worker import Receipt, Trouble, UnitWorker, one_line
from workflows.monitoring.events import log_event
from workflows.monitoring.ledger import Ledger, Place, fields_of
from workflows.planning.free_list import FreeList
from workflows.planning.machine import per_gpu
from workflows.planning.plan import PlannedStage, Unit
from workflows.store import Store

__all__ = ["BATCH_SECONDS", "Flight", "Pool"]

BATCH_SECONDS = 0.5
"""After so long a worker begins no further unit of a batch."""

_START_ATTEMPTS = 3
_LOOK_SECONDS = 2.0
"""Seconds between two looks at the nodes."""

_STUCK_SECONDS = 0.1
"""Seconds between two looks for stuck units."""


@dataclass
class _Batch:
    reference: Any
    units: list[Unit]
    stage: PlannedStage
    copy: bool
    turn: int


@dataclass(eq=False)  # one is itself, and a key
class _Worker:
    actor: Any
    starting: Any
    first: bool = False
    place: Place | None = None
    queue: deque[_Batch] = field(default_factory=deque)
    since: float = 0.0
    reserved: bool = False
    loaded: str | None = None
    turns: int = 0

    @property
    def node(self) -> str | None:
        """Ray's id of its node, once it has started."""
        return None if self.place is None else self.place.node


@dataclass(frozen=True)
class Flight:
    """Units that a worker holds in one batch.

    Arguments:
        units: The units.
        waits: Whether they wait behind another batch.
        seconds: For how long that one, or they themselves, have been running.
        node: Where.
        reference: Ray's name for the call.
    """

    units: list[Unit]
    waits: bool
    seconds: float
    node: str | None
    reference: Any


class Pool:
    """The workers of a sweep.

    Arguments:
        store_uri: The store that workers commit to.
        size: Number of workers; of an elastic pool, at most.
        gpus_per_worker: GPUs each takes, fractions allowed; 0 runs on CPUs.
        threads: CPU slots each takes in Ray's books.
        depth: Batches that a worker holds at most.
        unit_timeout: Seconds after which a running unit counts as stuck.
        start_timeout: Seconds without any worker after which the pool gives up.
        elastic: Have as many workers as the cluster has room for, at any time.
        notify: Where notes go, one line each.
        ledger: Where the time of workers is booked.

    Attributes:
        replaced: Workers that died, were stuck or were given up, and were replaced.
        most: The largest number of workers that were there at once.
    """

    def __init__(
        self,
        store_uri: str,
        size: int,
        *,
        gpus_per_worker: float = 0.0,
        threads: int = 1,
        depth: int = 2,
        unit_timeout: float = 3600.0,
        start_timeout: float = 300.0,
        elastic: bool = False,
        notify: Callable[[str], None] = lambda message: None,
        ledger: Ledger | None = None,
    ) -> None:
        self._store = Store(store_uri)
        self.ledger = ledger or Ledger()
        self._lost_nodes: set[str] = set()
        self._kinds: dict[str, Kind] = {}
        self._keys: dict[str, str] = {}
        self._device = "cuda" if gpus_per_worker else "cpu"
        self._remote = ray.remote(UnitWorker).options(
            num_cpus=threads,
            num_gpus=gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=depth + 1,  # and one to take a batch back
        )
        self._share = (threads, gpus_per_worker)
        self._size = size
        self._depth = depth
        self._unit_timeout = unit_timeout
        self._start_timeout = start_timeout
        self._elastic = elastic
        self._notify = notify
        self._broken_starts = 0
        self._given_up = 0
        self._head = Head()
        self._last_ready = self._last_look = self._last_stuck = time.monotonic()
        self.replaced = self.most = 0
        self._late: list[Event] = []
        self._workers: dict[_Worker, None] = {}
        self._free: FreeList[_Worker] = FreeList(depth)
        self._started = 0
        self._target = min(size, room(*self._share)) if elastic else size
        self._fill(first=True)

    def _fill(self, *, first: bool = False) -> None:
        while len(self._workers) < self._target - self._given_up:
            actor = self._remote.remote(self._store.uri, self._device, per_gpu(self._share[1]))
            self._workers[_Worker(actor, actor.ready.remote(), first)] = None

    @property
    def workers(self) -> int:
        """Number of workers that have started."""
        return self._started

    def idle(self) -> Iterator[_Worker]:
        """Started workers that can take a batch, the emptiest first."""
        return iter(self._free)

    def _note_free(self, worker: _Worker) -> None:
        """Note how much a started worker can take, after that has changed."""
        held = len(worker.queue)
        if held < (1 if worker.reserved else self._depth):
            self._free.put(worker, held)
        else:
            self._free.remove(worker)

    def flights(self) -> list[Flight]:
        """Return the batches that workers hold."""
        now = time.monotonic()
        return [
            Flight(batch.units, place > 0, now - worker.since, worker.node, batch.reference)
            for worker in self._workers
            for place, batch in enumerate(worker.queue)
        ]

    def submit(
        self,
        worker: _Worker,
        units: Sequence[Unit],
        stage: PlannedStage,
        inputs: dict[str, tuple[str, str]],
        *,
        reserved: bool = False,
        copy: bool = False,
    ) -> None:
        """Give a worker units of one stage; a reserved one gets no others until it has finished."""
        worker.reserved = reserved
        if not worker.queue:
            worker.since = time.monotonic()
        chunks = [stage.chunks[unit.chunk] for unit in units]
        turn, worker.turns = worker.turns, worker.turns + 1
        reference = worker.actor.run_batch.remote(stage.spec, stage.id, chunks, inputs, BATCH_SECONDS, turn)
        worker.queue.append(_Batch(reference, list(units), stage, copy, turn))
        if stage.id not in self._keys:  # a hash of all that a network is
            self._keys[stage.id] = stage.spec.model_key()
        worker.loaded = self._keys[stage.id]
        self._note_free(worker)

    def cancel(self, flight: Flight) -> None:
        """Take back a batch that waits, if it can still be done; one that runs goes on."""
        for worker in self._workers:
            for batch in worker.queue:
                if batch.reference == flight.reference:
                    worker.actor.drop.remote(batch.turn)

    def release(self, wanted: Container[Unit]) -> None:
        """Replace workers that are busy with nothing but units that another worker has committed meanwhile."""
        for worker in list(self._workers):
            if worker.queue and not any(unit in wanted for batch in worker.queue for unit in batch.units):
                self._replace(worker, "held only units that are committed by now")

    def give_up(self, flight: Flight, error: str) -> None:
        """Replace the worker that runs these units; committed ones count, the others are not blamed."""
        for worker in list(self._workers):
            if worker.queue and worker.queue[0].reference == flight.reference:
                self._late += self._lost(worker, error, event="worker_silent", blames=False)

    def wait(self, seconds: float) -> list[Event]:
        """Wait until something happens, at most so long, and return what happened.

        Raises:
            PuregridError: Workers cannot be started.
        """
        heads = {worker.queue[0].reference: worker for worker in self._workers if worker.queue}
        starting = {worker.starting: worker for worker in self._workers if worker.node is None}
        references = [*heads, *starting]
        done = []
        if references:
            done, _ = ray.wait(references, num_returns=1, timeout=seconds)
            if done:  # and whatever else is done by now
                done, _ = ray.wait(references, num_returns=len(references), timeout=0)
        elif not self._workers:
            time.sleep(seconds)  # for nodes
        events, self._late = self._late, []
        for reference in done:
            if reference in starting:
                self._on_start(starting[reference])
            else:
                events += self._on_finish(heads[reference])
        if time.monotonic() - self._last_stuck > _STUCK_SECONDS:
            events += self._stuck()
            self._last_stuck = time.monotonic()
        if time.monotonic() - self._last_look > _LOOK_SECONDS:
            events += self._look()
            self._last_look = time.monotonic()
        return events

    def _on_start(self, worker: _Worker) -> None:
        try:
            place: Place = ray.get(worker.starting)
        except RayError as error:
            if node_has_died(error):
                self._replace(worker, "its node was lost before it had started")
                return
            self._broken_starts += 1
            if self._broken_starts < _START_ATTEMPTS:
                self._replace(worker, f"it could not be started ({cause(error)})")
                return
            if not self.workers:
                raise PuregridError(
                    f"workers cannot be started ({cause(error)}). Every worker needs puregrid and the same "
                    "packages as the driver; see the logs that Ray keeps on the worker's machine."
                ) from error
            # One machine of many is broken: the others finish the sweep.
            self._notify(f"a worker could not be started ({cause(error)}); the sweep goes on with {self.workers}")
            self._given_up += 1
            self._broken_starts = 0
            self._drop(worker)
        else:
            worker.place = place
            self._started += 1
            self._note_free(worker)
            self._broken_starts = 0
            self.most = max(self.most, self.workers)
            self.ledger.ready(place, first=worker.first)
            log_event("worker_started", **fields_of(place))

    def _on_finish(self, worker: _Worker) -> list[Event]:
        batch = worker.queue[0]
        now = time.monotonic()
        results: list[Receipt | Trouble] = []
        try:
            results = ray.get(batch.reference)
        except RayActorError as error:
            return self._lost(worker, f"its worker process died ({cause(error)})", node_has_died(error))
        except RayTaskError as error:  # the message could not be read there, e.g. for want of a module
            results = [Trouble(one_line(error.cause), str(error))]
            worker.actor.drop.remote(batch.turn)  # which the next one waits for
        except RayError as error:
            results = [Trouble(one_line(error), "")]
            worker.actor.drop.remote(batch.turn)
        seconds = (now - worker.since) / max(len(results), 1)
        events = [
            event_of(unit, result, seconds, batch.copy, worker.place)
            for unit, result in zip(batch.units, results, strict=False)
        ]
        self._book(worker, batch, events, now)
        events += [Event(unit, started=False) for unit in batch.units[len(results) :]]
        worker.queue.popleft()
        worker.since = now
        self._note_free(worker)
        return events

    def _book(self, worker: _Worker, batch: _Batch, events: Sequence[Event], now: float) -> None:
        """Book the time that the worker spent since the batch was its first."""
        if worker.place is None:
            return
        self.ledger.busy(worker.place, now - worker.since)
        kind = self._kinds.get(batch.stage.id) or batch.stage.spec.kind
        self._kinds[batch.stage.id] = kind
        for receipt in (event.receipt for event in events):
            if receipt is not None and receipt.computed:
                self.ledger.computed(worker.place, kind, receipt.images, receipt.seconds, receipt.loading)

    def _lost(
        self, worker: _Worker, error: str, node_lost: bool = False, event: str = "worker_died", blames: bool = True
    ) -> list[Event]:
        """Replace a dead worker: committed units count, the first other one was running, or else the next one."""
        self._head.need()
        if node_lost and worker.node is not None and worker.node not in self._lost_nodes:
            self._lost_nodes.add(worker.node)
            log_event("node_lost", node=worker.node, error=error)
        log_event(
            event, **fields_of(worker.place), error=error, units=sum(len(batch.units) for batch in worker.queue)
        )
        events: list[Event] = []
        blamed, doubtful = not blames, blames and not node_lost and self._store.is_remote
        for batch in worker.queue:
            for unit in batch.units:
                chunk = batch.stage.chunks[unit.chunk]
                commit = None
                with contextlib.suppress(StoreError):
                    commit = self._store.committed(batch.stage.spec.stage, batch.stage.id, chunk.name)
                place = worker.place
                if commit is not None:
                    receipt = Receipt(len(chunk.ids), commit.seconds, computed=True)
                    booked = [Event(unit, receipt, copy=batch.copy, place=place)]
                    self._book(worker, batch, booked, time.monotonic())
                    worker.since = time.monotonic()
                    events += booked
                else:
                    started, doubted = not blamed, blamed and doubtful
                    blamed, doubtful = True, doubtful and not doubted
                    events.append(
                        Event(unit, None, error, "", started, node_lost, doubted, copy=batch.copy, place=place)
                    )
        if worker.queue and worker.place is not None:
            self.ledger.busy(worker.place, time.monotonic() - worker.since)
        self._replace(worker, error)
        return events

    def _drop(self, worker: _Worker) -> None:
        if not self._head.lost:  # without a head nobody could do it; they end with the driver
            with contextlib.suppress(RayError, GetTimeoutError):
                ray.kill(worker.actor, no_restart=True)
        if worker.place is not None:
            self._last_ready = time.monotonic()
            self._started -= 1
            self.ledger.gone(worker.place)
        self._free.remove(worker)
        del self._workers[worker]

    def _replace(self, worker: _Worker, error: str) -> None:
        log_event("worker_replaced", **fields_of(worker.place), error=error)
        self._drop(worker)
        self._fill()
        self.replaced += 1

    def _stuck(self) -> list[Event]:
        events: list[Event] = []
        for worker in list(self._workers):
            # A batch ends soon after BATCH_SECONDS unless one of its units does not.
            limit = self._unit_timeout + (BATCH_SECONDS if worker.queue and len(worker.queue[0].units) > 1 else 0)
            if worker.queue and time.monotonic() - worker.since > limit:
                error = f"stuck: no result after {self._unit_timeout:g} s (--unit-timeout)"
                events += self._lost(worker, error, event="worker_stuck")
        return events

    def _look(self) -> list[Event]:
        """Notice nodes that came and went."""
        self._head.need()
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if self._elastic:
            self._target = min(self._size, room(*self._share))
        events: list[Event] = []
        for worker in list(self._workers):
            if worker.node is not None and worker.node not in alive:
                events += self._lost(worker, "its node was lost", node_lost=True)
        surplus = len(self._workers) - (self._target - self._given_up)
        for worker in [worker for worker in self._workers if worker.node is None][: max(surplus, 0)]:
            self._drop(worker)
        self._fill()
        if not self.workers and time.monotonic() - self._last_ready > self._start_timeout:
            have = ", ".join(
                f"{amount:g} {name}" for name, amount in ray.cluster_resources().items() if "node" not in name
            )
            raise PuregridError(
                f"no worker started in {self._start_timeout:g} s: the cluster has {have or 'nothing'}. Ask for fewer "
                "resources per worker (--gpus-per-worker) or wait for nodes, and run the same command again."
            )
        return events

    def close(self) -> None:
        """End all workers at once."""
        for worker in list(self._workers):
            self._drop(worker)
