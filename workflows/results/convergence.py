"""How far attacks with ``converge`` have come, and which cells they need next.

For each defence an attack goes along what it has, one after the other: steps, EOT draws, restarts, selection draws
(:mod:`workflows.grid.converge`). It is doubled until nothing changes twice in a row, and over both doublings
together, since small falls add up; or until the largest value is reached. *Nothing changes* where Avg changes by less
than the half-width of its 95 % interval, and the paired interval of the change holds 0: the images are the same, so
that far smaller changes show. What comes next goes on from the smallest value to which the lowest accuracy is no
change.

In a sweep with ``precision`` cells stop early, and both intervals are confidence sequences, on the first images that
both cells have. They are wider, so that less is called a change.

What cells there are is a function of the committed rows alone, so that a sweep that is resumed, or looked at from
elsewhere, has the same ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.attacks import AttackConfig
from workflows.grid.cells import Cell
from workflows.grid.converge import Axis, axes_of, doubled, going_on, value_of, warms
from workflows.grid.load import Sweep
from workflows.grid.precision import Precision
from workflows.results.reader import Results
from workflows.statistics.paired import paired_difference
from workflows.statistics.proportions import Proportion, average, proportion
from workflows.statistics.sequences import anytime, anytime_difference
from workflows.store import Store

__all__ = ["Chain", "Intervals", "Step", "chains", "convergence_frame", "extended"]

Shares = npt.NDArray[np.float64]

AGREE = 2
"""Doublings in a row that must change nothing."""


@dataclass(frozen=True)
class Intervals:
    """What accuracies are compared by.

    Arguments:
        precision: Of a sweep whose cells may stop early; None for intervals at a number of images fixed beforehand.
    """

    precision: Precision | None = None

    def accuracy(self, cell: Cell, shares: Shares) -> Proportion:
        """Return Avg of the images of a cell that count."""
        return proportion(shares) if self.precision is None else anytime(shares, self.precision.population(cell))

    def changed(self, cell: Cell, before: Shares, after: Shares) -> bool:
        """Return whether Avg changes, by the half-width of its interval or significantly on the same images."""
        accuracy, n = self.accuracy(cell, after), min(len(before), len(after))
        if self.precision is None:
            change = paired_difference(before, after)
        else:
            change = anytime_difference(before[:n], after[:n], self.precision.population(cell))
        return abs(change.value) >= (accuracy.high - accuracy.low) / 2 or change.low > 0 or change.high < 0


@dataclass(frozen=True)
class Step:
    """An attack on the way.

    Arguments:
        cell: Its cell.
        value: How much it has of what is doubled.
        attacks: What was doubled last, after those from whose images it goes on.
        shares: The share of right draws of each image; None while it is not complete.
        accuracy: Avg under it; None while it is not complete.
    """

    cell: Cell
    value: int
    attacks: tuple[AttackConfig, ...]
    shares: Shares | None
    accuracy: Proportion | None


@dataclass(frozen=True)
class Chain:
    """One attack on one defence with more and more of one thing.

    Arguments:
        start: The cell of the sweep that it belongs to.
        axis: What is doubled.
        most: The largest value that it may get.
        steps: The attacks, in order.
        state: ``converged``, ``not converged`` where the largest value came first, or ``not yet``.
        settled: Position of the step that is kept: the first to which the one of lowest accuracy is no change.
    """

    start: Cell
    axis: Axis
    most: int
    steps: tuple[Step, ...]
    state: str
    settled: int

    @property
    def kept(self) -> Step:
        """The step that what comes next begins with."""
        return self.steps[self.settled]


def chains(
    cell: Cell, judged: Callable[[Cell], Shares | None], intervals: Intervals = Intervals()
) -> Iterator[Chain]:
    """Yield the chains of a cell as far as its rows go.

    Arguments:
        cell: A cell with ``converge``.
        judged: Share of right draws of each image of a cell, in one order; None while it is not complete.
        intervals: By what accuracies are compared.
    """
    assert cell.attack is not None and cell.converge is not None
    at = cell
    attacks: tuple[AttackConfig, ...] = (cell.attack,)
    for axis in axes_of(cell.attack, cell.defence.purifier):
        chain = _chain(cell, at, attacks, axis, judged, intervals)
        if len(chain.steps) > 1 or chain.state == "not yet":
            yield chain
        if chain.state == "not yet":
            return
        at, attacks = chain.kept.cell, chain.kept.attacks


def _chain(
    start: Cell,
    first: Cell,
    attacks: tuple[AttackConfig, ...],
    axis: Axis,
    judged: Callable[[Cell], Shares | None],
    intervals: Intervals,
) -> Chain:
    assert start.attack is not None and start.converge is not None
    most, warm = start.converge.most(start.attack, axis), start.converge.warm and warms(start.attack)
    steps: list[Step] = []
    cell = first
    while True:
        shares = judged(cell)
        accuracy = None if shares is None else intervals.accuracy(cell, shares)
        step = Step(cell, value_of(attacks[-1], axis), attacks, shares, accuracy)
        steps.append(step)
        known = [step.shares for step in steps if step.shares is not None]

        def changed(before: Shares, after: Shares) -> bool:
            return intervals.changed(start, before, after)

        kept = _as_low(known, changed)
        if shares is None:
            return Chain(start, axis, most, tuple(steps), "not yet", kept)
        if _settled(known[-1 - AGREE :], changed):
            return Chain(start, axis, most, tuple(steps), "converged", kept)
        if 2 * step.value > most:
            return Chain(start, axis, most, tuple(steps), "not converged", kept)
        more = doubled(attacks[-1], axis)
        attacks = (*attacks, more) if warm else (more,)
        cell = replace(cell, threat=going_on(attacks) if warm else more, converge=None)


_Changed = Callable[[Shares, Shares], bool]


def _as_low(shares: list[Shares], changed: _Changed) -> int:
    """Return the first position to which the lowest accuracy is no change."""
    shared = min((len(of) for of in shares), default=0)  # where cells stop early, some have fewer images
    lowest = min(shares, key=lambda of: float(of[:shared].mean()), default=None)
    return next((place for place, of in enumerate(shares) if lowest is not None and not changed(of, lowest)), 0)


def _settled(last: list[Shares], changed: _Changed) -> bool:
    """Return whether the last doublings changed nothing: neither any of them nor all together."""
    return len(last) > AGREE and not any(changed(*pair) for pair in (*pairwise(last), (last[0], last[-1])))


def extended(sweep: Sweep, store: Store) -> Sweep:
    """Return a sweep with the cells that its attacks with ``converge`` have led to, as far as rows say; with its id.

    It is the sweep itself where no attack has ``converge``.
    """
    if not sweep.converges:
        return sweep
    base = sweep.base or sweep
    current = base
    while True:
        judge = _Judge(Results(store, current))
        cells = {cell.id: cell for cell in base.cells}
        for cell in base.cells:
            for chain in chains(cell, judge, Intervals(base.precision)) if cell.converge is not None else ():
                for step in chain.steps:
                    cells.setdefault(step.cell.id, step.cell)
        found = base.with_cells(tuple(cells.values()))
        # Where a cell that may stop early has stopped, only a sweep that holds it says.
        if base.precision is None or len(found.cells) == len(current.cells):
            return found
        current = found


class _Judge:
    """Shares of right draws of complete cells, each read once."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._known: dict[str, Shares | None] = {}
        asked = results.sweep.precision is not None
        self._held = {cell.id for cell in results.sweep.cells} if asked else None

    def __call__(self, cell: Cell) -> Shares | None:
        if self._held is not None and cell.id not in self._held:
            return None
        if cell.id not in self._known:
            correct = self._results.correct(cell)
            complete = self._results.complete(cell)
            self._known[cell.id] = average(correct) if complete else None
        return self._known[cell.id]


def convergence_frame(results: Results) -> pd.DataFrame:
    """Return the ablation: one row per attack on the way; empty where no attack has ``converge``.

    Columns: ``dataset``, ``classifier``, ``defence``, ``attack`` (as the sweep file has it), ``eps``, ``seed``;
    ``axis`` (steps, eot, restarts, select), ``value``, ``avg`` with ``avg_low`` and ``avg_high`` and its ``change``
    from half the value; ``state``: on the last row of a chain ``converged``, ``not converged`` or ``not yet``, on the
    kept one ``kept``; ``most``; ``cell``; ``images``; with ``precision`` also ``guarantee`` and ``stopped``.
    """
    sweep = results.sweep
    judge, lines, intervals = _Judge(results), [], Intervals(sweep.precision)
    for cell in sweep.cells:
        for chain in chains(cell, judge, intervals) if cell.converge is not None else ():
            labels, before = sweep.labels[chain.start.id], None
            for place, step in enumerate(chain.steps):
                mean = step.accuracy
                states = ["kept"] * (place == chain.settled and chain.state != "not yet")
                states += [chain.state] * (place == len(chain.steps) - 1)
                lines.append(
                    {
                        **{part: labels[part] for part in ("dataset", "classifier", "defence", "attack")},
                        "eps": 0.0 if cell.attack is None else cell.attack.eps,
                        "seed": cell.seed,
                        "axis": chain.axis,
                        "value": step.value,
                        "avg": None if mean is None else mean.value,
                        "avg_low": None if mean is None else mean.low,
                        "avg_high": None if mean is None else mean.high,
                        "change": None if mean is None or before is None else mean.value - before.value,
                        "state": ", ".join(states),
                        "most": chain.most,
                        "cell": step.cell.id,
                        "images": 0 if step.shares is None else len(step.shares),
                        **results.guarantee(step.cell),
                    }
                )
                before = mean
    return pd.DataFrame(lines)
