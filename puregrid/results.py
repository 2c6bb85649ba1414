"""The results of a sweep in Python: data frames as attributes, and the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from defense.packages import installed
from workflows.analysis import Analysis

if TYPE_CHECKING:
    import pandas as pd

    from workflows.engine.loop import RunOutcome
    from workflows.grid.load import Cell

__all__ = ["SweepResults", "SweepRun"]


class SweepResults(Analysis):
    """The results of a sweep, read from its rows; made by :func:`puregrid.open_results` and :func:`puregrid.run`.

    Frames are attributes, computed from the rows on first use: ``robustness`` (one row per cell: Avg, worst of M,
    majority vote, intervals), ``combined`` (several attacks as one attacker), ``ladders``, ``certified``,
    ``corruptions``, ``quality``, ``published``, ``cost``; and ``findings``, what the auditor reports on them.
    """

    def rows(self, cell: Cell) -> pd.DataFrame:
        """The committed rows of one cell of ``sweep.cells``: one row per image, with one prediction per draw."""
        return self.results.rows(cell)

    def report(
        self,
        path: str | Path | None = None,
        *,
        how: Literal["html", "md", "latex"] = "html",
        images: int | None = None,
    ) -> Path:
        """Write the report: one self-contained page, or a folder of tables and figures.

        Arguments:
            path: The page, by default ``report.html``; of ``md`` and ``latex`` the folder, by default ``report``.
            how: The format.
            images: Cells to show images of on the page; by default as many as there is room for.

        Returns:
            The file to open.
        """
        with installed():
            from workflows.report import report_to

            out = None if path is None else Path(path)
            return report_to(self, out, how, command="puregrid.run(sweep)", images=images)

    def __repr__(self) -> str:
        cells = len(self.sweep.cells)
        return f"<SweepResults of {self.sweep.name!r}: {cells} cells in {self.results.store.uri}>"


@dataclass(frozen=True, repr=False)
class SweepRun:
    """How a run ended, and its results.

    Arguments:
        results: The results, of all that is committed.
        outcome: What was computed, and what failed: ``outcome.failures`` with their tracebacks.
    """

    results: SweepResults
    outcome: RunOutcome

    @property
    def complete(self) -> bool:
        """Whether every unit of the sweep is committed."""
        return not (self.outcome.failures or self.outcome.blocked or self.outcome.interrupted)

    def __repr__(self) -> str:
        outcome = self.outcome
        parts = [f"{outcome.computed} units computed"]
        parts += [f"{len(outcome.failures)} failed"] * bool(outcome.failures)
        parts += [f"{outcome.blocked} blocked by those"] * bool(outcome.blocked)
        ended = "complete" if self.complete else "interrupted" if outcome.interrupted else "incomplete"
        return f"<SweepRun of {self.results.sweep.name!r}: {ended}, {', '.join(parts)}>"
