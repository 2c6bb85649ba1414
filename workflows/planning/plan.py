"""From cells to units: which stages there are, which chunks each has, and what is committed already.

Cells share stages by content id: a static attack on the bare classifier appears once, however many defences are
judged under it. A unit is one stage of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tasks.stages import Chunk, StageSpec
from workflows.grid.load import Cell, Sweep
from workflows.store import Store

__all__ = ["Plan", "PlannedStage", "Unit", "make_plan"]


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

    def missing(self, committed: Sequence[set[int]]) -> Iterator[Unit]:
        """The units that are not committed."""
        for position, (stage, done) in enumerate(zip(self.stages, committed, strict=True)):
            yield from (Unit(position, chunk) for chunk in range(len(stage.chunks)) if chunk not in done)

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

    def committed(self, store: Store) -> list[set[int]]:
        """For each stage the positions of its chunks that have a commit."""
        found = []
        for stage in self.stages:
            names = store.committed_chunks(stage.spec.stage, stage.id)
            found.append({i for i, chunk in enumerate(stage.chunks) if chunk.name in names})
        return found


def make_plan(sweep: Sweep | Iterable[Cell]) -> Plan:
    """The plan of a sweep."""
    plan = Plan()
    for cell in sweep.cells if isinstance(sweep, Sweep) else sweep:
        for stage in cell.stages:
            plan.add(stage, cell.images.chunks)
    return plan
