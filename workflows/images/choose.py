"""Which images of a cell are worth a look, by fixed rules on its answers and never by how they look.

* *failures*: no draw is right, or the fewest; among equals the least probability of the true class.
* *flips*: most draws are right on the clean image, and not here; the largest falls first.
* *hardest*: the smallest share of right draws over all cells of the defence, clean and attacked.
* *first*: the first images of the sweep.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from workflows.grid.load import Cell
from workflows.results.reader import Results

__all__ = ["KINDS", "Chosen", "Judged", "choose", "judged"]

KINDS = ("failures", "flips", "hardest", "first")


@dataclass(frozen=True)
class Judged:
    """Answers to the images of a cell.

    Arguments:
        ids: Images, shape (N,).
        labels: Their classes, shape (N,).
        predictions: Answers of each draw, shape (N, draws).
        probability: Mean over draws of the true class's probability, shape (N,).
        guess: The class with the largest mean probability, shape (N,), and that probability in ``confidence``.
    """

    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]
    guess: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    places: dict[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", {int(image): place for place, image in enumerate(self.ids)})

    @property
    def right(self) -> npt.NDArray[np.float64]:
        """Share of right draws, shape (N,)."""
        return np.asarray((self.predictions == self.labels[:, None]).mean(1), dtype=np.float64)


def judged(results: Results, cell: Cell) -> Judged | None:
    """Return the answers of a clean, attacked or corrupted cell; None for a certificate, or without rows."""
    answers = None if cell.certificate is not None else results.answers(cell)
    if answers is None:
        return None
    labels = answers.label.astype(np.int64)
    mean = np.nan_to_num(answers.mean_probability.astype(np.float64))  # not known where draws stop
    return Judged(
        answers.image_id.astype(np.int64),
        labels,
        answers.prediction.astype(np.int64),
        np.take_along_axis(mean, labels[:, None], 1)[:, 0],
        mean.argmax(1),
        mean.max(1),
    )


@dataclass(frozen=True)
class Chosen:
    """An image, and for what it was chosen."""

    image_id: int
    kinds: tuple[str, ...]


def choose(own: Judged, clean: Judged | None, others: Sequence[Judged], each: int) -> list[Chosen]:
    """Choose images of a cell, so many of each of :data:`KINDS`.

    Arguments:
        own: The answers of the cell.
        clean: Those of the same defence on clean images; None if there are none, or the cell is that.
        others: Those of all cells of the defence.
        each: How many of each kind.
    """
    right = own.right
    order = np.lexsort((own.probability, right))
    kinds: dict[str, list[int]] = {"failures": [int(own.ids[i]) for i in order[:each] if right[i] < 0.5]}
    kinds["flips"] = [] if clean is None else _flips(own, clean, each)
    kinds["hardest"] = _hardest(own, others, each)
    kinds["first"] = [int(image) for image in own.ids[:each]]
    found: dict[int, list[str]] = {}
    for kind in KINDS:
        for image in kinds[kind]:
            found.setdefault(image, []).append(kind)
    return [Chosen(image, tuple(names)) for image, names in found.items()]


def _flips(own: Judged, clean: Judged, each: int) -> list[int]:
    before = clean.right
    falls = []
    for place, share in enumerate(own.right):
        image = int(own.ids[place])
        there = clean.places.get(image)
        if there is not None and before[there] > 0.5 and share <= 0.5:
            falls.append((share - before[there], own.probability[place] - clean.probability[there], image))
    return [image for *_, image in sorted(falls)[:each]]


def _hardest(own: Judged, others: Sequence[Judged], each: int) -> list[int]:
    if len(others) < 2:
        return []
    shares: dict[int, list[float]] = {int(image): [] for image in own.ids}
    for other in others:
        for image, share in zip(other.ids, other.right, strict=True):
            if int(image) in shares:
                shares[int(image)].append(float(share))
    return sorted(shares, key=lambda image: (float(np.mean(shares[image])), image))[:each]
