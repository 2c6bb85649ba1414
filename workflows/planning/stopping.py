"""Where the cells of a sweep stop: after how many chunks their questions are answered, and which units that spares.

The decision is a function of the committed rows in the sweep's order alone, of the longest prefix of chunks without a
gap. So it does not depend on which worker was faster, on resuming, or on how many drivers there are, and rows beyond
it count for nothing. A question is answered after the first chunk at which its confidence sequence
(:mod:`workflows.statistics.sequences`) is narrow enough, or leaves one answer. A stricter question needs more chunks
of the same order.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from defense.aggregate import Aggregation, aggregate
from defense.errors import InvalidInput, StoreError
from workflows.grid.load import Cell, Sweep
from workflows.grid.precision import MARGIN, Measure, Question
from workflows.planning.plan import Committed, Plan, Unit
from workflows.statistics.proportions import worst_of
from workflows.statistics.sequences import anytime_difference, sequence_ends
from workflows.store import Store

__all__ = ["Spared", "Stopping", "answered", "measured", "needed", "resubmissions"]

Values = npt.NDArray[np.float64]


def resubmissions(cell: Cell) -> int:
    """M: how often an adversary may submit. Where draws cannot differ it is nothing to ask for."""
    return min(cell.resubmissions or cell.defence.draws, cell.defence.draws)


def measured(
    prediction: npt.NDArray[np.integer],
    mean_probability: npt.NDArray[np.floating],
    label: npt.NDArray[np.integer],
    measure: Measure,
    aggregation: Aggregation,
    resubmitted: int,
) -> Values:
    """Return one value in [0, 1] per image, of which a measure is the mean.

    Arguments:
        prediction: Answers, shape (n, draws).
        mean_probability: Mean over draws of each class's probability, shape (n, classes).
        label: Classes, shape (n,).
        measure: Which.
        aggregation: How the defence answers from its draws.
        resubmitted: M of Wor-M.
    """
    if measure == "answer":
        return np.asarray(aggregate(prediction, mean_probability, aggregation) == label, dtype=np.float64)
    correct = prediction == label[:, None]
    return worst_of(correct, resubmitted) if measure == "worst" else np.asarray(correct.mean(1), dtype=np.float64)


def answered(question: Question, values: list[Values], population: int | None) -> bool:
    """Return whether a question is answered by the values of its cells, or of its cell and its baseline, on images.

    It stays so with more images, because the sequence is a running intersection.
    """
    precision = question.precision
    if not len(values[0]):
        return False
    if len(values) == 2:
        d = anytime_difference(values[0], values[1], population)
        if precision.decide is not None and precision.decide.drop is not None:
            return d.high < precision.decide.drop / 100 or d.low > MARGIN
        return d.low > 0 or d.high < 0
    low, high = sequence_ends(values[0], population)
    if precision.decide is not None and precision.decide.threshold is not None:
        return low > precision.decide.threshold / 100 or high < precision.decide.threshold / 100
    assert precision.half_width is not None
    return (high - low) / 2 <= precision.half_width / 100 + 1e-12


@dataclass
class _State:
    """What is known of a question.

    Arguments:
        known: Chunks that the last look was at.
        stop: After how many chunks it is answered; None while it is not.
    """

    known: int = 0
    stop: int | None = None


class Stopping:
    """Where the cells of a sweep stop, by what a store has.

    Call :meth:`look` when there may be new commits.
    """

    def __init__(self, sweep: Sweep, store: Store) -> None:
        self.sweep = sweep
        self._store = store
        decide = None if sweep.precision is None else sweep.precision.decide
        if decide is not None and decide.baseline is not None and any(q.reference is None for q in sweep.questions):
            raise InvalidInput(
                "this sweep asks whether accuracy has fallen since a baseline, which was not read: "
                "`workflows.regression.baselines.referenced(sweep)` reads it."
            )
        self._stage = {position: sweep.cells[position].evaluate for q in sweep.questions for position in q.cells}
        self._ids = {position: stage.id for position, stage in self._stage.items()}
        self._states = [_State() for _ in sweep.questions]
        self._of: dict[int, list[int]] = defaultdict(list)
        for number, question in enumerate(sweep.questions):
            for position in question.cells:
                self._of[position].append(number)
        self._values: dict[int, list[Values]] = {position: [] for position in self._of}
        """Per cell with a question, the values of each chunk of its longest committed prefix."""

    def look(self, stages: Collection[str] | None = None) -> list[int]:
        """Read what is newly committed, and decide.

        Arguments:
            stages: Ids of the stages with new commits; None for any.

        Returns:
            Positions of the cells that have stopped since the last look.
        """
        listed: dict[str, set[str]] = {}
        touched: set[int] = set()
        for position, stage_id in self._ids.items():
            if stages is not None and stage_id not in stages:
                continue
            if self.stop(position) is not None:
                continue
            if stage_id not in listed:
                listed[stage_id] = self._store.committed_chunks("evaluate", stage_id)
            if self._extend(position, listed[stage_id]):
                touched.update(self._of[position])
        open_before = [position for position in self._of if self.stop(position) is None]
        for number in sorted(touched):
            self._decide(number)
        return [position for position in open_before if self.stop(position) is not None]

    def _extend(self, position: int, committed: set[str]) -> bool:
        """Read further chunks of the prefix of a cell; returns whether there were any."""
        cell, values = self.sweep.cells[position], self._values[position]
        before = len(values)
        for chunk in cell.images.chunks[before:]:
            if chunk.name not in committed:
                break
            try:
                table = self._store.read_rows("evaluate", self._ids[position], chunk.name)
            except StoreError:  # damaged: a run finds it and computes it again
                break
            values.append(self._read(cell, table))
        return len(values) > before

    def _read(self, cell: Cell, table: pa.Table) -> Values:
        precision = self.sweep.precision
        assert precision is not None  # there are questions
        n = table.num_rows
        answers = [pc.list_flatten(table[name]).to_numpy().reshape(n, -1) for name in _ANSWERS]
        label = table["label"].to_numpy()
        prediction, mean_probability = answers
        m, aggregation = resubmissions(cell), cell.defence.aggregation
        return measured(prediction, mean_probability, label, precision.measure, aggregation, m)

    def _decide(self, number: int) -> None:
        """Find the first chunk at which a question is answered."""
        question, state = self.sweep.questions[number], self._states[number]
        known = min(len(self._values[position]) for position in question.cells)
        if state.stop is not None or known == state.known:
            return
        if self._answered(question, known):
            low, high = state.known + 1, known
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if self._answered(question, middle) else (middle + 1, high)
            state.stop = low
        state.known = known

    def _answered(self, question: Question, chunks: int) -> bool:
        return answered(question, self._first(question, chunks), self.population(question))

    def _first(self, question: Question, chunks: int) -> list[Values]:
        values = [np.concatenate([np.zeros(0), *self._values[position][:chunks]]) for position in question.cells]
        if question.reference is None:
            return values
        ids = [i for chunk in self.sweep.cells[question.cells[0]].images.chunks[:chunks] for i in chunk.ids]
        known = [place for place, i in enumerate(ids) if i in question.reference]
        # The drop is what the baseline has and this run has not.
        return [values[0][known], np.array([question.reference[ids[place]] for place in known], dtype=np.float64)]

    def population(self, question: Question) -> int | None:
        """Return of how many images the accuracies of a question are; None of the distribution."""
        return question.precision.population(self.sweep.cells[question.cells[0]])

    def used(self, number: int) -> list[Values]:
        """Return the values of a question's cells on the images that it goes by: up to its answer, or all so far."""
        question, stop = self.sweep.questions[number], self._states[number].stop
        shared = min(len(self._values[position]) for position in question.cells)
        return self._first(question, shared if stop is None else stop)

    def stop(self, position: int) -> int | None:
        """Return after how many chunks all questions of a cell are answered; None if one is not, or it has none."""
        stops = [self._states[number].stop for number in self._of.get(position, ())]
        if not stops or None in stops:
            return None
        return max(stop for stop in stops if stop is not None)

    def prefix(self, position: int) -> int | None:
        """Return how many chunks of a cell count: up to where it stops, else those without a gap; None for all."""
        if position not in self._of:
            return None
        stop = self.stop(position)
        return len(self._values[position]) if stop is None else stop

    def asked(self, position: int) -> bool:
        """Return whether a cell has a question."""
        return position in self._of


_ANSWERS = ("prediction", "mean_probability")


class Spared:
    """Which units of a plan no open question needs.

    Attributes:
        may_stop: For each stage whether all the cells that it serves have questions; others are computed in full.
    """

    def __init__(self, stopping: Stopping, plan: Plan) -> None:
        self.stopping = stopping
        self._users: list[list[int]] = [[] for _ in plan.stages]
        self._of_cell: list[set[int]] = []
        for number, cell in enumerate(stopping.sweep.cells):
            mine: set[int] = set()
            for spec in cell.stages:
                mine |= plan.with_inputs(plan.position(spec, cell.images.chunks))
            self._of_cell.append(mine)
            for position in mine:
                self._users[position].append(number)
        self.may_stop = [bool(users) and all(map(stopping.asked, users)) for users in self._users]
        self._needed = [len(stage.chunks) for stage in plan.stages]
        self._chunks = tuple(self._needed)

    def all(self) -> list[Unit]:
        """Return :meth:`of` all cells."""
        return self.of(range(len(self._of_cell)))

    def of(self, cells: Iterable[int]) -> list[Unit]:
        """Return the units that are not needed any more since these cells have stopped, each once over all calls.

        Arguments:
            cells: Positions in the sweep.
        """
        found = []
        for position in sorted({position for number in cells for position in self._of_cell[number]}):
            stops = [self.stopping.stop(number) for number in self._users[position]]
            needed = max(self._chunks[position] if stop is None else stop for stop in stops)
            found += [Unit(position, chunk) for chunk in range(needed, self._needed[position])]
            self._needed[position] = min(needed, self._needed[position])
        return found

    def look(self, stages: Collection[str]) -> list[Unit]:
        """Decide by what is newly committed of some stages, by their ids; returns the units that this spares."""
        return self.of(self.stopping.look(stages))


def needed(sweep: Sweep, plan: Plan, committed: Committed, store: Store) -> Spared | None:
    """Spare the units that no open question of a sweep needs, in ``committed``; None where it asks none."""
    if not sweep.questions:
        return None
    stopping = Stopping(sweep, store)
    stopping.look()
    spared = Spared(stopping, plan)
    committed.spare(spared.all())
    return spared
