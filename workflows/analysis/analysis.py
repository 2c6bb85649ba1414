"""Everything that a sweep's committed rows show, as one value, computed once on first use."""

from collections import Counter
from collections.abc import Callable
from functools import cached_property

import pandas as pd

from defense.errors import InvalidInput, nearest
from defense.registry import Registry
from workflows.analysis.leaderboard import leaderboard_frame
from workflows.analysis.provenance import Provenance, provenance
from workflows.analysis.series import series_of
from workflows.analysis.summary import summary
from workflows.analysis.verdict import headline, verdict
from workflows.audit import Finding, findings
from workflows.published.table import published_table
from workflows.results.certificates import certified_curves, certified_frame, envelope_frame
from workflows.results.convergence import convergence_frame
from workflows.results.corruptions import Groups, accuracy_frame, gain_frame, mce_frame
from workflows.results.decisions import decision_frame
from workflows.results.ladders import ladder_cells, ladder_frame
from workflows.results.quality import quality_frame
from workflows.results.reader import Results
from workflows.tables.certified import certified_table, curves_table, envelope_table
from workflows.tables.combined import combined_table, ladders_table
from workflows.tables.corruptions import LINE, corruption_gains_table, corruptions_table, mce_table
from workflows.tables.effort import convergence_table, cost_table, decisions_table
from workflows.tables.leaderboard import leaderboard_table
from workflows.tables.probe import mechanism_table, probe_gradients_table, probe_table
from workflows.tables.quality import quality_table
from workflows.tables.robustness import robustness_table
from workflows.tables.table import Table

__all__ = ["TABLES", "Analysis", "Builder"]

_PAIR = ["dataset", "classifier", "defence", "threat", "eps", "seed", "pair"]
"""What a line of image quality is of."""


class Analysis:
    """Everything that the rows of a sweep show.

    Arguments:
        results: Its committed results.
        mce: A classifier of the sweep, as tables call it, whose errors without a defence are the baseline of mean
            corruption errors; without it there is no such table.
        audit: Whether :attr:`audited`, and so what is rendered, has the auditor's findings; they read all stored
            images.

    Frames are unrounded and empty where the sweep has nothing of the kind; ``tables`` are what renderers show.
    """

    def __init__(self, results: Results, *, mce: str | None = None, audit: bool = True) -> None:
        self.results = results
        self.sweep = results.sweep
        self.mce_baseline = mce
        self.audit = audit

    # Frames

    @cached_property
    def robustness(self) -> pd.DataFrame:
        """One row per clean or attacked cell, see :meth:`workflows.results.reader.Results.robustness`."""
        return self.results.robustness()

    @cached_property
    def series(self) -> dict[str, tuple[str, ...]]:
        """The names by which each cell's attack is compared between defences, see :func:`series_of`."""
        return series_of(self.sweep)

    @cached_property
    def evaluations(self) -> dict[str, float]:
        """Network evaluations of one answer, by cell with judged rows; a vote is one answer a draw."""
        cells = {cell.id: cell for cell in self.sweep.adversarial}
        judged = self.robustness[self.robustness["images"] > 0]["cell"] if len(self.robustness) else ()
        return {name: self.results.evaluations(cells[name]) / self.results.draws(cells[name]) for name in judged}

    @cached_property
    def combined(self) -> pd.DataFrame:
        """Several attacks on one defence as one attacker, see :meth:`workflows.results.reader.Results.combined`."""
        return self.results.combined()

    @cached_property
    def decisions(self) -> pd.DataFrame:
        """What the sweep has decided, see :func:`workflows.results.decisions.decision_frame`."""
        return decision_frame(self.results)

    @cached_property
    def convergence(self) -> pd.DataFrame:
        """Attacks that are doubled, see :func:`workflows.results.convergence.convergence_frame`."""
        return convergence_frame(self.results)

    @cached_property
    def ladders(self) -> pd.DataFrame:
        """Ladders rung by rung, see :func:`workflows.results.ladders.ladder_frame`."""
        return ladder_frame(self.results)

    @cached_property
    def certified(self) -> pd.DataFrame:
        """One row per certificate, see :func:`workflows.results.certificates.certified_frame`."""
        return certified_frame(self.results)

    @cached_property
    def certified_curves(self) -> pd.DataFrame:
        """One row per certificate and radius, see :func:`workflows.results.certificates.certified_curves`."""
        return certified_curves(self.results)

    @cached_property
    def envelope(self) -> pd.DataFrame:
        """The best sigma at each radius, see :func:`workflows.results.certificates.envelope_frame`."""
        return envelope_frame(self.certified_curves) if len(self.certified_curves) else pd.DataFrame()

    @cached_property
    def _corrupted(self) -> Groups:
        return self.results.corrupted()

    @cached_property
    def corruptions(self) -> pd.DataFrame:
        """One row per defence, corruption and severity, see :func:`workflows.results.corruptions.accuracy_table`."""
        return accuracy_frame(self._corrupted)

    @cached_property
    def corruption_gains(self) -> pd.DataFrame:
        """What defences gain over none, see :func:`workflows.results.corruptions.gain_table`."""
        return gain_frame(self._corrupted)

    @cached_property
    def mce(self) -> pd.DataFrame:
        """Mean corruption errors relative to the requested baseline; empty without one.

        Raises:
            InvalidInput: There is no such classifier, or the benchmark is not complete.
        """
        return pd.DataFrame() if self.mce_baseline is None else mce_frame(self._corrupted, self.mce_baseline)

    @cached_property
    def _measured(self) -> tuple[pd.DataFrame, list[str]]:
        """Means of image quality, and why measures are missing."""
        identities, means = [], []
        for identity, frame in self.results.quality():
            identities.append(identity)
            means.append(quality_frame(frame.assign(**identity), _PAIR))
        missing = sorted({str(identity["missing"]) for identity in identities} - {""})
        return pd.concat(means, ignore_index=True) if means else pd.DataFrame(), missing

    @property
    def quality(self) -> pd.DataFrame:
        """Means over images of the measures of image quality, see :func:`workflows.results.quality.quality_frame`."""
        return self._measured[0]

    @cached_property
    def probes(self) -> pd.DataFrame:
        """Rows of the probes, see :meth:`workflows.results.reader.Results.probes`."""
        return self.results.probes()

    @cached_property
    def leaderboard(self) -> pd.DataFrame:
        """One row per defence and budget, see :func:`workflows.analysis.leaderboard.leaderboard_frame`."""
        return leaderboard_frame(self.results, self.robustness, self.certified_curves, self.corruptions)

    @cached_property
    def cost(self) -> pd.DataFrame:
        """One row per distinct stage: images, network evaluations, seconds."""
        return self.results.cost()

    @property
    def published(self) -> pd.DataFrame:
        """Published beside measured accuracies; empty unless the sweep is named after a paper's table."""
        return pd.DataFrame() if self._published is None else self._published.frame

    @cached_property
    def _published(self) -> Table | None:
        return published_table(self.results)

    # Findings and sentences

    @cached_property
    def findings(self) -> list[Finding]:
        """What the auditor found, errors first."""
        return findings(self.results)

    @property
    def audited(self) -> list[Finding] | None:
        """The findings that renderings show; None without an audit, which is not the same as no findings."""
        return self.findings if self.audit else None

    @cached_property
    def missing(self) -> list[str]:
        """Whether cells are not complete, as a sentence."""
        cells = self.sweep.cells
        partial = sum(not self.results.complete(cell) for cell in cells)
        return [f"{partial} of {len(cells)} cells are not complete: run the sweep again."] if partial else []

    @cached_property
    def summary(self) -> list[str]:
        """The results of the best defences, in a few sentences."""
        return summary(self.robustness, self.certified, self.corruptions, self.audited or ())

    @cached_property
    def headline(self) -> pd.DataFrame:
        """The lines of the leaderboard that people see: the largest budgets, with the strongest attack of each."""
        return headline(self.leaderboard)

    @cached_property
    def verdict(self) -> list[str]:
        """What it comes to, in two sentences."""
        return verdict(self.headline, self.audited, self.missing)

    @property
    def warnings(self) -> list[str]:
        """Warnings to read before any number."""
        return [*(table.warning for table in self.tables if table.warning), *self.missing]

    def provenance(self, command: str) -> Provenance:
        """Where the numbers come from."""
        return provenance(self.results, command)

    # Tables

    @cached_property
    def tables(self) -> list[Table]:
        """The tables that have rows, in the order in which they are read: built in, registered ones, cost.

        Raises:
            InvalidInput: A registered table is no table, or has the name of another.
        """
        tables = [*self._built_in(), *_present(*(self._built(name) for name in TABLES.names()))]
        tables += _present(cost_table(self.cost))
        names = Counter([*(table.name for table in tables), "findings", "tables"])
        name, count = names.most_common(1)[0]
        if count > 1:
            raise InvalidInput(f"two tables are called {name!r}: give the registered one another name.")
        return tables

    def table(self, name: str) -> Table:
        """Return the table of that name, or one that is built by ``module:attribute``.

        Raises:
            InvalidInput: There is none.
        """
        result = next((table for table in self.tables if table.name == name), None)
        if result is None and ":" in name:
            result = self._built(name)
        if result is None:
            names = [table.name for table in self.tables]
            raise InvalidInput(f"this sweep has no table {name!r}; {nearest(name, names)}")
        return result

    def _built_in(self) -> list[Table]:
        labels = self.sweep.labels
        cells: dict[tuple[object, ...], list[str]] = {}
        for cell in self.sweep.corrupted:
            assert cell.corruption is not None
            row = {**labels[cell.id], "seed": cell.seed, "origin": cell.corruption.origin}
            cells.setdefault(tuple(row[name] for name in LINE), []).append(cell.id)
        return _present(
            leaderboard_table(self.leaderboard),
            robustness_table(self.robustness),
            decisions_table(self.decisions),
            convergence_table(self.convergence),
            ladders_table(self.ladders, ladder_cells(self.results)),
            combined_table(self.combined),
            self._published,
            certified_table(self.certified, self.certified_curves),
            curves_table(self.certified_curves),
            envelope_table(self.envelope),
            corruptions_table(self.corruptions, cells),
            corruption_gains_table(self.corruption_gains),
            mce_table(self.mce, str(self.mce_baseline)),
            quality_table(*self._measured),
            probe_table(self.probes),
            probe_gradients_table(self.probes),
            mechanism_table(self.probes),
        )

    def _built(self, name: str) -> Table | None:
        table = TABLES.get(name)(self)
        if table is not None and not isinstance(table, Table):
            raise InvalidInput(
                f"table {name!r} was built as {table!r}; a builder returns a Table, or None without rows."
            )
        return table


Builder = Callable[[Analysis], Table | None]
"""Makes a table of an analysis; None where the sweep has no rows of its kind."""

TABLES: Registry[Builder] = Registry("table", "puregrid.tables")
"""Tables from elsewhere, which every rendering has between the built-in ones and that of cost."""


def _present(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table is not None]
