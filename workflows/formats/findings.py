"""The auditor's findings in words: how many there are, which cells they mean, on which numbers they rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from tasks.attacks.budgets import format_eps
from workflows.audit import Finding, counts
from workflows.tables.table import Table, records

__all__ = [
    "NumberedFinding",
    "auditor_line",
    "cell_names",
    "evidence_text",
    "heading",
    "numbered_findings",
    "on_lines",
    "tally",
]

_SHOWN_CELLS = 3

SHOWN = 12
"""More findings than these are counted."""


@dataclass(frozen=True)
class NumberedFinding:
    """A finding in words.

    Arguments:
        number: By which lines of tables refer to it, from 1.
        severity: Its severity.
        rule: Id of the rule.
        text: What was found.
        cells: Its cells, the first ones.
        evidence: Its numbers.
        action: What to do about it.
    """

    number: int
    severity: str
    rule: str
    text: str
    cells: str
    evidence: str
    action: str

    @property
    def parts(self) -> dict[str, str]:
        """The lines below its text, by name."""
        named = {"cells": self.cells, "evidence": self.evidence, "to do": self.action}
        return {name: text for name, text in named.items() if text}


def tally(findings: Sequence[Finding]) -> str:
    """Count the findings of each severity: ``2 errors, 1 note``."""
    return ", ".join(f"{n} {severity}{'s' * (n > 1)}" for severity, n in counts(findings).items() if n)


def heading(findings: Sequence[Finding]) -> str:
    """Return ``Findings: 2 errors, 1 note``."""
    return f"Findings: {tally(findings)}"


def auditor_line(findings: Sequence[Finding]) -> str:
    """Return ``auditor: 2 errors, 1 warning; puregrid tables shows them``."""
    return f"auditor: {tally(findings)}; puregrid tables shows them" if findings else "auditor: no findings"


def numbered_findings(findings: Sequence[Finding], tables: Sequence[Table]) -> list[NumberedFinding]:
    """Describe all findings, naming cells as the robustness table among these tables does."""
    frame = next((table.frame for table in tables if table.name == "robustness"), pd.DataFrame())
    numbered = []
    for number, finding in enumerate(findings, 1):
        names = cell_names(finding, frame)
        cells = "; ".join(names[:_SHOWN_CELLS])
        cells += f"; and {len(names) - _SHOWN_CELLS} more" if len(names) > _SHOWN_CELLS else ""
        words = (finding.text, cells, evidence_text(finding), finding.action)
        numbered.append(NumberedFinding(number, finding.severity, finding.rule, *words))
    return numbered


def on_lines(tables: Sequence[Table], findings: Sequence[Finding]) -> set[int]:
    """Return the numbers of the findings that some line of these tables carries."""
    return {number for table in tables for marks in table.marks(findings) for number in marks}


def cell_names(finding: Finding, robustness: pd.DataFrame) -> list[str]:
    """Return the names of a finding's cells in tables, or the defence if all of its cells are meant."""
    beside = list(finding.names)
    if robustness.empty:
        return beside
    if set(robustness["cell"]) <= set(finding.cells):
        every = "all cells" if len(robustness) > 1 else "the cell"
        return [f"{every} of the robustness table", *beside] if beside else [every]
    several = [name for name in ("dataset", "seed") if robustness[name].nunique() > 1]
    names = []
    for key, lines in robustness.groupby(["classifier", "defence", *several], sort=False):
        classifier, defence, *extra = map(str, key)
        where = ", ".join([classifier, defence, *(f"{n} {v}" for n, v in zip(several, extra, strict=True))])
        meant = records(lines[lines["cell"].isin(finding.cells)])
        if len(meant) == len(lines) > 1:
            names.append(f"{where}, all {len(meant)} cells")
            continue
        attacks = [
            "clean" if line["attack"] == "clean" else f"{line['attack']} eps {format_eps(line['eps'])}"
            for line in meant
        ]
        names += [f"{where}, {attack}" for attack in attacks]
    return names + beside


def evidence_text(finding: Finding) -> str:
    """Return the evidence as ``attacked 0.9, clean 0.81, p 0.0021``, at most four digits each."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in finding.evidence.items())
