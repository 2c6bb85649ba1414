"""Choose the next unit: dependencies, model affinity, attempts. Pure bookkeeping, no Ray, O(1) per unit.

A unit becomes ready when its inputs are committed. A worker preferably gets a unit whose models it has loaded;
otherwise one from the stage with most ready units. A unit that failed is tried again after those that are ready, on a
worker that holds no other unit: when a process dies, its last message may be lost, and only a unit that was alone
there is surely to blame. After ``max_attempts`` failures it is quarantined; units that would read its images are
blocked, all others go on. A unit whose node was lost is not to blame, up to a point: it may be what kills nodes.

Stages that may stop early go chunk by chunk: all stages of the first chunk, then, when a worker has nothing to do,
the next chunk of those that still need it.
"""

import random
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from workflows.planning.plan import Committed, Unit

__all__ = ["MAX_LOSSES", "Failure", "Scheduler"]

MAX_LOSSES = 10
"""Nodes that may be lost below one unit before that counts as its failure."""


@dataclass(frozen=True)
class Failure:
    """Why a unit was quarantined.

    Arguments:
        unit: The unit.
        attempts: How often it was tried.
        error: The last cause, one line.
        traceback: The last traceback, or "" where there is none (a killed or stuck process).
        final: Whether the input is to blame, which must be corrected first.
    """

    unit: Unit
    attempts: int
    error: str
    traceback: str
    final: bool = False


class _Longest:
    """Stages by the number of their ready units. Lengths change by little, so the longest is found in O(1)."""

    def __init__(self) -> None:
        # An ordered dict is a set here whose first element is found in O(1) after any number of removals.
        self._stages: dict[int, OrderedDict[int, None]] = {}
        self._top = 0

    def move(self, stage: int, old: int, new: int) -> None:
        """Move a stage whose queue has become longer or shorter."""
        if old:
            del self._stages[old][stage]
            if not self._stages[old]:
                del self._stages[old]
        if new:
            self._stages.setdefault(new, OrderedDict())[stage] = None
            self._top = max(self._top, new)

    def first(self) -> int | None:
        """Return the stage with the longest queue, of equals the one that waits longest; None if all are empty."""
        if not self._stages:
            self._top = 0
            return None
        while self._top not in self._stages:
            self._top -= 1
        return next(iter(self._stages[self._top]))


class Scheduler:
    """Hands out units.

    Arguments:
        committed: The units of the plan that need no work.
        max_attempts: Failures after which a unit is quarantined.
        may_stop: For each stage whether it may turn out to need fewer chunks; by default none does.

    Attributes:
        failures: Quarantined units.
        retries: Failures after which a unit was tried again.
        lost: Units that were put back because their node was lost.
        remaining: Units that are not committed, quarantined and blocked ones among them.
        ready: Units that can be taken now.
        shared: Whether another driver works on the same units. Chunks are then taken in random order: two drivers in
            the same order would compute the same units at the same time.
    """

    def __init__(self, committed: Committed, max_attempts: int = 3, may_stop: Sequence[bool] | None = None) -> None:
        plan = committed.plan
        self._may_stop = may_stop or [False] * len(plan.stages)
        self._opened = 0
        """Chunks that are open of the stages that may stop."""
        self._held: dict[int, OrderedDict[int, None]] = {}
        """Of later chunks the stages that could take them; empty ones are removed."""
        self._spared: set[Unit] = set()
        self.max_attempts = max_attempts
        self.failures: list[Failure] = []
        self.retries = 0
        self.lost = 0
        self.ready = 0
        self.shared = False
        self._done = [bytearray(len(stage.chunks)) for stage in plan.stages]
        self._attempts: dict[Unit, int] = {}
        self._losses: dict[Unit, int] = {}
        self._suspects: deque[Unit] = deque()
        self._ready: list[deque[int]] = [deque() for _ in plan.stages]
        self._readers: list[list[int]] = [[] for _ in plan.stages]
        self._sources = [tuple(set(stage.inputs.values())) for stage in plan.stages]  # once, though read in two roles
        self._keys = [stage.spec.model_key() for stage in plan.stages]
        # Sources come before readers, so that work for everybody appears early: two queues, overall and per model.
        self._overall = (_Longest(), _Longest())
        self._by_key = {key: (_Longest(), _Longest()) for key in self._keys}
        for position, sources in enumerate(self._sources):
            for chunk in committed.of(position):
                self._done[position][chunk] = 1
            for source in sources:
                self._readers[source].append(position)
        for position, sources in enumerate(self._sources):
            if all(any(self._done[source]) for source in sources):
                chunks = [c for c in range(len(self._done[position])) if self._is_ready(position, c)]
                if self._may_stop[position]:
                    for chunk in chunks:
                        self._held.setdefault(chunk, OrderedDict())[position] = None
                else:
                    self._resize(position, deque(chunks))
        self.remaining = sum(done.count(0) for done in self._done)

    def _is_ready(self, stage: int, chunk: int) -> bool:
        return not self._done[stage][chunk] and all(self._done[source][chunk] for source in self._sources[stage])

    def _resize(self, stage: int, ready: deque[int] | None = None, *, old: int = 0) -> None:
        """Update the counts after the queue of a stage has changed from ``old`` units, or to ``ready``."""
        if ready is not None:
            old, self._ready[stage] = len(self._ready[stage]), ready
        new = len(self._ready[stage])
        self.ready += new - old
        leaf = not self._readers[stage]
        self._overall[leaf].move(stage, old, new)
        self._by_key[self._keys[stage]][leaf].move(stage, old, new)

    def key(self, unit: Unit) -> str:
        """Model key of a unit."""
        return self._keys[unit.stage]

    def next_stage(self, loaded: str | None) -> int | None:
        """Return the stage that :meth:`take` would take from, or None if only suspects are ready."""
        for queues in (self._by_key.get(loaded or ""), self._overall):
            for queue in queues or ():
                stage = queue.first()
                if stage is not None and (queues is self._overall or self._keys[stage] == loaded):
                    return stage
        return None

    def _open(self) -> None:
        """Open the next chunk that a stage could take."""
        chunk = min(self._held)
        self._opened = max(self._opened, chunk + 1)
        for stage in self._held.pop(chunk):
            self._ready[stage].append(chunk)
            self._resize(stage, old=len(self._ready[stage]) - 1)

    def take(self, loaded: str | None, *, alone: bool = True) -> Unit | None:
        """Take the next unit for a worker, or None if nothing is ready for it now.

        Arguments:
            loaded: Key of the models that the worker has loaded.
            alone: Whether the worker holds no unit: only then it may get one that failed before.
        """
        stage = self.next_stage(loaded)
        if stage is None and alone and self._held and not self._suspects:  # a worker that holds units waits for them
            self._open()
            stage = self.next_stage(loaded)
        if stage is None:
            return self._suspects.popleft() if alone and self._suspects else None
        return Unit(stage, self._take(stage, 1)[0])

    def more(self, unit: Unit, count: int) -> list[Unit]:
        """Take up to ``count`` further units of a stage, which go to the same worker in one message."""
        return [Unit(unit.stage, chunk) for chunk in self._take(unit.stage, count)]

    def _take(self, stage: int, count: int) -> list[int]:
        ready = self._ready[stage]
        old = len(ready)
        if self.shared and ready:
            ready.rotate(random.randrange(old))  # noqa: S311 (no result depends on it)
        taken = [ready.popleft() for _ in range(min(count, old))]
        self._resize(stage, old=old)
        return taken

    def suspect(self, unit: Unit) -> bool:
        """Return whether the unit failed before, or may have, and must be alone on its worker."""
        return unit in self._attempts

    def done(self, unit: Unit) -> bool:
        """Return whether the unit is committed."""
        return bool(self._done[unit.stage][unit.chunk])

    def has_ready(self) -> bool:
        """Return whether a unit can be taken now."""
        return self.ready > 0 or bool(self._suspects) or bool(self._held)

    def put_back(self, unit: Unit, *, alone: bool = False) -> None:
        """Put back a unit that was never started, because its worker died while another one ran.

        Arguments:
            unit: The unit.
            alone: It may have been the one that ran: it is a suspect from now on, without an attempt.
        """
        if alone:
            self._attempts.setdefault(unit, 0)
        if self.suspect(unit):
            self._suspects.appendleft(unit)
        else:
            self._ready[unit.stage].appendleft(unit.chunk)
            self._resize(unit.stage, old=len(self._ready[unit.stage]) - 1)

    def succeeded(self, unit: Unit) -> None:
        """Count a unit as committed; its readers may become ready."""
        if unit in self._spared:  # it was running then
            self._spared.remove(unit)
            return
        self._done[unit.stage][unit.chunk] = 1
        self._attempts.pop(unit, None)
        self._losses.pop(unit, None)
        self.remaining -= 1
        for reader in self._readers[unit.stage]:
            if not self._is_ready(reader, unit.chunk):
                continue
            if self._may_stop[reader] and unit.chunk >= self._opened:
                self._held.setdefault(unit.chunk, OrderedDict())[reader] = None
                continue
            self._ready[reader].append(unit.chunk)
            self._resize(reader, old=len(self._ready[reader]) - 1)

    def spare(self, units: Iterable[Unit]) -> list[Unit]:
        """Count units as not needed, with all that read them; returns those that were not committed."""
        found = []
        for unit in units:
            if self.done(unit):
                continue
            found.append(unit)
            self._done[unit.stage][unit.chunk] = 1
            self.remaining -= 1
            self._spared.add(unit)
            held = self._held.get(unit.chunk, OrderedDict())
            if unit.stage in held:
                del held[unit.stage]
                if not held:
                    del self._held[unit.chunk]
            elif unit.chunk in self._ready[unit.stage]:
                self._ready[unit.stage].remove(unit.chunk)
                self._resize(unit.stage, old=len(self._ready[unit.stage]) + 1)
            elif unit in self._suspects:
                self._suspects.remove(unit)
        self.failures = [failure for failure in self.failures if failure.unit not in self._spared]
        return found

    def spared(self, unit: Unit) -> bool:
        """Return whether a unit is not needed any more, and not committed."""
        return unit in self._spared

    def committed_elsewhere(self, stage: int, chunks: AbstractSet[int]) -> list[Unit]:
        """Count chunks that another driver has committed; returns the units among them that were waiting here."""
        units = [Unit(stage, chunk) for chunk in self._ready[stage] if chunk in chunks]
        if units:
            self._resize(stage, deque(chunk for chunk in self._ready[stage] if chunk not in chunks))
            for unit in units:
                self.succeeded(unit)
        return units

    def failed(self, unit: Unit, error: str, traceback: str = "", *, final: bool = False) -> Failure | None:
        """Count a failed attempt; returns the failure if the unit is now quarantined.

        Arguments:
            unit: The unit.
            error: The cause, one line.
            traceback: The remote traceback, if any.
            final: No further attempt: the input is to blame.
        """
        attempts = self._attempts.get(unit, 0) + 1
        self._attempts[unit] = attempts
        if attempts < self.max_attempts and not final:
            self.retries += 1
            self._suspects.append(unit)
            return None
        failure = Failure(unit, attempts, error, traceback, final)
        self.failures.append(failure)
        return failure

    def node_lost(self, unit: Unit, error: str) -> Failure | None:
        """Count the loss of a running unit's node: no attempt, unless that happens to the unit repeatedly."""
        losses = self._losses.get(unit, 0) + 1
        self._losses[unit] = losses
        if losses >= MAX_LOSSES:
            return self.failed(unit, f"{losses} nodes were lost while it ran, last: {error}")
        self.lost += 1
        self.put_back(unit)
        return None
