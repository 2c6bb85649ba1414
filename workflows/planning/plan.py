"""From cells to units: the stages, their chunks, and the committed ones.

Cells share stages by content id: a static attack on the bare classifier appears once, however many defences are
judged under it. A unit is one stage of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from tasks.stages import Chunk, StageSpec
from workflows.grid.load import Cell, Sweep
from workflows.store import Store

__all__ = ["Committed", "Plan", "PlannedStage", "Unit", "make_plan"]


@dataclass(frozen=True, slots=True)
class Unit:
    """One stage of one chunk, by position in the plan."""

    stage: int
    chunk: int


@dataclass(frozen=True)
class PlannedStage:
    """A stage of the plan.

    Arguments:
        spec: What to compute.
        id: Its content id.
        inputs: Positions of the stages whose images it reads, by role.
        chunks: The chunks; an input stage has the same ones at the same positions.
        images: Number of images of all chunks.
    """

    spec: StageSpec
    id: str
    inputs: dict[str, int]
    chunks: tuple[Chunk, ...]
    images: int

    def committed(self, store: Store) -> set[int]:
        """Return the positions of its chunks that have a commit in a store."""
        names = store.committed_chunks(self.spec.stage, self.id)
        return {position for position, chunk in enumerate(self.chunks) if chunk.name in names}


@dataclass
class Plan:
    """The distinct stages of a sweep, every input before its readers.

    Arguments:
        stages: The stages.
        requested: Units that the cells ask for, before equal ones are merged.
    """

    stages: list[PlannedStage] = field(default_factory=list)
    requested: int = 0

    @property
    def units(self) -> int:
        """Number of distinct units."""
        return sum(len(stage.chunks) for stage in self.stages)

    def work(self, unit: Unit) -> float:
        """Network evaluations of a unit."""
        stage = self.stages[unit.stage]
        return stage.spec.work_per_image() * len(stage.chunks[unit.chunk].ids)

    def add(self, spec: StageSpec, chunks: tuple[Chunk, ...]) -> int:
        """Add a stage and its inputs, each once; returns its position.

        Two cells that use different images of one data set have the same stage with other chunks: those are two
        entries here, which meet again in the store.
        """
        self.requested += len(chunks)
        inputs = {role: self.add(source, chunks) for role, source in spec.inputs().items()}
        known = self._positions.get((spec.id, chunks))
        if known is not None:
            return known
        self.stages.append(PlannedStage(spec, spec.id, inputs, chunks, sum(len(chunk.ids) for chunk in chunks)))
        self._positions[spec.id, chunks] = len(self.stages) - 1
        return len(self.stages) - 1

    _positions: dict[tuple[str, tuple[Chunk, ...]], int] = field(default_factory=dict, repr=False)

    def committed(self, store: Store) -> Committed:
        """Return the units that have a commit in a store."""
        return Committed(self, store.at_once(lambda stage: stage.committed(store), self.stages))


class Committed:
    """The committed units of a plan, which need no work.

    Arguments:
        plan: The plan.
        stages: Per stage, positions of those of its chunks; by default none.
    """

    def __init__(self, plan: Plan, stages: Iterable[AbstractSet[int]] | None = None) -> None:
        self.plan = plan
        self._stages = [set[int]() for _ in plan.stages] if stages is None else [set(chunks) for chunks in stages]
        if len(self._stages) != len(plan.stages):
            raise ValueError(f"the plan has {len(plan.stages)} stages, and chunks are given of {len(self._stages)}")

    @classmethod
    def all_but(cls, plan: Plan, units: Iterable[Unit]) -> Committed:
        """Return a value in which these units alone are missing."""
        committed = cls(plan, [set(range(len(stage.chunks))) for stage in plan.stages])
        for unit in units:
            committed.discard(unit)
        return committed

    def __contains__(self, unit: Unit) -> bool:
        return unit.chunk in self._stages[unit.stage]

    def __iter__(self) -> Iterator[Unit]:
        return (Unit(stage, chunk) for stage, chunks in enumerate(self._stages) for chunk in sorted(chunks))

    def __len__(self) -> int:
        return sum(map(len, self._stages))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Committed) and (self.plan, self._stages) == (other.plan, other._stages)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def add(self, unit: Unit) -> None:
        """Count a unit as committed."""
        self._stages[unit.stage].add(unit.chunk)

    def discard(self, unit: Unit) -> None:
        """Count a unit as missing."""
        self._stages[unit.stage].discard(unit.chunk)

    def of(self, stage: int) -> AbstractSet[int]:
        """Return the positions of the committed chunks of a stage."""
        return self._stages[stage]

    def by_stage(self) -> Iterator[tuple[PlannedStage, AbstractSet[int]]]:
        """Yield each stage with the positions of its committed chunks."""
        yield from zip(self.plan.stages, self._stages, strict=True)

    @property
    def missing(self) -> int:
        """Number of units that are not committed."""
        return self.plan.units - len(self)

    def missing_of(self, stage: int) -> int:
        """Return the number of units of a stage that are not committed."""
        return len(self.plan.stages[stage].chunks) - len(self._stages[stage])

    def missing_units(self) -> Iterator[Unit]:
        """Yield the units that are not committed, stage by stage."""
        for position, (stage, done) in enumerate(self.by_stage()):
            yield from (Unit(position, chunk) for chunk in range(len(stage.chunks)) if chunk not in done)


def make_plan(sweep: Sweep | Iterable[Cell]) -> Plan:
    """Return the plan of a sweep."""
    plan, cells = Plan(), list(sweep.cells if isinstance(sweep, Sweep) else sweep)
    for cell in cells:
        for stage in cell.stages:
            plan.add(stage, cell.images.chunks)
    for cell in cells:
        for probe, chunk in cell.probes:
            plan.add(probe, (chunk,))
    return plan
