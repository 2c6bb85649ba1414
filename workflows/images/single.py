"""One image of one cell: what the store holds of it, and every draw computed again from its key.

The noise of a draw is a function of the purifier's id, the seed, the image and the draw
(:mod:`defense.randomness`), so that the judgement of one image can be repeated without that of the others. Its batch
is another than in the unit, which moves the last bits: an answer that is not the stored one is reported.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from defense.aggregate import UNASKED
from defense.errors import InvalidInput
from defense.purifiers import IterativePurifier, NoPurifierConfig, Purifier
from defense.purifiers import Sequence as Chain
from defense.randomness import Omega
from tasks.attacks import LadderConfig
from tasks.compute import Context
from tasks.datasets import ImageSet
from tasks.stages import images_from_table
from workflows.grid.load import Cell
from workflows.grid.sweep import Sweep
from workflows.images.pictures import Pixels
from workflows.results.reader import Results

__all__ = ["Draw", "Rung", "Single", "Stored", "find_cell", "name_of", "single", "stored"]

_LISTED = 8


@dataclass(frozen=True)
class Rung:
    """One rung of a ladder on one image: its attack, the share of right draws that it left, None where it skipped."""

    attack: str
    right: float | None


@dataclass(frozen=True)
class Stored:
    """What the store holds of one image of a cell.

    Arguments:
        cell: Id of the cell.
        title: Classifier, defence and threat.
        image_id: The image.
        label: Its class.
        classes: Names of the classes.
        original: Shape (C, H, W).
        given: What the defence was given; None where it is the original.
        kind: What that is: ``adversarial`` or ``corrupted``.
        answers: The class that each judged draw answered, of those that were asked.
        label_probability: The true class's probability, one a draw.
        linf: Largest change of a pixel; None without one.
        l2: Length of the change.
        rungs: Of a ladder, each rung.
        submitted: Number of the rung whose image was submitted, from 0.
        certificate: Of a certificate: class, radius and counts in words.
    """

    cell: str
    title: str
    image_id: int
    label: int
    classes: tuple[str, ...]
    original: Pixels
    given: Pixels | None
    kind: str
    answers: tuple[int, ...] = ()
    label_probability: tuple[float, ...] = ()
    linf: float | None = None
    l2: float | None = None
    rungs: tuple[Rung, ...] = ()
    submitted: int | None = None
    certificate: str = ""

    def named(self, number: int) -> str:
        """Return the name of a class."""
        return self.classes[number] if 0 <= number < len(self.classes) else "abstained" if number < 0 else str(number)

    @property
    def added(self) -> str:
        """What the change of the image is called."""
        return "corruption" if self.kind == "corrupted" else "perturbation"

    @property
    def changed(self) -> float:
        """Share of the pixels of which any channel changed."""
        if self.given is None:
            return 0.0
        return float((self.given != self.original).any(0).mean())

    @property
    def broke(self) -> str:
        """Which rung broke the image, in words; "" without a ladder."""
        if not self.rungs or self.submitted is None:
            return ""
        lowest = self.rungs[self.submitted]
        first = next((rung for rung in self.rungs if rung.right == 0), None)
        if first is not None:
            return f"broken by {first.attack}, the first rung that left no right draw; submitted: {lowest.attack}"
        share = "" if lowest.right is None else f", which left {100 * lowest.right:.0f} % of the draws right"
        return f"no rung broke it on every draw; submitted: {lowest.attack}{share}"


@dataclass(frozen=True)
class Draw:
    """One draw, computed again.

    Arguments:
        number: From 0.
        purified: What the defence made of the image, shape (C, H, W), cut to [0, 1].
        answer: The class.
        confidence: Its probability.
        label_probability: That of the true class.
        stored: The answer in the store; None if it has none.
        states: The states on the way with their names, if they were asked for.
    """

    number: int
    purified: Pixels
    answer: int
    confidence: float
    label_probability: float
    stored: int | None
    states: tuple[tuple[str, Pixels], ...] = ()


@dataclass(frozen=True)
class Single:
    """One image with all of its draws; ``remarks`` say what is not as stored."""

    stored: Stored
    draws: tuple[Draw, ...]
    remarks: tuple[str, ...] = ()


def name_of(sweep: Sweep, cell: Cell) -> str:
    """Return what people call a cell: classifier, data set, defence, threat and seed."""
    from tasks.attacks.budgets import format_eps

    labels = sweep.labels[cell.id]
    threat = labels.get("corruption") or labels.get("certificate") or labels.get("attack") or "clean"
    eps = "" if cell.attack is None else f" eps {format_eps(cell.attack.eps)}"
    return f"{labels['classifier']} on {labels['dataset']}, {labels['defence']}, {threat}{eps}, seed {cell.seed}"


def find_cell(sweep: Sweep, wanted: str | None) -> Cell:
    """Return the cell that a user means: by the beginning of its id, or by words that its name has.

    Raises:
        InvalidInput: None or several are meant; the message lists them.
    """
    cells = {cell.id: cell for cell in sweep.cells}
    words = [] if wanted is None else wanted.lower().replace(",", " ").split()
    found = [cell for name, cell in cells.items() if wanted is not None and name.startswith(wanted)]
    if not found:
        found = [cell for cell in cells.values() if _has(name_of(sweep, cell).lower(), words)]
    if len(found) == 1:
        return found[0]
    shown = found or list(cells.values())
    listed = "".join(f"\n  {cell.id[:8]}  {name_of(sweep, cell)}" for cell in shown[:_LISTED])
    more = f"\n  and {len(shown) - _LISTED} more: `puregrid rows` lists all cells" if len(shown) > _LISTED else ""
    what = f"{len(found)} cells match {wanted!r}" if found else f"no cell matches {wanted!r}"
    what = f"the sweep has {len(cells)} cells" if wanted is None else what
    raise InvalidInput(
        f"{what}: name one by the beginning of its id or by words of its name.{listed}{more}", where="--cell"
    )


def _has(name: str, words: Sequence[str]) -> bool:
    tokens = name.replace(",", " ").split()
    return all(word in tokens for word in words) or " ".join(words) in name


@dataclass
class _Reader:
    """Reads images of cells; the data set and the chunk last read stay."""

    results: Results
    data: dict[str, ImageSet] = field(default_factory=dict)
    chunks: dict[tuple[str, str], Pixels] = field(default_factory=dict)

    def original(self, cell: Cell, image: int) -> tuple[Pixels, int]:
        config = cell.images.dataset
        if config.id not in self.data:
            self.data.clear()  # one data set in memory at a time
            self.data[config.id] = config.load()
        images = self.data[config.id]
        return images.images[image], int(images.labels[image])

    def made(self, stage: str, stage_id: str, cell: Cell, image: int) -> Pixels | None:
        """Return what a stage made of an image; None if that is not committed."""
        chunk = next((chunk for chunk in cell.images.chunks if image in chunk.ids), None)
        if chunk is None or chunk.name not in self.results.store.committed_chunks(stage, stage_id):
            return None
        key = (stage_id, chunk.name)
        if key not in self.chunks:
            if len(self.chunks) > 8:
                self.chunks.clear()
            table = self.results.store.read_images(stage, stage_id, chunk.name)
            self.chunks[key] = images_from_table(table, chunk.ids)
        made: Pixels = self.chunks[key][chunk.ids.index(image)]
        return made

    def given(self, cell: Cell, image: int) -> Pixels | None:
        """Return what the defence was given; None where it is the original, or not there."""
        return None if cell.source is None else self.made(cell.source.stage, cell.source.id, cell, image)


Reader = _Reader


def stored(results: Results, cell: Cell, image: int, reader: _Reader | None = None) -> Stored:
    """Read what the store holds of an image.

    Arguments:
        results: The results.
        cell: The cell.
        image: Id of the image.
        reader: Keeps what was read between calls.

    Raises:
        InvalidInput: The cell has no such image, or its rows or images are not committed.
    """
    ids = [i for chunk in cell.images.chunks for i in chunk.ids]
    if image not in ids:
        raise InvalidInput(
            f"the cell has no image {image}: its {len(ids)} images are {ids[0]} to {ids[-1]}"
            f"{'' if len(ids) == 1 + ids[-1] - ids[0] else ', not all of these'}.",
            where="--image",
        )
    reader = reader or _Reader(results)
    original, label = reader.original(cell, image)
    given = reader.given(cell, image)
    if cell.source is not None and given is None:
        raise InvalidInput(
            f"what {cell.source.stage} made of image {image} is not committed: run the sweep again.", where="--image"
        )
    rows = results.rows(cell)
    row = rows[rows["image_id"] == image] if len(rows) else rows
    change = None if given is None else np.asarray(given - original, dtype=np.float64)
    rungs, submitted = _ladder(results, cell, image)
    return Stored(
        cell=cell.id,
        title=name_of(results.sweep, cell),
        image_id=image,
        label=label,
        classes=cell.images.dataset.class_names,
        original=original,
        given=given,
        kind="corrupted" if cell.corruption is not None else "adversarial",
        answers=tuple(int(answer) for answer in _of_draws(row, "prediction") if answer != UNASKED),
        label_probability=tuple(float(p) for p in _of_draws(row, "label_probability") if p == p),
        linf=None if change is None else float(np.abs(change).max()),
        l2=None if change is None else float(np.sqrt((change**2).sum())),
        rungs=rungs,
        submitted=submitted,
        certificate="" if cell.certificate is None or not len(row) else _certificate(row.iloc[0], cell),
    )


def _of_draws(row: pd.DataFrame, name: str) -> npt.NDArray[Any]:
    """Return what a judged row says of each draw; nothing of a certificate, or without a row."""
    judged = len(row) and "label_probability" in row
    return np.asarray(row[name].iloc[0]) if judged else np.zeros(0)


def _certificate(row: object, cell: Cell) -> str:
    value = row.to_dict()  # type: ignore[attr-defined]
    answer = int(value["prediction"])
    names = cell.images.dataset.class_names
    if answer < 0:
        return f"abstained after {int(value['samples'])} samples at sigma {value['sigma']:g}"
    right = "right" if answer == int(value["label"]) else "wrong"
    return (
        f"certified {names[answer]} ({right}) within l_2 radius {value['radius']:.4g}, from {int(value['samples'])} "
        f"samples at sigma {value['sigma']:g}"
    )


def _ladder(results: Results, cell: Cell, image: int) -> tuple[tuple[Rung, ...], int | None]:
    source = cell.attack_stage
    if source is None or not isinstance(source.attack, LadderConfig):
        return (), None
    rows = results.attack_rows(cell)
    rows = rows[rows["image_id"] == image] if len(rows) else rows
    if not len(rows):
        return (), None
    rights = np.asarray(rows["attack_rights"].iloc[0], dtype=np.float64)
    rungs = tuple(
        Rung(rung.label(), None if np.isnan(right) else float(right))
        for rung, right in zip(source.attack.rungs, rights, strict=True)
    )
    return rungs, int(rows["attack_rung"].iloc[0])


def single(results: Results, cell: Cell, image: int, *, trajectory: bool = False, device: str = "cpu") -> Single:
    """Judge one image again, draw by draw, with the randomness of its unit.

    Arguments:
        results: The results.
        cell: The cell.
        image: Id of the image.
        trajectory: Whether to keep the states on the way of each draw.
        device: Where to compute.

    Raises:
        InvalidInput: See :func:`stored`.
    """
    known = stored(results, cell, image)
    if cell.certificate is not None:
        return Single(known, ())
    context, draws = Context(device), cell.defence.draws
    with context.settings(cell.compute), torch.no_grad():
        classifier = context.classifier(cell.classifier)
        purifier = context.purifier(cell.defence.purifier, cell.classifier)
        x = context.tensor(np.stack([known.original if known.given is None else known.given] * draws))
        omega = Omega.of(cell.defence.purifier.id, cell.seed, "judge", [image] * draws, list(range(draws)))
        with context.autocast(cell.compute):
            states = list(_states(purifier, x, omega)) if trajectory else []
            purified = purifier(x, omega).float()
        probability = classifier(purified).double().softmax(1).cpu().numpy()
    pixels = purified.clamp(0, 1).cpu().numpy()
    found = tuple(
        Draw(
            draw,
            pixels[draw],
            int(probability[draw].argmax()),
            float(probability[draw].max()),
            float(probability[draw, known.label]),
            known.answers[draw] if draw < len(known.answers) else None,
            tuple((name, state[draw]) for name, state in states),
        )
        for draw in range(draws)
    )
    return Single(known, found, tuple(_remarks(known, found, cell)))


def _states(purifier: Purifier, x: Tensor, omega: Omega) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yield the states of chains, those that are images, in their order: ``noised``, ``step 1``, ..."""
    if isinstance(purifier, Chain):
        for number, (stage, own) in enumerate(purifier.stages_with(omega)):
            for name, state in _states(stage, x, own):
                yield f"stage {number + 1}, {name}", state
            x = stage(x, own)
        return
    if not isinstance(purifier, IterativePurifier):
        return
    z = purifier.start(x, omega)
    if z.shape == x.shape:
        yield "start", z.float().cpu().numpy()
    for i in range(purifier.length):
        z = purifier.step(i, z, x, omega)
        if z.shape == x.shape:
            yield f"step {i + 1}", z.float().cpu().numpy()


def _remarks(known: Stored, draws: Sequence[Draw], cell: Cell) -> Iterator[str]:
    if not known.answers:
        yield "The judgement of this image is not committed: answers are those computed now."
        return
    other = [draw.number for draw in draws if draw.stored is not None and draw.stored != draw.answer]
    if other:
        yield (
            f"Computed now, draw{'s' * (len(other) > 1)} {', '.join(map(str, other))} answer another class than in "
            "the store: the batch is another, and hardware and versions may be. Tables count the stored answers."
        )
    if isinstance(cell.defence.purifier, NoPurifierConfig):
        return
    off = [
        abs(draw.label_probability - known.label_probability[draw.number])
        for draw in draws
        if draw.number < len(known.label_probability)
    ]
    if off and max(off) > 1e-2 and not other:
        yield f"Probabilities differ from the stored ones by up to {max(off):.2g}."
