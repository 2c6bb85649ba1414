"""Findings that a sweep file silences: shown with the reason, behind the others, and never dropped."""

from collections.abc import Sequence
from dataclasses import replace

from workflows.audit.finding import Finding
from workflows.grid.load import Sweep

__all__ = ["silenced"]


def silenced(sweep: Sweep, findings: Sequence[Finding]) -> list[Finding]:
    """Return all findings, those that the sweep silences last and with their reason.

    An entry that silences nothing is a note, so that it does not outlive what it was written for; it is no rule that
    could be silenced itself.
    """
    loud: list[Finding] = []
    quiet: list[Finding] = []
    used: set[int] = set()
    for finding in findings:
        number = next((i for i, one in enumerate(sweep.silences) if one.covers(finding.rule, finding.cells)), None)
        if number is None:
            loud.append(finding)
        else:
            used.add(number)
            quiet.append(replace(finding, silenced=sweep.silences[number].reason))
    for number, one in enumerate(sweep.silences):
        if number not in used:
            cells = tuple(cell.id for cell in sweep.cells if one.cells is None or cell.id in one.cells)
            loud.append(
                Finding(
                    "silence-unused",
                    "note",
                    cells,
                    f"The sweep silences {one.rule}, which no finding about these cells alone has.",
                    {"cells": len(cells)},
                    f"Remove the entry {one.place or 'of silence'}, or correct its cells.",
                )
            )
    return [*loud, *quiet]
