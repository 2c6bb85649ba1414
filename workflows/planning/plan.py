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

    def position(self, spec: StageSpec, chunks: tuple[Chunk, ...]) -> int:
        """Return the position of a stage that was added."""
        return self._positions[spec.id, chunks]

    def with_inputs(self, stage: int) -> set[int]:
        """Return the positions of a stage and of all that it reads, however far back."""
        found, rest = set[int](), [stage]
        while rest:
            position = rest.pop()
            if position not in found:
                found.add(position)
                rest += self.stages[position].inputs.values()
        return found

    _positions: dict[tuple[str, tuple[Chunk, ...]], int] = field(default_factory=dict, repr=False)

    def committed(self, store: Store) -> Committed:
        """Return the units that have a commit in a store."""
        return Committed(self, store.at_once(lambda stage: stage.committed(store), self.stages))


class Committed:
    """The units of a plan that need no work: committed ones, and those that are spared since no answer needs them.

    Arguments:
        plan: The plan.
        stages: Per stage, positions of those of its chunks that are committed; by default none.
    """

    def __init__(self, plan: Plan, stages: Iterable[AbstractSet[int]] | None = None) -> None:
        self.plan = plan
        self._stages = [set[int]() for _ in plan.stages] if stages is None else [set(chunks) for chunks in stages]
        if len(self._stages) != len(plan.stages):
            raise ValueError(f"the plan has {len(plan.stages)} stages, and chunks are given of {len(self._stages)}")
        self._spared = [set[int]() for _ in plan.stages]

    @classmethod
    def all_but(cls, plan: Plan, units: Iterable[Unit]) -> Committed:
        """Return a value in which these units alone are missing."""
        committed = cls(plan, [set(range(len(stage.chunks))) for stage in plan.stages])
        for unit in units:
            committed.discard(unit)
        return committed

    def __contains__(self, unit: Unit) -> bool:
        return unit.chunk in self._stages[unit.stage] or unit.chunk in self._spared[unit.stage]

    def __iter__(self) -> Iterator[Unit]:
        """Yield the committed units."""
        return (Unit(stage, chunk) for stage, chunks in enumerate(self._stages) for chunk in sorted(chunks))

    def __len__(self) -> int:
        """Return the number of committed units."""
        return sum(map(len, self._stages))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Committed) and (self.plan, self._stages, self._spared) == (
            other.plan,
            other._stages,
            other._spared,
        )

    __hash__ = None  # type: ignore[assignment]  # it changes

    def add(self, unit: Unit) -> None:
        """Count a unit as committed."""
        self._stages[unit.stage].add(unit.chunk)

    def discard(self, unit: Unit) -> None:
        """Count a unit as missing."""
        self._stages[unit.stage].discard(unit.chunk)

    def spare(self, units: Iterable[Unit]) -> None:
        """Count units as needing no work, those among them that are not committed."""
        for unit in units:
            if unit.chunk not in self._stages[unit.stage]:
                self._spared[unit.stage].add(unit.chunk)

    def spared_of(self, stage: int) -> int:
        """Return the number of units of a stage that no answer needs and that are not committed."""
        return len(self._spared[stage])

    @property
    def spared(self) -> int:
        """Number of units that no answer needs and that are not committed."""
        return sum(map(len, self._spared))

    def of(self, stage: int) -> AbstractSet[int]:
        """Return the positions of the chunks of a stage that need no work."""
        return self._stages[stage] | self._spared[stage] if self._spared[stage] else self._stages[stage]

    def by_stage(self) -> Iterator[tuple[PlannedStage, AbstractSet[int]]]:
        """Yield each stage with the positions of its chunks that need no work."""
        yield from zip(self.plan.stages, map(self.of, range(len(self._stages))), strict=True)

    @property
    def missing(self) -> int:
        """Number of units that need work."""
        return self.plan.units - len(self) - self.spared

    def missing_of(self, stage: int) -> int:
        """Return the number of units of a stage that need work."""
        return len(self.plan.stages[stage].chunks) - len(self.of(stage))

    def missing_units(self) -> Iterator[Unit]:
        """Yield the units that need work, stage by stage."""
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
