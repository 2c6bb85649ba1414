"""Images through a defence: original, given, purified, and the two differences amplified.

Images are the first ones of the sweep, never chosen by how they look. A difference d is shown as
:math:`1/2 + k d`, grey where nothing changed, with one factor k for all images of a group: the largest of 1/2, 1, 2,
5, 10, 20 and 50 at which no pixel is cut.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from defense.errors import PuregridError
from tasks.attacks.budgets import format_eps
from tasks.datasets import ImageSet
from tasks.stages import images_from_table
from workflows.grid.load import Cell
from workflows.results.reader import Results

__all__ = ["Gallery", "Group", "Picture", "amplified", "gallery", "png", "uris"]

Pixels = npt.NDArray[np.float32]

IMAGES, GROUPS, BYTES = 4, 8, 1_500_000
"""Images per group and, unless more are requested, groups and bytes of PNG in all."""

LARGEST = 112
"""Images with more pixels along an edge are made smaller by a whole factor."""

FACTORS = (50, 20, 10, 5, 2, 1, 0.5)


@dataclass(frozen=True)
class Picture:
    """One image.

    Arguments:
        image_id: Its id.
        label: Its class.
        right: How many draws were right on it, or None where it has not been judged.
        draws: Of how many.
        shown: PNG files: original, given, purified, perturbation, residual.
    """

    image_id: int
    label: int
    right: int | None
    draws: int
    shown: tuple[bytes, ...]


@dataclass(frozen=True)
class Group:
    """Images of one cell.

    Arguments:
        cell: Id of the cell.
        title: Classifier, defence and threat.
        given: What the defence was given: ``adversarial`` or ``corrupted``.
        perturbation: Factor of given minus original.
        residual: Factor of purified minus original.
        reduced: By what factor images were made smaller; 1 if they were not.
        pictures: The images.
    """

    cell: str
    title: str
    given: str
    perturbation: float
    residual: float
    reduced: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """The groups, and notes on those that are not shown."""

    groups: tuple[Group, ...] = ()
    note: str = ""


@dataclass
class _Reader:
    results: Results
    data: dict[str, ImageSet] = field(default_factory=dict)

    def clean(self, cell: Cell, ids: Sequence[int]) -> tuple[Pixels, npt.NDArray[np.int64]]:
        config = cell.images.dataset
        if config.id not in self.data:
            self.data.clear()  # one data set in memory at a time
            self.data[config.id] = config.load()
        image_set = self.data[config.id]
        return image_set.images[list(ids)], image_set.labels[list(ids)]

    def stored(self, stage: str, stage_id: str, cell: Cell) -> Pixels | None:
        """Return the first images of a stage, if its first chunk is committed."""
        chunk = cell.images.chunks[0]
        if chunk.name not in self.results.store.committed_chunks(stage, stage_id):
            return None
        return images_from_table(self.results.store.read_images(stage, stage_id, chunk.name), chunk.ids)[:IMAGES]

    def group(self, cell: Cell) -> Group | None:
        """Return the group of a cell; None if images of it are missing."""
        measure, source = cell.measure, cell.source
        assert measure is not None and source is not None
        purified, attacked = self.stored("quality", measure.id, cell), self.stored(source.stage, source.id, cell)
        if purified is None or attacked is None:
            return None
        ids = cell.images.chunks[0].ids[:IMAGES]
        clean, labels = self.clean(cell, ids)
        rows = self.results.rows(cell)
        votes = {} if rows.empty else dict(zip(rows["image_id"], rows["prediction"], strict=True))
        perturbation, k = amplified(attacked - clean)
        residual, m = amplified(purified - clean)
        factor = -(-max(clean.shape[2:]) // LARGEST)
        pictures = []
        for i, image_id in enumerate(ids):
            shown = (clean[i], attacked[i], purified[i], perturbation[i], residual[i])
            answers = votes.get(image_id)
            pictures.append(
                Picture(
                    image_id,
                    int(labels[i]),
                    None if answers is None else int((np.asarray(answers) == labels[i]).sum()),
                    cell.defence.draws,
                    tuple(png(_smaller(image, factor)) for image in shown),
                )
            )
        labelled = self.results.sweep.labels[cell.id]
        threat = labelled.get("corruption") or f"{labelled['attack']} eps {format_eps(_eps(cell))}"
        title = (
            f"{labelled['classifier']} on {labelled['dataset']}, {labelled['defence']}, {threat}, seed {cell.seed}"
        )
        kind = "adversarial" if cell.attack is not None else "corrupted"
        return Group(cell.id, title, kind, k, m, factor, tuple(pictures))


def gallery(results: Results, most: int | None = None) -> Gallery:
    """Return the first images of cells with stored purified images: largest budgets and severities first.

    Nothing is computed: images come from the store and the data set. Where the data set is not at hand, or what is
    stored cannot be read, the note says so.

    Arguments:
        results: The results.
        most: Cells to show, however many bytes they take; None for :data:`GROUPS` and at most :data:`BYTES`.
    """
    if most == 0:
        return Gallery()
    measured = [cell for cell in results.sweep.cells if cell.measure is not None]
    if not measured:
        return Gallery(
            note="No purified images are stored. With `quality: true` in the sweep file this page shows what the "
            "defences make of images; no attack is run again for it."
        )
    cells = [cell for cell in measured if cell.source is not None and cell.defence.purifier.purifier != "none"]
    if not cells:
        return Gallery(note="No cell has both a purifier and an attack or a corruption: nothing to show.")
    cells.sort(key=_strength)
    reader, size = _Reader(results), 0
    groups: list[Group] = []
    for cell in cells:
        if len(groups) == (GROUPS if most is None else most):
            break
        try:
            group = reader.group(cell)
        except (PuregridError, OSError, ValueError) as error:
            return Gallery(tuple(groups), f"Images could not be read here: {error}")
        if group is None:
            continue
        size += sum(len(shown) for picture in group.pictures for shown in picture.shown)
        if most is None and size > BYTES and groups:
            break
        groups.append(group)
    if not groups:
        return Gallery(note="No purified images are committed yet: run the sweep again.")
    note = f"{len(groups)} of {len(cells)} cells with purified images, the largest budgets and severities first."
    return Gallery(tuple(groups), note if len(groups) < len(cells) else "")


def _strength(cell: Cell) -> tuple[bool, float]:
    """Attacks first, then by falling budget or severity."""
    return cell.attack is None, -float(_eps(cell) if cell.corruption is None else cell.corruption.severity)


def _eps(cell: Cell) -> float:
    return 0.0 if cell.attack is None else cell.attack.eps


def amplified(difference: Pixels) -> tuple[Pixels, float]:
    """Return differences as images around grey, and the largest factor that cuts nothing."""
    largest = float(np.abs(difference).max(initial=0.0))
    factor = next((k for k in FACTORS if k * largest <= 0.5), FACTORS[-1])
    image: Pixels = np.clip(np.float32(0.5) + np.float32(factor) * difference, 0, 1)
    return image, factor


def _smaller(image: Pixels, factor: int) -> Pixels:
    """Return means over squares; what is left over at the edges is cut."""
    if factor == 1:
        return image
    c, h, w = image.shape[0], image.shape[1] // factor, image.shape[2] // factor
    cut = image[:, : h * factor, : w * factor].reshape(c, h, factor, w, factor)
    mean: Pixels = cut.mean((2, 4), dtype=np.float32)
    return mean


def png(image: Pixels) -> bytes:
    """Return an image of shape (C, H, W) in [0, 1] as a PNG file, rounded to 8 bits; C is 1 or 3."""
    levels = np.round(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(sink, "PNG", optimize=True)
    return sink.getvalue()


def uris(group: Group) -> Iterator[tuple[Picture, list[str]]]:
    """Yield each image with its PNG files as data URIs."""
    for picture in group.pictures:
        yield picture, ["data:image/png;base64," + base64.b64encode(png).decode() for png in picture.shown]
