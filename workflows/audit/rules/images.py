"""Rules about the judged images themselves: repeated ones, one class, and images that a network was trained on.

Weights that puregrid trained lie beside a card (``card.yaml``) with the digest of the training images and the file
of their fingerprints; cards of older versions have the digest alone, and name the data set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from scipy import stats

from defense.checkpoints import sha256_file
from defense.errors import PuregridError
from tasks.datasets import DatasetConfig, ImageSet
from tasks.image_checks import DUPLICATES, ONE_CLASS
from workflows.audit.about import about, percent
from workflows.audit.data import DataSets
from workflows.audit.excess import FAR_BELOW
from workflows.audit.finding import Finding
from workflows.audit.rules.stored_images import unread
from workflows.audit.view import View, group_by
from workflows.statistics.proportions import wilson

__all__ = ["check_data", "training_split"]

NEAR, OF_SPREAD = 0.01, 0.05
"""Distance below which two images are one, in pixels and in the images' own about their mean."""

COMPARED, VALUES = 2000, 20_000_000
"""Images and pixel values that are compared."""

MOST = 100_000_000
"""Pixel values of a training set that is still read where a card has no fingerprints."""


def training_split(all_views: Sequence[View]) -> Iterator[Finding]:
    """Figures on the training split, which networks have usually seen.

    Accuracy on images that a network was trained on is too high, and so is what it keeps under attack.
    """
    for members in group_by(all_views, "images"):
        if members[0].cell.images.dataset.split == "train":
            yield about(
                "training-split",
                "warning",
                members,
                "The judged images are of the training split.",
                {"images": len(members[0].correct)},
                "Judge on the test split.",
            )


def check_data(all_views: Sequence[View], sets: DataSets) -> Iterator[Finding]:
    """Images that repeat others or are of one class, and networks that were trained on them.

    The first two are refused when a sweep is read, unless its data set says ``accept``; then they are warnings here,
    so that a reader knows. The third is an error: weights whose training images are those that are judged, all of
    them (by digest) or more than 1 % (pixel by pixel).
    """
    card_of, known_to = cache(_card), cache(_known)  # once for all cells, and again in the next report
    for members in group_by(all_views, "images"):
        dataset = members[0].cell.images.dataset
        yield from _below_card(members, card_of)
        ids = sorted({int(i) for view in members for i in view.image_ids})
        try:
            data = sets.load(dataset)
        except (PuregridError, OSError, ValueError) as error:
            if all(view.stage is None for view in members):  # else the check of the adversarial images says so
                yield unread(error, members)
            continue
        marks, labels = data.fingerprints(ids), data.labels[ids]
        repeated = len(marks) - len(np.unique(marks))
        if repeated > DUPLICATES * len(marks):
            yield about(
                "repeated-images",
                "warning",
                members,
                f"{repeated} of the {len(marks)} images repeat others, pixel by pixel: intervals count them as so "
                "many, and are too narrow.",
                {"repeated": repeated, "images": len(marks)},
                "Judge each image once.",
            )
        elif (near := _near(data.images[some := ids[: _compared(data)]])) > DUPLICATES * len(some):
            yield about(
                "repeated-images",
                "warning",
                members,
                f"{near} of {len(some)} images are nearly others: intervals are too narrow.",
                {"repeated": near, "images": len(some)},
                "Judge one of each: what another codec made of an image is no new one.",
            )
        if len(labels) >= ONE_CLASS and len(np.unique(labels)) == 1:
            yield about(
                "one-class",
                "warning",
                members,
                f"All {len(labels)} images are of class {int(labels[0])}: this is no accuracy on the data set.",
                {"images": len(labels), "class": int(labels[0])},
                "Take images of all classes: `images: {every: N}` where they are sorted.",
            )
        elif chance := _classes_left_out(labels, data.labels):
            present, of = len(np.unique(labels)), len(np.unique(data.labels))
            yield about(
                "few-classes",
                "warning",
                members,
                f"The {len(labels)} images are of {present} of {of} classes, no accident (p = {chance:.2g}).",
                {"classes": present, "of": of, "chance": chance},
                "Take images of all classes: `images: {every: N}` where they are sorted.",
            )
        yield from _trained_on(members, data, marks, card_of, known_to)


def _compared(data: ImageSet) -> int:
    return min(COMPARED, max(VALUES // math.prod(data.images.shape[1:]), 2))


def _near(images: npt.NDArray[np.float32]) -> int:
    """Count the images that an earlier one is nearer to than :data:`NEAR`, root mean square over pixels."""
    flat = (images - images.mean(0)).reshape(len(images), -1)
    square = np.square(flat).sum(1)
    limit = min(NEAR**2 * flat.shape[1], OF_SPREAD**2 * float(square.mean()))
    near = square[:, None] + square - 2 * flat @ flat.T < limit
    return int(np.tril(near, -1).any(1).sum())


def _classes_left_out(labels: npt.NDArray[np.int64], every: npt.NDArray[np.int64]) -> float:
    """Return a bound on the probability that n random images leave out as much, 0 where it is above 1 %.

    It is s^n, of the share s of the m most frequent classes for m present ones, times the sets of m of the K classes.
    """
    counts, present = np.sort(np.unique(every, return_counts=True)[1])[::-1], len(np.unique(labels))
    if not 0 < present < len(counts):
        return 0.0
    chance = len(labels) * math.log(counts[:present].sum() / counts.sum()) + math.log(math.comb(len(counts), present))
    return math.exp(max(chance, -700)) if chance < math.log(0.01) else 0.0


def _trained_on(
    members: Sequence[View],
    data: ImageSet,
    marks: npt.NDArray[np.uint64],
    card_of: Callable[[Path], _Card | None],
    known_to: Callable[[_Card], npt.NDArray[np.uint64] | None],
) -> Iterator[Finding]:
    networks: dict[str, tuple[_Card, list[View]]] = {}
    for view in members:
        parts = [("the classifier", view.cell.classifier), *view.cell.defence.purifier.parts()]
        for name, part in parts:
            place = getattr(part, "weights", None) or getattr(part, "path", None)
            found = card_of(Path(place)) if isinstance(place, str) else None
            if found is not None:
                what = name if part is view.cell.classifier else f"the purifier's {name}"
                networks.setdefault(f"{what} ({Path(place or '').name})", (found, []))[1].append(view)
    for name, (card, views) in networks.items():
        if card.data.get("train_digest") == data.digest():
            seen = len(marks)
        else:  # as far as the card tells
            known = known_to(card)
            seen = 0 if known is None else int(np.isin(marks, known).sum())
        if seen > DUPLICATES * len(marks):
            yield about(
                "trained-on-judged-images",
                "error",
                views,
                f"{name[0].upper()}{name[1:]} was trained on {seen} of the {len(marks)} images that are judged, "
                "as its training card says.",
                {"seen": seen, "images": len(marks), "share": seen / len(marks)},
                "Judge on images that no part of the defence was trained on.",
            )


def _below_card(members: Sequence[View], card_of: Callable[[Path], _Card | None]) -> Iterator[Finding]:
    """The classifier alone is less accurate than on the test images of its training card: these are other images.

    They have another range, size, colour or label than those that it knows, or it another mean and std than it had.
    """
    place = getattr(members[0].cell.classifier, "weights", None)
    card = card_of(Path(place)) if isinstance(place, str) else None
    claimed = {} if card is None else card.content.get("measured", {})
    clean = [view.correct[:, 0] for view in members if view.cell.adversarial and view.bare and view.attack is None]
    found = clean or [view.right_before for view in members if not view.attack_rows.empty]
    if not found or not {"test_accuracy", "test_images"} <= claimed.keys():
        return
    right, images, accuracy = int(found[0].sum()), len(found[0]), float(claimed["test_accuracy"])
    low = wilson(accuracy, claimed["test_images"])[0]
    p = float(stats.binomtest(right, images, low, alternative="less").pvalue)
    if p < FAR_BELOW:
        yield about(
            "clean-below-card",
            "warning",
            members,
            f"The classifier alone has {percent(right / images)} of these {images} clean images right; its training "
            f"card says {percent(accuracy)}.",
            {"accuracy": right / images, "card": accuracy, "images": images, "p": p},
            "Check range, colours, size and labels of the images, and mean and std of the classifier.",
        )


@dataclass(frozen=True, eq=False)
class _Card:
    """The training card of weights, and its folder."""

    content: dict[str, Any]
    folder: Path

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = self.content.get("data", {})
        return data


def _card(place: Path) -> _Card | None:
    """Return the training card of weights; None where there is none, or it is of other weights."""
    folder = place if place.is_dir() else place.parent
    try:
        card = _parsed((folder / "card.yaml").read_text(encoding="utf-8"))
        files = {str(name): str(sha256) for name, sha256 in card["sha256"].items()}
        mine = files if place.is_dir() else {place.name: files[place.name]}
        same = all(sha256_file(folder / name) == sha256 for name, sha256 in mine.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None
    return _Card(card, folder) if same else None


@lru_cache(maxsize=16)
def _parsed(text: str) -> Any:
    """A card of hundreds of lines takes longer to read than everything else that is asked of the images."""
    return yaml.safe_load(text)


def _known(card: _Card) -> npt.NDArray[np.uint64] | None:
    """Return the fingerprints of the images that a network was trained on; None where its card tells too little."""
    known = _fingerprints(card.content, card.folder)
    if known is not None:
        return known
    # The data set that the card names may not be here, or no longer what it was.
    try:
        config = DatasetConfig.from_entry({**card.content["config"]["dataset"], "split": "train"})
        if card.data.get("train_images", MOST) * math.prod(config.image_shape) > MOST:
            return None
        images = config.resolved(Path.cwd()).load()
    except (PuregridError, OSError, ValueError, KeyError, TypeError):
        return None
    return images.fingerprints() if images.digest() == card.data.get("train_digest") else None


def _fingerprints(card: dict[str, Any], folder: Path) -> npt.NDArray[np.uint64] | None:
    listed = card.get("training_images")
    try:
        file = folder / str(listed["file"])  # type: ignore[index]
        if sha256_file(file) != listed["sha256"]:  # type: ignore[index]
            return None
        return np.fromfile(file, dtype="<u8")
    except (OSError, KeyError, TypeError, PuregridError):
        return None
