"""The auditor's findings in words: how many there are, which cells they mean, on which numbers they rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tasks.attacks.budgets import format_eps
from workflows.audit import SEVERITIES, Finding, counts
from workflows.tables.table import Table, records

__all__ = [
    "CellNames",
    "NumberedFinding",
    "auditor_line",
    "evidence_text",
    "heading",
    "numbered_findings",
    "on_lines",
    "reason",
    "shown",
    "tally",
]

_SHOWN_CELLS = 3

_ARTICLES = {"error": "an error", "warning": "a warning", "note": "a note"}

SHOWN = 12
"""More findings than these are counted."""


@dataclass(frozen=True)
class NumberedFinding:
    """A finding in words.

    Arguments:
        number: By which lines of tables refer to it, from 1.
        severity: Its severity, or ``silenced``.
        rule: Id of the rule.
        text: What was found.
        cells: Its cells, the first ones.
        evidence: Its numbers.
        action: What to do about it.
        silenced: Why the sweep file silences it; empty where it does not.
    """

    number: int
    severity: str
    rule: str
    text: str
    cells: str
    evidence: str
    action: str
    silenced: str = ""

    @property
    def parts(self) -> dict[str, str]:
        """The lines below its text, by name."""
        named = {"silenced because": self.silenced} if self.silenced else {}
        named |= {"cells": self.cells, "evidence": self.evidence, "to do": self.action}
        return {name: text for name, text in named.items() if text}


def tally(findings: Sequence[Finding]) -> str:
    """Count the findings of each severity: ``2 errors, 1 note``."""
    plural: dict[str, str] = {severity: f"{severity}s" for severity in SEVERITIES}
    number = counts(findings).items()
    return ", ".join(f"{n} {plural.get(severity, severity) if n > 1 else severity}" for severity, n in number if n)


def reason(finding: Finding) -> str:
    """Return why a finding is silenced, with the severity that it has: empty where it is not."""
    return "" if finding.silenced is None else f"{finding.silenced} (it is {_ARTICLES[finding.severity]})"


def heading(findings: Sequence[Finding]) -> str:
    """Return ``Findings: 2 errors, 1 note``."""
    return f"Findings: {tally(findings)}"


def auditor_line(findings: Sequence[Finding]) -> str:
    """Return ``auditor: 2 errors, 1 warning; puregrid tables shows them``."""
    return f"auditor: {tally(findings)}; puregrid tables shows them" if findings else "auditor: no findings"


def numbered_findings(findings: Sequence[Finding], tables: Sequence[Table]) -> list[NumberedFinding]:
    """Describe all findings, naming cells as the robustness table among these tables does."""
    names_of = CellNames(next((table.frame for table in tables if table.name == "robustness"), pd.DataFrame())).of
    numbered = []
    for number, finding in enumerate(findings, 1):
        names = names_of(finding)
        cells = "; ".join(names[:_SHOWN_CELLS])
        cells += f"; and {len(names) - _SHOWN_CELLS} more" if len(names) > _SHOWN_CELLS else ""
        words = (finding.text, cells, evidence_text(finding), finding.action, reason(finding))
        numbered.append(NumberedFinding(number, finding.standing, finding.rule, *words))
    return numbered


def shown(findings: Sequence[NumberedFinding]) -> list[NumberedFinding]:
    """Return those that a page has room for: the first ones, and all that are silenced, for their reasons."""
    loud = [finding for finding in findings if not finding.silenced]
    return [*loud[:SHOWN], *(finding for finding in findings if finding.silenced)]


def on_lines(tables: Sequence[Table], findings: Sequence[Finding]) -> set[int]:
    """Return the numbers of the findings that some line of these tables carries."""
    return {number for table in tables for marks in table.marks(findings) for number in marks}


class CellNames:
    """What tables call the cells of findings."""

    def __init__(self, robustness: pd.DataFrame) -> None:
        self._cells = set() if robustness.empty else set(robustness["cell"])
        self._lines: list[tuple[str, list[dict[str, Any]]]] = []
        """Each classifier and defence with its lines."""
        self._place: dict[str, int] = {}
        if robustness.empty:
            return
        several = [name for name in ("dataset", "seed") if robustness[name].nunique() > 1]
        lines: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for line in records(robustness):
            key = tuple(str(line[name]) for name in ("classifier", "defence", *several))
            lines.setdefault(key, []).append(line)
        for place, ((classifier, defence, *extra), members) in enumerate(lines.items()):
            where = [classifier, defence, *(f"{n} {v}" for n, v in zip(several, extra, strict=True))]
            self._lines.append((", ".join(where), members))
            self._place |= {line["cell"]: place for line in members}

    def of(self, finding: Finding) -> list[str]:
        """Return the names of a finding's cells, or the defence if all of its cells are meant."""
        beside, cells = list(finding.names), set(finding.cells)
        if not self._cells:
            return beside
        if self._cells <= cells:
            every = "all cells" if len(self._place) > 1 else "the cell"
            return [f"{every} of the robustness table", *beside] if beside else [every]
        names = []
        for place in sorted({self._place[cell] for cell in cells if cell in self._place}):
            where, lines = self._lines[place]
            meant = [line for line in lines if line["cell"] in cells]
            if len(meant) == len(lines) > 1:
                names.append(f"{where}, all {len(meant)} cells")
                continue
            for line in meant:
                budget = "" if line["attack"] == "clean" else f" eps {format_eps(line['eps'])}"
                names.append(f"{where}, {line['attack']}{budget}")
        return names + beside


def evidence_text(finding: Finding) -> str:
    """Return the evidence as ``attacked 0.9, clean 0.81, p 0.0021``, at most four digits each."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in finding.evidence.items())
