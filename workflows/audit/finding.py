"""A finding: a statement of the auditor about some cells, with its evidence."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["SEVERITIES", "SILENCED", "Finding", "Severity", "counts", "rules_on"]

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

SILENCED = "silenced"
"""What a finding is shown as that the sweep file silences."""


@dataclass(frozen=True)
class Finding:
    """A statement of a rule about some cells.

    Arguments:
        rule: Id of the rule, in kebab case.
        severity: ``error``, the number cannot be right as it stands; ``warning``, it is probably too good;
            ``note``, what a reader should know with it.
        cells: Ids of the cells concerned.
        text: The statement, for a reader.
        evidence: The numbers it rests on: accuracies in [0, 1], ``p`` where a test was made, counts.
        action: What to do about it.
        names: Names of those of its cells that have no line in the robustness table.
        silenced: The reason that the sweep file gives for not minding it; None where it gives none.
    """

    rule: str
    severity: Severity
    cells: tuple[str, ...]
    text: str
    evidence: dict[str, float]
    action: str
    names: tuple[str, ...] = ()
    silenced: str | None = None

    @property
    def standing(self) -> str:
        """Its severity, or ``silenced``: what it is shown as."""
        return self.severity if self.silenced is None else SILENCED

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "cells": list(self.cells),
            "text": self.text,
            "evidence": dict(self.evidence),
            "action": self.action,
            "silenced": self.silenced,
        }


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """Count the findings of each severity, zeros included, and the silenced ones apart, if there are any."""
    number = Counter(finding.standing for finding in findings)
    quiet = {SILENCED: number[SILENCED]} if number[SILENCED] else {}
    return {severity: number[severity] for severity in SEVERITIES} | quiet


def rules_on(findings: Iterable[Finding], cells: Collection[str]) -> str:
    """List the rules that fired on any of some cells: ``error: attacked-above-clean; note: few-images``."""
    rules: dict[str, dict[str, None]] = {standing: {} for standing in (*SEVERITIES, SILENCED)}
    for finding in findings:
        if not set(cells).isdisjoint(finding.cells):
            rules[finding.standing][finding.rule] = None
    return "; ".join(f"{severity}: {', '.join(names)}" for severity, names in rules.items() if names)
