"""The auditor's findings in words: how many there are, which cells they mean, on which numbers they rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from tasks.attacks.budgets import format_eps
from workflows.audit import Finding, counts
from workflows.tables.table import Table, records

__all__ = ["Said", "auditor_line", "cell_names", "evidence_text", "heading", "on_lines", "said", "tally"]

_SHOWN_CELLS = 3

SHOWN = 12
"""More findings than these are counted."""


@dataclass(frozen=True)
class Said:
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
        """What stands below its text, by name."""
        named = {"cells": self.cells, "evidence": self.evidence, "to do": self.action}
        return {name: text for name, text in named.items() if text}


def tally(findings: Sequence[Finding]) -> str:
    """``2 errors, 1 note``: how many findings of each severity."""
    return ", ".join(f"{n} {severity}{'s' * (n > 1)}" for severity, n in counts(findings).items() if n)


def heading(findings: Sequence[Finding]) -> str:
    """``Findings: 2 errors, 1 note``."""
    return f"Findings: {tally(findings)}"


def auditor_line(findings: Sequence[Finding]) -> str:
    """``auditor: 2 errors, 1 warning; puregrid tables shows them``."""
    return f"auditor: {tally(findings)}; puregrid tables shows them" if findings else "auditor: no findings"


def said(findings: Sequence[Finding], tables: Sequence[Table]) -> list[Said]:
    """All findings in words, by the names that the robustness table among these has for their cells."""
    frame = next((table.frame for table in tables if table.name == "robustness"), pd.DataFrame())
    found = []
    for number, finding in enumerate(findings, 1):
        names = cell_names(finding, frame)
        cells = "; ".join(names[:_SHOWN_CELLS])
        cells += f"; and {len(names) - _SHOWN_CELLS} more" if len(names) > _SHOWN_CELLS else ""
        words = (finding.text, cells, evidence_text(finding), finding.action)
        found.append(Said(number, finding.severity, finding.rule, *words))
    return found


def on_lines(tables: Sequence[Table], findings: Sequence[Finding]) -> set[int]:
    """Numbers of the findings that some line of these tables carries."""
    return {number for table in tables for marks in table.marks(findings) for number in marks}


def cell_names(finding: Finding, robustness: pd.DataFrame) -> list[str]:
    """What tables call the cells of a finding: one by one, or the defence where all cells of it are meant."""
    beside = list(finding.names)
    if robustness.empty:
        return beside
    if set(robustness["cell"]) <= set(finding.cells):
        every = "all cells" if len(robustness) > 1 else "the cell"
        return [f"{every} of the robustness table", *beside] if beside else [every]
    several = [name for name in ("dataset", "seed") if robustness[name].nunique() > 1]
    found = []
    for key, lines in robustness.groupby(["classifier", "defence", *several], sort=False):
        classifier, defence, *extra = map(str, key)
        where = ", ".join([classifier, defence, *(f"{n} {v}" for n, v in zip(several, extra, strict=True))])
        meant = records(lines[lines["cell"].isin(finding.cells)])
        if len(meant) == len(lines) > 1:
            found.append(f"{where}, all {len(meant)} cells")
            continue
        attacks = [
            "clean" if line["attack"] == "clean" else f"{line['attack']} eps {format_eps(line['eps'])}"
            for line in meant
        ]
        found += [f"{where}, {attack}" for attack in attacks]
    return found + beside


def evidence_text(finding: Finding) -> str:
    """``attacked 0.9, clean 0.81, p 0.0021``: at most four digits each."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in finding.evidence.items())
