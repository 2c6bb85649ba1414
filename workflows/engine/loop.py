"""Run a plan: hand units to workers, watch them commit, and survive dead and slow workers.

The driver schedules; workers compute and commit. A unit that raises, or whose worker dies or gets stuck, is tried
again and quarantined after a few attempts, and the sweep goes on. When nothing is left to start and workers are idle,
one of them runs a second copy of a unit that is overdue (Dean and Ghemawat 2004, section 3.6: backup tasks); commits
are created once, so the first copy wins and the other one changes nothing. When another driver turns out to work on
the same store, both take chunks in random order and look for each other's commits. The first interrupt (Ctrl-C)
drains: running units finish and commit, no new one starts. The second one stops at once. Either way nothing committed
is lost and running the same command again continues.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from defense.errors import StoreError
from workflows.engine.attempts import Event
from workflows.engine.pool import BATCH_SECONDS, Flight, Pool
from workflows.engine.worker import OtherCode, Receipt
from workflows.monitoring.events import Field, enabled, log_event
from workflows.monitoring.ledger import Place, fields_of
from workflows.monitoring.progress import SweepProgress
from workflows.planning.costs import Pace
from workflows.planning.plan import Committed, Plan, Unit
from workflows.planning.scheduler import Failure, Scheduler
from workflows.planning.stopping import Spared
from workflows.store import Store, StoreUnavailable

__all__ = ["RunOutcome", "run_plan"]

_TICK = 0.5
"""Seconds after which the driver looks at stuck units and interrupts even if nothing finishes."""

_BATCH_UNITS = 64
"""Units that travel in one message at most."""

_OVERDUE_TIMES, _OVERDUE_SECONDS, _OVERDUE_UNKNOWN = 2.0, 2.0, 60.0
"""A unit is overdue after so many times the usual time plus so many seconds; of an unknown kind, after a minute."""

_SILENT_SECONDS = 10.0
"""Seconds between looks at the commits of overdue units; a worker whose units are there twice is taken as silent."""

_LISTING_SECONDS = 5.0
"""Age up to which a listing of a stage's commits is believed while another driver works on the same store."""


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Arguments:
        computed: Units computed by this run.
        images: Images of those units.
        seconds: Their compute time, summed over workers.
        retries: Attempts that failed and were repeated.
        replaced: Workers that died, were stuck or were given up, and were replaced.
        nodes_lost: Units that were running when their node was lost, and were put back.
        copies: Second attempts at units that were overdue.
        copies_first: How many of those finished before the first attempt.
        elsewhere: Units that another driver committed meanwhile.
        spared: Units that were not computed because the answers of their cells are precise enough.
        failures: Quarantined units.
        blocked: Units that need one of those.
        interrupted: Whether Ctrl-C ended the run.
        last: Whether it came while the last rows were packed.
    """

    computed: int = 0
    images: int = 0
    seconds: float = 0.0
    retries: int = 0
    replaced: int = 0
    nodes_lost: int = 0
    copies: int = 0
    copies_first: int = 0
    elsewhere: int = 0
    failures: tuple[Failure, ...] = ()
    blocked: int = 0
    interrupted: bool = False
    last: bool = False
    spared: int = 0

    def and_then(self, later: RunOutcome) -> RunOutcome:
        """Return the outcome of this run and a later one together: counts are summed, failures are the later ones."""
        counted = ("computed", "images", "seconds", "retries", "replaced", "nodes_lost", "copies", "copies_first")
        counts = {name: getattr(self, name) + getattr(later, name) for name in (*counted, "elsewhere")}
        return replace(later, **counts)

    def to_json(self) -> dict[str, object]:
        """Return what ``puregrid run --json`` prints."""
        return {
            "computed_units": self.computed,
            "images": self.images,
            "compute_seconds": round(self.seconds, 2),
            "retries": self.retries,
            "workers_replaced": self.replaced,
            "nodes_lost": self.nodes_lost,
            "copies": self.copies,
            "copies_first": self.copies_first,
            "committed_elsewhere": self.elsewhere,
            "failed_units": len(self.failures),
            "blocked_units": self.blocked,
            "interrupted": self.interrupted,
            **({"spared_units": self.spared} if self.spared else {}),
        }


class _Interrupts:
    """Counts SIGINT and SIGTERM while a plan runs: one drains, two stop."""

    def __init__(self) -> None:
        self.count = 0

    def _on_signal(self, number: int, frame: object) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def installed(self) -> Iterator[_Interrupts]:
        """Handle both inside; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = [(number, signal.signal(number, self._on_signal)) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            yield self
        finally:
            for number, handler in before:
                signal.signal(number, handler)


def run_plan(
    committed: Committed,
    pool: Pool,
    progress: SweepProgress,
    *,
    max_attempts: int = 3,
    store: Store | None = None,
    on_event: Callable[[Event, Failure | None], None] = lambda event, failure: None,
    on_tick: Callable[[int, float | None], None] = lambda done, left: None,
    pace: Pace | None = None,
    spared: Spared | None = None,
) -> RunOutcome:
    """Run all units that are not committed.

    Arguments:
        committed: The units of the plan that are committed.
        pool: The workers.
        progress: Where to show progress.
        max_attempts: Attempts per unit before it is quarantined.
        store: Where commits of other drivers are looked for; without it they are found when a worker gets there.
        on_event: Called for each finished or failed attempt, with the failure if the unit is quarantined.
        on_tick: Called twice a second with the units that need no work any more and the seconds that are left, None
            as long as they are unknown.
        pace: What is known of how long units take.
        spared: Decides which units no answer needs any more; without it all are computed.

    Raises:
        StoreUnavailable: No unit can be committed any more.
        OtherCode: A worker has other code than the sweep was planned with.
    """
    plan = committed.plan
    scheduler = Scheduler(committed, max_attempts, None if spared is None else spared.may_stop)
    run = _Run(plan, scheduler, pool, pace or Pace(committed), store, spared)
    draining = False
    with _Interrupts().installed() as interrupts:
        while True:
            if not interrupts.count:
                known = run.feed()
                if known:
                    progress.committed(len(known), 0, sum(plan.work(unit) for unit in known))
                run.copy_overdue()
            else:
                running = len(run.attempts)
                progress.phase(f"draining, {running} running unit{'s' * (running != 1)} left")
                if not draining:
                    draining = True
                    log_event("draining", units=len(run.attempts))
            run.give_up_silent()
            if not run.attempts and (interrupts.count or not scheduler.has_ready()):
                break
            units, images, work = 0, 0, 0.0
            for event in pool.wait(_TICK):
                spared_before = scheduler.spared(event.unit)
                counts, failure = run.account(event)
                if not counts:
                    continue
                if event.receipt is not None and not spared_before:
                    units, images, work = units + 1, images + event.receipt.images, work + plan.work(event.unit)
                on_event(event, failure)
            not_needed = run.spare()
            if not_needed:
                progress.committed(len(not_needed), 0, sum(plan.work(unit) for unit in not_needed))
            if units:
                progress.committed(units, images, work)
            progress.trouble(len(scheduler.failures), scheduler.retries)
            left_seconds = run.pace.left()
            on_tick(
                run.computed + run.elsewhere + run.not_needed,
                None if left_seconds is None else left_seconds / max(pool.workers, 1),
            )
    left = scheduler.remaining - len(scheduler.failures)
    return RunOutcome(
        run.computed,
        run.images,
        run.seconds,
        scheduler.retries,
        pool.replaced,
        scheduler.lost,
        run.copies,
        run.copies_first,
        run.elsewhere,
        tuple(scheduler.failures),
        blocked=0 if interrupts.count else left,
        interrupted=interrupts.count > 0 and left > 0,
        spared=committed.spared + run.not_needed,
    )


@dataclass
class _Run:
    """The state of a run: which units are running, in how many copies, and how the others ended."""

    plan: Plan
    scheduler: Scheduler
    pool: Pool
    pace: Pace
    store: Store | None
    spared: Spared | None = None
    attempts: Counter[Unit] = field(default_factory=Counter)
    """Workers that hold a unit; a unit leaves when it is committed, or its last attempt has failed."""
    computed: int = 0
    images: int = 0
    seconds: float = 0.0
    copies: int = 0
    copies_first: int = 0
    elsewhere: int = 0
    not_needed: int = 0
    _news: set[str] = field(default_factory=set)
    """Stages of which something is committed that no decision has looked at."""
    _listed: dict[int, float] = field(default_factory=dict)
    _looked: float = field(default_factory=time.monotonic)
    _silent: set[Any] = field(default_factory=set)
    """Ray's names for the calls whose units were committed when last looked at."""
    _again: set[Unit] = field(default_factory=set)
    """Units that came back: a worker that was given up may still commit one."""

    def feed(self) -> list[Unit]:
        """Give units to workers until all are busy or nothing is ready; returns units that others have committed."""
        committed: list[Unit] = []
        if self.scheduler.has_ready() and self.copies:
            self.pool.release(self.attempts)
        while True:
            worker = next(self.pool.idle(), None)
            if worker is None:
                return committed
            if self.scheduler.shared:
                committed += self._committed_elsewhere(worker.loaded)
            unit = self.scheduler.take(worker.loaded, alone=not worker.queue)
            if unit is None:
                return committed
            suspect = self.scheduler.suspect(unit)
            units = [unit] if suspect else [unit, *self.scheduler.more(unit, self._batch(unit) - 1)]
            self._submit(worker, units, reserved=suspect)

    def _submit(self, worker: Any, units: list[Unit], *, reserved: bool = False, copy: bool = False) -> None:
        stage = self.plan.stages[units[0].stage]
        inputs = {role: (self.plan.stages[i].spec.stage, self.plan.stages[i].id) for role, i in stage.inputs.items()}
        self.attempts.update(units)
        self.pool.submit(worker, units, stage, inputs, reserved=reserved, copy=copy)

    def _batch(self, unit: Unit) -> int:
        """Return how many short units of a stage form one batch; every worker must still get some."""
        expected = self.pace.expected(unit)
        if expected is None:
            return 1
        share = math.ceil(self.scheduler.ready / (2 * max(self.pool.workers, 1)))
        return max(1, min(_BATCH_UNITS, share, int(BATCH_SECONDS / max(expected, 1e-6))))

    def _committed_elsewhere(self, loaded: str | None) -> list[Unit]:
        """Look for another driver's commits in the next stage, unless that was done a moment ago."""
        units: list[Unit] = []
        now = time.monotonic()
        while self.store is not None:
            position = self.scheduler.next_stage(loaded)
            if position is None or now - self._listed.get(position, -math.inf) < _LISTING_SECONDS:
                break
            self._listed[position] = now
            stage = self.plan.stages[position]
            units += self.scheduler.committed_elsewhere(position, stage.committed(self.store))
        for unit in units:
            self.pace.done(unit)
            self._news.add(self.plan.stages[unit.stage].id)
            self._log_event("committed_elsewhere", unit)
        self.elsewhere += len(units)
        return units

    def spare(self) -> list[Unit]:
        """Decide by what is newly committed, and count as done what no answer needs any more; returns that."""
        if self.spared is None or not self._news:
            return []
        units = self.scheduler.spare(self.spared.look(self._news))
        self._news.clear()
        for unit in units:
            self.pace.done(unit)
            self._log_event("spared", unit)
        self.not_needed += len(units)
        return units

    def copy_overdue(self) -> None:
        """Let idle workers run copies of overdue units, and of those that wait behind them, when nothing is ready."""
        if self.scheduler.has_ready():
            return
        idle = [worker for worker in self.pool.idle() if not worker.queue]
        if not idle or not self.attempts:
            return
        flights = [flight for flight in self.pool.flights() if any(self.attempts[unit] == 1 for unit in flight.units)]
        flights = [flight for flight in flights if self._overdue(flight)]
        # What waits costs nothing to take away; of what runs, the longest first.
        flights.sort(key=lambda flight: (flight.waits, flight.seconds), reverse=True)
        for flight in flights:
            if not idle:
                return
            worker = next((worker for worker in idle if worker.node != flight.node), idle[0])
            idle.remove(worker)
            units = [unit for unit in flight.units if self.attempts[unit] == 1]
            if flight.waits:
                self.pool.cancel(flight)
            else:
                self.copies += len(units)
                for unit in units:
                    self._log_event("copy_started", unit, place=worker.place)
            self._submit(worker, units, reserved=self.scheduler.suspect(units[0]), copy=not flight.waits)

    def give_up_silent(self) -> None:
        """Replace workers whose units are committed but whose answer was lost with the link.

        Where the link comes back before the node counts as dead, Ray notices after five minutes only.
        """
        now = time.monotonic()
        if now - self._looked < _SILENT_SECONDS:
            return
        self._looked = now
        flights = [flight for flight in self.pool.flights() if not flight.waits and self._overdue(flight)]
        silent = [flight for flight in flights if self._settled(flight)]
        for flight in silent:
            if flight.reference in self._silent:
                self.pool.give_up(flight, "its units are committed, but it has not said so")
        self._silent = {flight.reference for flight in silent}

    def _settled(self, flight: Flight) -> bool:
        """Return whether all units of a flight are committed."""
        if self.store is None:
            return False
        stage = self.plan.stages[flight.units[0].stage]
        names = (stage.chunks[unit.chunk].name for unit in reversed(flight.units))
        try:
            return all(self.store.committed(stage.spec.stage, stage.id, name) is not None for name in names)
        except StoreError:
            return False

    def _overdue(self, flight: Flight) -> bool:
        if flight.waits:
            return flight.seconds > BATCH_SECONDS  # a short batch comes up before it could be moved
        expected = self.pace.expected(flight.units[0])
        if expected is None:
            return flight.seconds > _OVERDUE_UNKNOWN
        return flight.seconds > _OVERDUE_TIMES * expected * len(flight.units) + _OVERDUE_SECONDS

    def account(self, event: Event) -> tuple[bool, Failure | None]:
        """Book an event; returns whether it decided about its unit, and the failure if the unit is quarantined."""
        unit = event.unit
        if unit not in self.attempts:
            return False, None  # another attempt was first
        if event.receipt is not None:
            self._committed(event, event.receipt)
            return True, None
        if event.unavailable:
            # Not the unit's fault, and no other unit would fare better: nothing is quarantined, the run stops.
            raise StoreUnavailable(f"stopped: {event.error}")
        if event.other_code:
            # Neither: another attempt would meet the same code, and other units fail there as fast.
            raise OtherCode(f"stopped: {event.error}")
        self.attempts[unit] -= 1
        if self.attempts[unit]:
            return False, None  # the other attempt decides
        del self.attempts[unit]
        if self.scheduler.spared(unit):
            return True, None
        self._again.add(unit)
        if not event.started:
            self.scheduler.put_back(unit, alone=event.doubtful)
            if event.error:  # else its batch was over before its turn came
                self._log_event("put_back", unit, place=event.place, error=event.error)
            return True, None
        if event.node_lost:
            failure = self.scheduler.node_lost(unit, event.error)
        else:
            failure = self.scheduler.failed(unit, event.error, event.traceback, final=event.final)
        again = "put_back" if event.node_lost else "retried"
        self._log_event("quarantined" if failure else again, unit, place=event.place, error=event.error)
        return True, failure

    def _committed(self, event: Event, receipt: Receipt) -> None:
        attempts = self.attempts.pop(event.unit)
        if self.scheduler.spared(event.unit):
            self.not_needed -= 1  # it was running, and is there now
        else:
            self.pace.done(event.unit)
        self.scheduler.succeeded(event.unit)
        self._news.add(self.plan.stages[event.unit.stage].id)
        if receipt.computed or attempts > 1 or event.unit in self._again:
            self.computed += 1
            self.images += receipt.images
            self.seconds += receipt.seconds
            self.copies_first += event.copy
            if event.seconds:
                self.pace.took(event.unit, event.seconds)
            self._log_event(
                "committed",
                event.unit,
                place=event.place,
                images=receipt.images,
                seconds=round(receipt.seconds, 4),
                loading_seconds=round(receipt.loading, 4) or None,
                copy=event.copy or None,
            )
        else:
            self.elsewhere += 1
            self.scheduler.shared = True
            self._log_event("committed_elsewhere", event.unit)

    def _log_event(self, event: str, unit: Unit, place: Place | None = None, **fields: Field) -> None:
        """Log what happened to a unit."""
        if not enabled():
            return
        stage = self.plan.stages[unit.stage]
        chunk = stage.chunks[unit.chunk].name
        log_event(
            event, unit=f"{stage.id}/{chunk}", stage=stage.spec.stage, chunk=chunk, **fields_of(place), **fields
        )
