"""Names under which the attacks of different defences are one attack of the sweep file."""

import re

from defense.purifiers import NoPurifierConfig
from tasks.attacks import AttackConfig, LadderConfig
from workflows.grid.load import Cell
from workflows.grid.sweep import Sweep

__all__ = ["series_of"]


def series_of(sweep: Sweep) -> dict[str, tuple[str, ...]]:
    """Return the names under which figures join the attack of each cell with those on other defences.

    Labels would part what belongs together, for an attack on the bare classifier is another than on a defence: it has
    no gradient mode, and a ladder has fewer rungs. So a cell of the bare classifier goes by the names of all attacks
    on its defences that come to this one there, and a ladder by its label without the number of its rungs, unless
    two ladders differ in more. A clean cell is ``clean``.
    """
    names = {cell.id: sweep.labels[cell.id].get("attack", "") for cell in sweep.cells} | _ladders(sweep)
    there: dict[tuple[object, ...], dict[str, None]] = {}
    for cell in sweep.cells:
        if cell.attack is not None and not _bare(cell):
            there.setdefault(_place(cell, cell.attack.on_bare_classifier()), {})[names[cell.id]] = None
    found = {}
    for cell in sweep.cells:
        own = there.get(_place(cell, cell.attack), {}) if cell.attack is not None and _bare(cell) else {}
        found[cell.id] = tuple(own) or (names[cell.id],)
    return found


def _bare(cell: Cell) -> bool:
    return isinstance(cell.defence.purifier, NoPurifierConfig)


def _place(cell: Cell, attack: AttackConfig) -> tuple[object, ...]:
    return cell.images.dataset.id, cell.classifier.id, cell.seed, attack.id


def _ladders(sweep: Sweep) -> dict[str, str]:
    names: dict[str, str] = {}
    entries: dict[str, set[object]] = {}
    for cell in sweep.cells:
        if isinstance(cell.attack, LadderConfig):
            names[cell.id] = re.sub(r" of \d+", "", cell.attack.label())
            entries.setdefault(names[cell.id], set()).add(cell.entries.threat)
    return {cell: name for cell, name in names.items() if len(entries[name]) == 1}
