r"""The cost of units: measured by the commits of a store, and for the next unit by this run.

The cost of a unit is taken as proportional to images x network evaluations, with one rate :math:`r` per kind (stage,
attack and its gradient, purifier, model), the mean over measured units. The sum of units with evaluations
:math:`w_1, ..., w_m` then lies within

.. math:: r \sum_j w_j \pm t_{n-1, 0.975}\, s \sqrt{\sum_j w_j^2 + (\sum_j w_j)^2 / n}

where :math:`s` is the standard deviation of the :math:`n` measured rates: the prediction interval of a sum of
independent units. It is needed because attacks that stop early differ from chunk to chunk. The first unit of a
process loads models and warms up; it is measured apart.
"""

import math
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from tasks.memory import HELD, IDLE, PEAK
from tasks.stages.kind import Kind
from workflows.planning.plan import Committed, Plan, PlannedStage, Unit
from workflows.store import Commit, DamagedCommit, NewerCommit, Store
from workflows.store.record import Count, Seconds, Share

__all__ = ["Cost", "Pace", "costs_of", "in_a_batch", "interval", "kinds_of", "missing_work", "unit_work"]

_SAMPLE = 8
"""Commits read per stage to measure its rate."""

_FIRST = 0.05
"""A unit that loaded for a larger share of its compute was the first of its process; any purifier loads a little."""


def kinds_of(plan: Plan) -> list[Kind]:
    """Return the kind of each stage of a plan."""
    return [stage.spec.kind for stage in plan.stages]


@dataclass(frozen=True)
class Cost:
    """The cost of units of one kind.

    Arguments:
        units: How many were measured.
        rate: Seconds per image and network evaluation, without loading.
        spread: Standard deviation of the rates of those units; None for one unit.
        loading: Seconds that the first unit of a process takes longer: loading the models, and warming up.
        first: Whether nothing but first units of processes was measured, so that the rate holds their warming up.
        idle: MiB that a worker holds without any network.
        each: MiB that each element of a batch takes beyond that, loaded networks included; None if no unit said so.
    """

    units: Count
    rate: Seconds
    spread: Seconds | None = None
    loading: Seconds = 0.0
    first: bool = False
    idle: Share = 0.0
    each: Share | None = None


def costs_of(
    committed: Committed, store: Store, *, gpu: bool | None = None, damaged: list[str] | None = None
) -> dict[Kind, Cost]:
    """Measure the cost of each kind of unit from the commits in a store.

    Arguments:
        committed: The units that were committed.
        store: Where the commits are.
        gpu: Believe commits of GPUs only (True) or of processors only (False); None believes all.
        damaged: Where to add a message about each commit that cannot be read; it measures nothing.
    """
    plan = committed.plan
    kinds, units = kinds_of(plan), []
    for position in range(len(plan.stages)):
        units += [Unit(position, chunk) for chunk in _sample(sorted(committed.of(position)))]

    def read(unit: Unit) -> Commit | None:
        stage = plan.stages[unit.stage]
        try:
            return store.committed(stage.spec.stage, stage.id, stage.chunks[unit.chunk].name)
        except (DamagedCommit, NewerCommit) as error:
            if damaged is not None:
                damaged.append(str(error))
            return None

    samples_of: dict[Kind, list[tuple[float, float, float]]] = {}
    memory_of: dict[Kind, list[tuple[float, float]]] = {}
    with ThreadPoolExecutor(8) as threads:
        for unit, commit in zip(units, threads.map(read, units), strict=True):
            if commit is not None and gpu in (None, "device" in commit.versions):
                stage = plan.stages[unit.stage]
                # By images and not by rows: a probe has other rows than one an image.
                work = len(stage.chunks[unit.chunk].ids) * _per_image(stage)
                loading = commit.note("loading_seconds")
                samples_of.setdefault(kinds[unit.stage], []).append((commit.seconds, work, loading))
                if commit.note(PEAK) and not commit.note("memory_retries"):
                    idle = commit.note(IDLE)
                    # Without held graphs, which give way where there is no room.
                    each = (commit.note(PEAK) - commit.note(HELD) - idle) / in_a_batch(stage, unit.chunk)
                    memory_of.setdefault(kinds[unit.stage], []).append((max(each, 0.0), idle))
    costs = {kind: _cost(samples) for kind, samples in samples_of.items()}
    for kind, memory in memory_of.items():
        # The least: the others ran in processes that still held what larger units had needed.
        each, idle = min(memory)
        costs[kind] = replace(costs[kind], each=round(each, 4), idle=idle)
    return costs


def in_a_batch(stage: PlannedStage, chunk: int) -> int:
    """Return how many elements of a unit go through the networks together."""
    return min(stage.spec.settings().batch, len(stage.chunks[chunk].ids) * stage.spec.together)


def _sample(done: list[int]) -> list[int]:
    """Return the first two, which loaded models, and others spread over the rest."""
    if len(done) <= _SAMPLE:
        return done
    step = (len(done) - 3) / (_SAMPLE - 3)
    return done[:2] + [done[2 + round(i * step)] for i in range(_SAMPLE - 2)]


def _cost(samples: list[tuple[float, float, float]]) -> Cost:
    """Return the cost from seconds, evaluations and loading seconds of units."""
    later = [seconds / work for seconds, work, loading in samples if loading <= _FIRST * seconds]
    rates = later or [seconds / work for seconds, work, _ in samples]
    rate = fmean(rates)
    # Not only loading makes the first unit slower, but also memory that is touched and code that runs first.
    first = [
        max(seconds - rate * work, 0.0) + loading for seconds, work, loading in samples if loading > _FIRST * seconds
    ]
    spread = stdev(rates) if len(rates) > 1 else None
    # The quickest: the very first process reads its files from the disk, later ones from the machine's memory.
    return Cost(len(rates), rate, spread, min(first, default=0.0), first=not later)


def interval(cost: Cost, works: float, squares: float) -> float | None:
    """Half the width of the 95 % interval of units with these evaluations and squares of them, in seconds.

    None of fewer than three measured units.
    """
    if cost.units < 3 or cost.spread is None:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, cost.units - 1)) * cost.spread * math.sqrt(squares + works**2 / cost.units)


def missing_work(committed: Committed) -> float:
    """Return the network evaluations of all missing units."""
    # Stage by stage: a plan may have a million units.
    return sum(_missing_images(stage, done) * stage.spec.work_per_image() for stage, done in committed.by_stage())


def unit_work(stage: PlannedStage, done: AbstractSet[int]) -> Iterator[float]:
    """Yield the evaluations of each missing unit of a stage."""
    per_image = _per_image(stage)
    return (per_image * len(chunk.ids) for position, chunk in enumerate(stage.chunks) if position not in done)


def _missing_images(stage: PlannedStage, done: AbstractSet[int]) -> int:
    return stage.images - sum(len(stage.chunks[chunk].ids) for chunk in done)


def _per_image(stage: PlannedStage) -> float:
    # A stage that asks no network is measured by the image.
    return stage.spec.work_per_image() or 1.0


class Pace:
    """The time of units in this run, with reading, writing and loading, as the driver saw it.

    Arguments:
        committed: The units of the plan that need no work.
        costs: What is known of kinds that have not run yet.
    """

    def __init__(self, committed: Committed, costs: Mapping[Kind, Cost] | None = None) -> None:
        self._plan = committed.plan
        self._kinds = kinds_of(self._plan)
        self._each = [_per_image(stage) for stage in self._plan.stages]
        self._known = {kind: cost.rate for kind, cost in (costs or {}).items()}
        self._rates: dict[Kind, float] = {}
        self._left: dict[Kind, float] = {}
        for kind, (stage, done) in zip(self._kinds, committed.by_stage(), strict=True):
            self._left[kind] = self._left.get(kind, 0.0) + _per_image(stage) * _missing_images(stage, done)

    def took(self, unit: Unit, seconds: float) -> None:
        """Count a finished unit. Recent ones weigh most: the first unit of a worker loads models."""
        rate = seconds / self._cost(unit)
        kind = self._kinds[unit.stage]
        self._rates[kind] = 0.8 * self._rates.get(kind, rate) + 0.2 * rate

    def done(self, unit: Unit) -> None:
        """Count a unit that needs no more work."""
        kind = self._kinds[unit.stage]
        self._left[kind] = self._left.get(kind, 0.0) - self._cost(unit)

    def expected(self, unit: Unit) -> float | None:
        """Return the expected seconds of a unit, or None if none of its kind has finished."""
        rate = self._rates.get(self._kinds[unit.stage])
        return None if rate is None else rate * self._cost(unit)

    def left(self) -> float | None:
        """Return the seconds of all units that are left, or None while the cost of one of their kinds is unknown."""
        total = 0.0
        for kind, work in self._left.items():
            rate = self._rates.get(kind, self._known.get(kind))
            if work > 1e-6 and rate is None:
                return None
            total += max(work, 0.0) * (rate or 0.0)
        return total

    def _cost(self, unit: Unit) -> float:
        return self._each[unit.stage] * len(self._plan.stages[unit.stage].chunks[unit.chunk].ids)
