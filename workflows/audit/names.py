"""Names of cells that have no line in the robustness table: corruptions and certificates."""

from collections.abc import Collection

from workflows.grid.load import Sweep

__all__ = ["NamesBeside"]


class NamesBeside:
    """Names of the corruption and certificate cells of a sweep."""

    def __init__(self, sweep: Sweep) -> None:
        self._labels = sweep.labels
        self._groups: dict[tuple[str, str], list[str]] = {}
        """Cells by what they are and the defence that they judge, in the order of the sweep."""
        self._group: dict[str, tuple[str, str]] = {}
        if not (sweep.corrupted or sweep.certified):
            return
        several_datasets = len({cell.images.dataset.id for cell in sweep.cells}) > 1
        several_seeds = len({cell.seed for cell in sweep.cells}) > 1
        for part, members in (("corruption", sweep.corrupted), ("certificate", sweep.certified)):
            for cell in members:
                labels = sweep.labels[cell.id]
                place = [labels["classifier"], labels["defence"]]
                place += [f"dataset {labels['dataset']}"] if several_datasets else []
                place += [f"seed {cell.seed}"] if several_seeds else []
                self._group[cell.id] = (part, ", ".join(place))
                self._groups.setdefault(self._group[cell.id], []).append(cell.id)

    def of(self, cells: Collection[str]) -> tuple[str, ...]:
        """Name those among some cells, one by one or ``all 75 corruptions`` of a defence."""
        wanted, names = set(cells), list[str]()
        concerned = {self._group[cell] for cell in wanted if cell in self._group}
        for part, where in self._groups if concerned else ():
            if (part, where) not in concerned:
                continue
            ids = self._groups[part, where]
            meant = [cell for cell in ids if cell in wanted]
            if len(meant) == len(ids) > 1:
                names.append(f"{where}, all {len(ids)} {part}s")
            else:
                names += [f"{where}, {self._labels[cell][part]}" for cell in meant]
        return tuple(names)
