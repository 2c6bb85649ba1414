"""One value for everything that a sweep's committed rows say, computed once and only when it is asked for."""

from __future__ import annotations

from functools import cached_property

import pandas as pd

from workflows.audit import Finding, findings
from workflows.results.reader import Results
from workflows.tables.ladders import ladder_table

__all__ = ["Analysis"]


class Analysis:
    """What the rows of a sweep say.

    Arguments:
        results: Its committed results.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.sweep = results.sweep

    @cached_property
    def robustness(self) -> pd.DataFrame:
        """One row a clean or attacked cell, see :meth:`workflows.results.reader.Results.robustness`."""
        return self.results.robustness()

    @cached_property
    def combined(self) -> pd.DataFrame:
        """Several attacks on one defence as one attacker."""
        return self.results.combined()

    @cached_property
    def ladders(self) -> pd.DataFrame:
        """Ladders rung by rung."""
        return ladder_table(self.results)

    @cached_property
    def cost(self) -> pd.DataFrame:
        """One row a distinct stage: images, network evaluations, seconds."""
        return self.results.cost()

    @cached_property
    def findings(self) -> list[Finding]:
        """What the auditor found, errors first."""
        return findings(self.results)
