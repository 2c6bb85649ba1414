"""Names under which the attacks of different defences are one attack of the sweep file."""

from __future__ import annotations

import re

from tasks.attacks import LadderConfig
from workflows.grid.sweep import Sweep

__all__ = ["series_of"]


def series_of(sweep: Sweep) -> dict[str, str]:
    """Return the name under which figures join the attack of each cell with those of other defences.

    It is the attack's label, but for ladders: how many rungs one has depends on the defence, so that its label would
    part one attack of the sweep file into several. Two ladders that differ in more keep their labels.
    """
    labels = {cell.id: sweep.labels[cell.id].get("attack", "") for cell in sweep.cells}
    entries: dict[str, set[object]] = {}
    names: dict[str, str] = {}
    for cell in sweep.cells:
        if isinstance(cell.attack, LadderConfig):
            names[cell.id] = re.sub(r" of \d+", "", cell.attack.label())
            entries.setdefault(names[cell.id], set()).add(cell.entries.threat)
    return {
        cell: names[cell] if cell in names and len(entries[names[cell]]) == 1 else labels[cell] for cell in labels
    }
