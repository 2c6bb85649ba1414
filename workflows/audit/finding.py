"""A finding: a statement of the auditor about some cells, with its evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["SEVERITIES", "Finding", "Severity", "counts", "rules_on"]

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


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
    """

    rule: str
    severity: Severity
    cells: tuple[str, ...]
    text: str
    evidence: dict[str, float]
    action: str
    names: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "cells": list(self.cells),
            "text": self.text,
            "evidence": dict(self.evidence),
            "action": self.action,
        }


def counts(findings: Iterable[Finding]) -> dict[Severity, int]:
    """Count the findings of each severity, zeros included."""
    number = Counter(finding.severity for finding in findings)
    return {severity: number[severity] for severity in SEVERITIES}


def rules_on(findings: Iterable[Finding], cells: Collection[str]) -> str:
    """List the rules that fired on any of some cells: ``error: attacked-above-clean; note: few-images``."""
    rules: dict[Severity, dict[str, None]] = {severity: {} for severity in SEVERITIES}
    for finding in findings:
        if not set(cells).isdisjoint(finding.cells):
            rules[finding.severity][finding.rule] = None
    return "; ".join(f"{severity}: {', '.join(names)}" for severity, names in rules.items() if names)
