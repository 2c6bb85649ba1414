"""Images that changed sides between two runs, as small pictures: what each run gave its defence, and the answers."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from defense.errors import PuregridError
from workflows.grid.load import Cell
from workflows.images import Pixels, Stored, png, smaller, stored
from workflows.images.pictures import LARGEST
from workflows.images.single import Reader
from workflows.regression.compare import Sides
from workflows.regression.snapshots import Snapshot
from workflows.results.reader import Results
from workflows.results.records import CellRecord

__all__ = ["ORDINALS", "Pages", "Thumbnail", "Thumbnails", "thumbnails"]

_CELLS, _EACH = 6, 6
"""Cells that have pictures, those with the most moved images first, and images of either side in each."""

ORDINALS = ("first", "second")
"""What the two runs are called."""


@dataclass(frozen=True)
class Thumbnail:
    """An image that changed sides.

    Arguments:
        anchor: Its name in the page, by which one links to it: the cell of the second run and the image.
        caption: Which image, of which class, and what each run answered, a line each.
        pictures: For each run text and data URI; one if both gave their defence the same image.
        commands: The commands that show it with all its draws.
        image: Its id.
        cells: The cell of either run.
        pages: Where it is shown with all its draws: text and address, one for each run.
        no_page: Why it is nowhere.
    """

    anchor: str
    caption: tuple[str, ...]
    pictures: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    image: int
    cells: tuple[Cell, ...]
    pages: tuple[tuple[str, str], ...] = ()
    no_page: str = ""


Pages = Callable[[Thumbnail], tuple[tuple[str, str], ...]]
"""Writes the pages of an image, and returns their text and address."""


@dataclass(frozen=True)
class Thumbnails:
    """The pictures of one cell, or why it has none."""

    cell: str
    images: tuple[Thumbnail, ...]
    why_not: str = ""


def thumbnails(
    first: Snapshot, second: Snapshot, moved: Sequence[Sides], pages: Pages | None = None
) -> list[Thumbnails]:
    """Return pictures of the images that changed sides, of the first cells.

    Arguments:
        first: The first run. One that was read from a file or from MLflow has no images.
        second: The second.
        moved: Cells in which images changed sides.
        pages: Writes the pages of an image; None for none.
    """
    runs = [_Run(snapshot.results) for snapshot in (first, second) if snapshot.results is not None]
    if len(runs) < 2:
        return []
    found = []
    for side in moved[:_CELLS]:
        own = [(run, run.cells.get(name)) for run, name in zip(runs, side.names, strict=True)]
        there = [(run, cell) for run, cell in own if cell is not None and cell.certificate is None]
        if len(there) < 2:
            continue
        wanted = [(image, 0) for image in side.only_first[:_EACH]] + [
            (image, 1) for image in side.only_second[:_EACH]
        ]
        try:
            pairs = [
                (which, [stored(run.results, cell, image, run.reader) for run, cell in there])
                for image, which in wanted
            ]
        except PuregridError as error:
            found.append(Thumbnails(side.cell, (), f"Images are not shown: {error}"))
            continue
        cells = tuple(cell for _, cell in there)
        images = tuple(_thumbnail(which, pair, cells) for which, pair in pairs)
        found.append(Thumbnails(side.cell, images if pages is None else tuple(_paged(i, pages) for i in images)))
    return found


def _paged(image: Thumbnail, pages: Pages) -> Thumbnail:
    try:
        return replace(image, pages=pages(image))
    except PuregridError as error:
        return replace(image, no_page=f"It has no page: {error}")


class _Run:
    """A run whose rows and images can be read; a name that several cells have is nobody's."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.reader = Reader(results)
        self.cells: dict[str, Cell | None] = {}
        for cell, record in zip(results.sweep.cells, CellRecord.of_sweep(results.sweep), strict=True):
            self.cells[record.name] = None if record.name in self.cells else cell


def _thumbnail(which: int, pair: Sequence[Stored], cells: tuple[Cell, ...]) -> Thumbnail:
    one = pair[0]
    shown = [known.original if known.given is None else known.given for known in pair]
    said = [f"{place} run: {_answers(known)}" for place, known in zip(ORDINALS, pair, strict=True)]
    if (shown[0] == shown[1]).all():
        alts = [f"{_what(one)} of class {one.named(one.label)}; {'; '.join(said)}"]
    else:
        alts = [
            f"{_what(known)} of class {known.named(known.label)}; {line}"
            for known, line in zip(pair, said, strict=True)
        ]
    return Thumbnail(
        f"image-{pair[1].cell[:8]}-{one.image_id}",
        (f"image {one.image_id}, class {one.named(one.label)}", f"right only in the {ORDINALS[which]}", *said),
        tuple((alt, _uri(pixels)) for alt, pixels in zip(alts, shown, strict=False)),
        tuple(f"puregrid show SWEEP --cell {known.cell[:8]} --image {known.image_id}" for known in pair),
        one.image_id,
        cells,
    )


def _what(known: Stored) -> str:
    return f"{'original' if known.given is None else known.kind} image {known.image_id}"


def _answers(known: Stored) -> str:
    return ", ".join(known.named(answer) for answer in known.answers) or "no answer"


def _uri(pixels: Pixels) -> str:
    factor = -(-max(pixels.shape[1:]) // LARGEST)
    return "data:image/png;base64," + base64.b64encode(png(smaller(pixels, factor))).decode()
