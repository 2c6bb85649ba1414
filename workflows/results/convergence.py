"""How far attacks with ``converge`` have come, and which cells they need next.

For each defence an attack goes along what it has, one after the other: steps, EOT draws, restarts, selection draws
(:mod:`workflows.grid.converge`). It is doubled until nothing changes twice in a row, and over both doublings
together, since small falls add up; or until the largest value is reached. *Nothing changes* where Avg changes by less
than the half-width of its 95 % interval, and the paired interval of the change holds 0: the images are the same, so
that far smaller changes show. What comes next goes on from the smallest value to which the lowest accuracy is no
change.

What cells there are is a function of the committed rows alone, so that a sweep that is resumed, or looked at from
elsewhere, has the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from workflows.grid.cells import Cell
from workflows.grid.converge import Axis, axes_of, doubled, value_of
from workflows.grid.load import Sweep
from workflows.results.reader import Results
from workflows.statistics.paired import paired_difference
from workflows.statistics.proportions import Proportion, average, proportion
from workflows.store import Store

__all__ = ["Chain", "Step", "chains", "convergence_frame", "extended"]

Shares = npt.NDArray[np.float64]

AGREE = 2
"""Doublings in a row that must change nothing."""


@dataclass(frozen=True)
class Step:
    """An attack on the way.

    Arguments:
        cell: Its cell.
        value: How much it has of what is doubled.
        shares: The share of right draws of each image; None while it is not complete.
    """

    cell: Cell
    value: int
    shares: Shares | None

    @property
    def accuracy(self) -> Proportion | None:
        """Avg under it; None while it is not complete."""
        return None if self.shares is None else proportion(self.shares)


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


def chains(cell: Cell, judged: Callable[[Cell], Shares | None]) -> Iterator[Chain]:
    """Yield the chains of a cell as far as its rows go.

    Arguments:
        cell: A cell with ``converge``.
        judged: Share of right draws of each image of a cell, in one order; None while it is not complete.
    """
    assert cell.attack is not None and cell.converge is not None
    at = cell
    for axis in axes_of(cell.attack, cell.defence.purifier):
        chain = _chain(cell, at, axis, judged)
        if len(chain.steps) > 1 or chain.state == "not yet":
            yield chain
        if chain.state == "not yet":
            return
        at = chain.kept.cell


def _chain(start: Cell, first: Cell, axis: Axis, judged: Callable[[Cell], Shares | None]) -> Chain:
    assert start.attack is not None and start.converge is not None
    most = start.converge.most(start.attack, axis)
    steps: list[Step] = []
    cell = first
    while True:
        assert cell.attack is not None
        step = Step(cell, value_of(cell.attack, axis), judged(cell))
        steps.append(step)
        shares = [step.shares for step in steps if step.shares is not None]
        kept = _as_low(shares)
        if step.shares is None:
            return Chain(start, axis, most, tuple(steps), "not yet", kept)
        if _settled(shares[-1 - AGREE :]):
            return Chain(start, axis, most, tuple(steps), "converged", kept)
        if 2 * step.value > most:
            return Chain(start, axis, most, tuple(steps), "not converged", kept)
        cell = replace(cell, threat=doubled(cell.attack, axis), converge=None)


def _as_low(shares: list[Shares]) -> int:
    """Return the first position to which the lowest accuracy is no change."""
    lowest = min(shares, key=lambda of: float(of.mean()), default=None)
    return next((place for place, of in enumerate(shares) if lowest is not None and not _changed(of, lowest)), 0)


def _settled(last: list[Shares]) -> bool:
    """Return whether the last doublings changed nothing: neither any of them nor all together."""
    return len(last) > AGREE and not any(_changed(*pair) for pair in (*pairwise(last), (last[0], last[-1])))


def _changed(before: Shares, after: Shares) -> bool:
    accuracy, change = proportion(after), paired_difference(before, after)
    return abs(change.value) >= (accuracy.high - accuracy.low) / 2 or change.low > 0 or change.high < 0


def extended(sweep: Sweep, store: Store) -> Sweep:
    """Return a sweep with the cells that its attacks with ``converge`` have led to, as far as rows say; with its id.

    It is the sweep itself where no attack has ``converge``.
    """
    if not sweep.converges:
        return sweep
    base = sweep.base or sweep
    judge = _Judge(Results(store, base))
    cells = {cell.id: cell for cell in base.cells}
    for cell in base.cells:
        for chain in chains(cell, judge) if cell.converge is not None else ():
            for step in chain.steps:
                cells.setdefault(step.cell.id, step.cell)
    return base.with_cells(tuple(cells.values()))


class _Judge:
    """Shares of right draws of complete cells, each read once."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._known: dict[str, Shares | None] = {}

    def __call__(self, cell: Cell) -> Shares | None:
        if cell.id not in self._known:
            correct = self._results.correct(cell)
            complete = len(correct) == cell.images.count
            self._known[cell.id] = average(correct) if complete else None
        return self._known[cell.id]


def convergence_frame(results: Results) -> pd.DataFrame:
    """Return the ablation: one row per attack on the way; empty where no attack has ``converge``.

    Columns: ``dataset``, ``classifier``, ``defence``, ``attack`` (as the sweep file has it), ``eps``, ``seed``;
    ``axis`` (steps, eot, restarts, select), ``value``, ``avg`` with ``avg_low`` and ``avg_high`` and its ``change``
    from half the value; ``state``: on the last row of a chain ``converged``, ``not converged`` or ``not yet``, on the
    kept one ``kept``; ``most``; ``cell``.
    """
    sweep = results.sweep
    judge, lines = _Judge(results), []
    for cell in sweep.cells:
        for chain in chains(cell, judge) if cell.converge is not None else ():
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
                    }
                )
                before = mean
    return pd.DataFrame(lines)
