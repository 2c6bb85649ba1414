"""Names of cells that have no line in the robustness table: corruptions and certificates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from workflows.grid.load import Sweep

__all__ = ["names_beside"]


def names_beside(sweep: Sweep, cells: Collection[str]) -> tuple[str, ...]:
    """Name the corruption and certificate cells among some, one by one or ``all 75 corruptions`` of a defence."""
    wanted, names = set(cells), []
    datasets = {cell.images.dataset.id for cell in sweep.cells}
    seeds = {cell.seed for cell in sweep.cells}
    for part, members in (("corruption", sweep.corrupted), ("certificate", sweep.certified)):
        groups: dict[str, list[str]] = defaultdict(list)
        for cell in members:
            labels = sweep.labels[cell.id]
            place = [labels["classifier"], labels["defence"]]
            place += [f"dataset {labels['dataset']}"] if len(datasets) > 1 else []
            place += [f"seed {cell.seed}"] if len(seeds) > 1 else []
            groups[", ".join(place)].append(cell.id)
        for where, ids in groups.items():
            meant = [cell for cell in ids if cell in wanted]
            if len(meant) == len(ids) > 1:
                names.append(f"{where}, all {len(ids)} {part}s")
            else:
                names += [f"{where}, {sweep.labels[cell][part]}" for cell in meant]
    return tuple(names)
