"""Images through a defence: original, given, purified where it is stored, and the two differences amplified.

Images are chosen by the rules of :mod:`workflows.images.choose` on the answers, never by how they look. A difference
has one factor for all images of a group (:func:`workflows.images.pictures.amplified`).
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from defense.errors import PuregridError
from workflows.analysis import Analysis
from workflows.grid.load import Cell
from workflows.images import Chosen, Judged, Pixels, amplified, choose, judged, png, smaller
from workflows.images.pictures import LARGEST
from workflows.images.single import Reader, name_of
from workflows.tables.table import records

__all__ = ["Gallery", "Group", "Picture", "Reading", "order", "uris"]

EACH, GROUPS, BYTES = 3, 8, 1_000_000
"""Images of each kind and, unless more are requested, groups and bytes of PNG in all."""


@dataclass(frozen=True)
class Picture:
    """One image.

    Arguments:
        image_id: Its id.
        kinds: For what it was chosen.
        label: Name of its class.
        answers: The classes that its draws answered, in words.
        right: How many draws were right.
        draws: Of how many.
        shown: What it is in words, and a PNG file; in the order of the group's columns.
    """

    image_id: int
    kinds: tuple[str, ...]
    label: str
    answers: str
    right: int
    draws: int
    shown: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Group:
    """Images of one cell.

    Arguments:
        cell: Id of the cell.
        title: Classifier, defence and threat.
        columns: Headings of the images.
        reduced: By what factor images were made smaller; 1 if they were not.
        pictures: The images.
    """

    cell: str
    title: str
    columns: tuple[str, ...]
    reduced: int
    pictures: tuple[Picture, ...]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(len(file) for picture in self.pictures for _, file in picture.shown)


@dataclass(frozen=True)
class Gallery:
    """The groups, and notes on those that are not shown."""

    groups: tuple[Group, ...] = ()
    note: str = ""


def order(analysis: Analysis) -> list[Cell]:
    """Return the cells that have images: the strongest of each defence first, then by budget or severity."""
    cells = [cell for cell in analysis.sweep.cells if cell.source is not None]
    if len(analysis.headline):
        rows = sorted(records(analysis.headline), key=lambda row: bool(row["bare"]))
        first = {row["strongest_cell"]: place for place, row in enumerate(rows)}
    else:
        first = {}
    return sorted(cells, key=lambda cell: (first.get(cell.id, len(first)), *_strength(cell)))


def _strength(cell: Cell) -> tuple[bool, float]:
    """Attacks first, then by falling budget or severity."""
    if cell.corruption is not None:
        return True, -float(cell.corruption.severity)
    return False, -float(0.0 if cell.attack is None else cell.attack.eps)


class Reading:
    """Reads groups of images; the answers of the cells of a defence are read once.

    Arguments:
        analysis: The sweep's analysis.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.results = analysis.results
        self.reader = Reader(self.results)
        self._judged: dict[str, Judged | None] = {}
        self._beside: dict[tuple[object, ...], list[Cell]] = {}
        for cell in analysis.sweep.cells:
            if cell.certificate is None:
                self._beside.setdefault(self._key(cell), []).append(cell)

    def gallery(self, cells: Sequence[Cell], count: int | None) -> Gallery:
        """Return the groups of the first cells.

        Arguments:
            cells: From :func:`order`.
            count: How many; None for as many as fit into a page.
        """
        groups: list[Group] = []
        size, left = 0, 0
        for cell in cells:
            if len(groups) >= (GROUPS if count is None else count):
                left += 1
                continue
            try:
                group = self.group(cell)
            except PuregridError as error:
                return Gallery(tuple(groups), f"Images are not shown, since their data cannot be read: {error}")
            if group is None:
                continue
            if count is None and groups and size + group.size > BYTES:
                left += 1
                continue
            groups.append(group)
            size += group.size
        if not cells:
            return Gallery((), "The sweep has no cells with adversarial or corrupted images.")
        if not groups and count != 0:
            return Gallery((), "No adversarial or corrupted images are committed yet.")
        note = (
            f"{left} further cells have images: `puregrid report SWEEP --out FOLDER/` writes a page for each."
            if left
            else ""
        )
        return Gallery(tuple(groups), note)

    def group(self, cell: Cell, each: int = EACH) -> Group | None:
        """Return the group of a cell; None if its answers or images are not committed."""
        own = self._answers(cell)
        if own is None:
            return None
        beside = self._beside[self._key(cell)]
        clean = next((other for other in beside if other.source is None), None)
        chosen = choose(
            own,
            None if clean is None else self._answers(clean),
            [answers for other in beside if (answers := self._answers(other)) is not None],
            each,
        )
        shown = [entry for one in chosen if (entry := self._pixels(cell, one)) is not None]
        return self._drawn(cell, own, shown) if shown else None

    def _key(self, cell: Cell) -> tuple[object, ...]:
        return cell.images.dataset.id, cell.classifier.id, cell.defence.purifier.id, cell.defence.draws, cell.seed

    def _answers(self, cell: Cell) -> Judged | None:
        if cell.id not in self._judged:
            self._judged[cell.id] = judged(self.results, cell)
        return self._judged[cell.id]

    def _pixels(self, cell: Cell, one: Chosen) -> tuple[Chosen, Pixels, Pixels, Pixels | None] | None:
        """Return original, given and purified; None if what the defence was given is not there."""
        original, _ = self.reader.original(cell, one.image_id)
        given = self.reader.given(cell, one.image_id)
        if given is None:
            return None
        purified = None
        if cell.measure is not None and cell.defence.purifier.purifier != "none":
            purified = self.reader.made("quality", cell.measure.id, cell, one.image_id)
        return one, original, given, purified

    def _drawn(self, cell: Cell, own: Judged, found: Sequence[tuple[Chosen, Pixels, Pixels, Pixels | None]]) -> Group:
        names = cell.images.dataset.class_names
        word = "corrupted" if cell.corruption is not None else "adversarial"
        pushed, k = amplified(np.stack([given - original for _, original, given, _ in found]))
        columns = ["original", word, f"perturbation ×{k:g}"]
        with_purified = all(purified is not None for *_, purified in found)
        rest, m = amplified(
            np.stack([purified - original for _, original, _, purified in found if purified is not None])
            if with_purified
            else np.zeros((len(found), 1, 1, 1), dtype=np.float32)
        )
        columns += ["purified", f"residual ×{m:g}"] if with_purified else []
        factor = -(-max(found[0][1].shape[1:]) // LARGEST)
        pictures = []
        for i, (one, original, given, purified) in enumerate(found):
            place = own.places[one.image_id]
            label, answers = names[int(own.labels[place])], own.predictions[place]
            said = _said(names, answers.tolist())
            images: list[tuple[str, Pixels]] = [
                (f"original of image {one.image_id}, class {label}", original),
                (f"{word} image {one.image_id} of class {label}, answered {said}", given),
                (f"what was added to image {one.image_id}, {k:g} times", pushed[i]),
            ]
            if with_purified and purified is not None:
                first = names[int(answers[0])]
                images.append((f"purified image {one.image_id} of class {label}, answered {first}", purified))
                images.append((f"what is left in image {one.image_id}, {m:g} times", rest[i]))
            pictures.append(
                Picture(
                    one.image_id,
                    one.kinds,
                    label,
                    said,
                    int((answers == own.labels[place]).sum()),
                    len(answers),
                    tuple((text, png(smaller(image, factor))) for text, image in images),
                )
            )
        title = name_of(self.results.sweep, cell)
        return Group(cell.id, title, tuple(columns), factor, tuple(pictures))


def _said(names: Sequence[str], answers: Sequence[int]) -> str:
    """Return answers in words: ``cat``, or ``cat (3), dog (2)`` where draws differ."""
    counts = {answer: answers.count(answer) for answer in dict.fromkeys(answers)}
    if len(counts) == 1:
        return names[answers[0]]
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{names[answer]} ({n})" for answer, n in ordered)


def uris(group: Group) -> Iterator[tuple[Picture, list[tuple[str, str]]]]:
    """Yield each image with its PNG files as data URIs, and what they show."""
    for picture in group.pictures:
        yield (
            picture,
            [(text, "data:image/png;base64," + base64.b64encode(file).decode()) for text, file in picture.shown],
        )
