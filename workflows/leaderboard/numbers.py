"""The numbers of a board: shares with intervals, each with the sweep, cell and attack that it is of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.attacks import LadderConfig
from tasks.stages import AttackStage
from workflows.analysis.leaderboard import nearest_radius
from workflows.documents.authors import AuthorsSetting
from workflows.documents.shortened import Departure, departure
from workflows.grid.cells import Cell
from workflows.leaderboard.sources import Source
from workflows.results.reader import Results
from workflows.statistics.paired import PairedDifference, paired_difference
from workflows.statistics.sequences import anytime_difference
from workflows.tables.table import missing, records

__all__ = ["Number", "attacked", "certified", "corrupted", "difference", "number_of"]

_NONE = Departure()


@dataclass(frozen=True)
class Number:
    """A share in [0, 1] with its 95 % interval, and what it is of.

    Arguments:
        value: The share.
        low: Lower end.
        high: Upper end.
        images: Images that it is of, of those ``planned``.
        planned: Images that the sweep asks for.
        source: The sweep.
        cell: The cell.
        attack: Label of the attack, or what else was measured.
        kind: 2 for a ladder, 1 for another attack that knows the defence, 0 for a static one and for no attack.
        evaluations: Network evaluations that the attack took, an image; 0 without one.
        detail: What else has to be said of it.
        departure: Of one under the attack of a defence's authors, what that has less of here, or otherwise.
    """

    value: float
    low: float
    high: float
    images: int
    planned: int
    source: Source
    cell: Cell
    attack: str = ""
    kind: int = 0
    evaluations: float = 0.0
    detail: str = ""
    departure: Departure = _NONE

    @property
    def rank(self) -> tuple[float, ...]:
        """Of two of the same number the larger one counts."""
        return self.kind, self.images, self.evaluations, -self.source.number


def difference(first: Number, second: Number) -> PairedDifference | None:
    """Return second minus first on the images that both cells have judged; None where there are none."""
    there = {int(image) for image in second.source.results.image_ids(second.cell)}
    # In the order of the first one: where a cell may stop, that is a random one, which its intervals rest on.
    shared = [image for image in map(int, first.source.results.image_ids(first.cell)) if image in there]
    if len(shared) < 2:
        return None
    before, after = _shares(first, shared), _shares(second, shared)
    anytime = any(number.source.results.anytime(number.cell) for number in (first, second))
    return anytime_difference(before, after) if anytime else paired_difference(before, after)


def _shares(number: Number, ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the share of right draws of some images."""
    results: Results = number.source.results
    place = {int(image): i for i, image in enumerate(results.image_ids(number.cell))}
    right = results.correct(number.cell).mean(1)
    return np.asarray([right[place[image]] for image in ids], dtype=np.float64)


def attacked(
    source: Source,
    cells: dict[str, Cell],
    rows: list[dict[str, Any]],
    settings: dict[str, AuthorsSetting | None],
) -> Iterator[tuple[str, Number]]:
    """Yield the numbers of one sweep and seed at one budget."""
    theirs = [row for row in rows if settings.get(row["cell"]) is not None]
    others = [row for row in rows if settings.get(row["cell"]) is None]
    groups = [
        *(("strongest", "avg", rows), ("worst", "worst", rows), ("vote", "vote", rows)),
        *(("published", "avg", theirs), ("other", "avg", others)),
    ]
    for name, of, members in groups:
        row = min((row for row in members if not missing(row.get(of))), key=lambda row: row[of], default=None)
        if row is not None:
            cell, kind = cells[row["cell"]], max(_kind(cells[other["cell"]]) for other in members)
            assert cell.attack is not None
            number = number_of(source, cell, row, of, cell.attack.label(), kind)
            if name == "published" and (setting := settings.get(cell.id)) is not None:
                number = replace(number, departure=departure(setting.attack, cell.attack))
            yield name, number


def number_of(
    source: Source, cell: Cell, row: dict[str, Any], of: str, attack: str, kind: int = 0, detail: str = ""
) -> Number:
    """Return a number of a row of the robustness frame, called ``of`` there."""
    spent = 0.0 if cell.attack_stage is None else _spent(source.results, cell, cell.attack_stage, set())
    ends = row[of], row[f"{of}_low"], row[f"{of}_high"]
    if of == "worst":
        detail = f"M = {row['resubmissions']}"
    return Number(*ends, row["images"], row["planned"], source, cell, attack, kind, spent, detail)


def _kind(cell: Cell) -> int:
    return 0 if cell.attack is None or cell.attack.static else 2 if isinstance(cell.attack, LadderConfig) else 1


def _spent(results: Results, cell: Cell, stage: AttackStage, seen: set[str]) -> float:
    """Return the network evaluations that all stages of an attack took, an image."""
    if stage.id in seen:
        return 0.0
    seen.add(stage.id)
    rows = results.rows_of(stage, cell)
    own = 0.0
    if len(rows):
        own = float((rows["denoiser_evaluations"] + rows["classifier_evaluations"]).mean())
    before = (*stage.sources, *(() if stage.after is None else (stage.after,)))
    return own + sum(_spent(results, cell, other, seen) for other in before)


def certified(source: Source, cells: dict[str, Cell]) -> Iterator[tuple[str, Number]]:
    """Yield the best certified accuracy over sigma at one radius, of each seed."""
    curves = source.analysis.certified_curves
    if curves.empty:
        return
    radius = nearest_radius(curves)
    best: dict[int, dict[str, Any]] = {}
    for row in records(curves[curves["radius"] == radius]):
        if row["cell"] in cells and row["accuracy"] > best.get(row["seed"], {"accuracy": -1.0})["accuracy"]:
            best[row["seed"]] = row
    for row in best.values():
        cell = cells[row["cell"]]
        about = f"certified at l_2 radius {radius:g}, sigma {row['sigma']:g}, n {row['n']}"
        parts = row["accuracy"], row["low"], row["high"], row["images"], cell.images.count
        yield "certified", Number(*parts, source, cell, about, detail=f"r={radius:g}")


def corrupted(source: Source, cells: dict[str, Cell]) -> Iterator[tuple[str, Number]]:
    """Yield the mean over corruptions, of each seed and origin."""
    frame = source.analysis.corruptions
    if frame.empty:
        return
    overall = frame[(frame["corruption"] == "all") & (frame["severity"] == "all")]
    for row in records(overall):
        names = ("dataset", "classifier", "defence")
        labels = source.sweep.labels
        of = [
            cell
            for cell in cells.values()
            if cell.corruption is not None
            and (cell.seed, cell.corruption.origin) == (row["seed"], row["origin"])
            and all(labels[cell.id][name] == row[name] for name in names)
        ]
        if of:
            about = f"mean over {row['corruptions']} {row['origin']} corruptions"
            ends = row["accuracy"], row["low"], row["high"]
            images = source.results.images(of[0])
            yield "corruptions", Number(*ends, images, of[0].images.count, source, of[0], about)
