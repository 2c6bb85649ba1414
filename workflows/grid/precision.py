"""How precise the answers of a sweep must be, so that no cell is computed further than its answer needs.

::

    precision: {half_width: 2}                                   # each accuracy to 2 points, at 95 %
    precision: {half_width: 2, of: images}                       # of the accuracy on the images that the sweep names
    precision: {decide: {threshold: 50}}                         # above or below 50 %
    precision: {decide: {between: [none, {purifier: jpeg}]}}     # which of two defences is better, under each threat
    precision: {decide: {baseline: night.json, drop: 5}}         # fallen since, by more than 1 point or less than 5

Images then come in a random order, which is fixed: chunks hold other images than without ``precision``, and the same
ones whatever it says. Only how many of them are computed depends on it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from defense.bounds import Bound
from defense.errors import InvalidInput
from defense.purifiers import NoPurifierConfig
from defense.spec import Spec
from workflows.grid.cells import Cell
from workflows.statistics.sequences import SMALLEST

__all__ = ["MARGIN", "Decide", "Measure", "Precision", "Question", "questions", "random_order"]

MARGIN = 0.01
"""A drop that nobody minds: what ``puregrid check`` tolerates where nothing else is said."""

Measure = Literal["avg", "worst", "answer"]
"""What an interval is of: Avg, Wor-M, or the answer by the defence's own aggregation of draws."""


class Decide(Spec):
    """A question to decide.

    Arguments:
        threshold: Is the accuracy above or below so many %?
        between: Which of two defences is better? As in ``exclude``, a name or a mapping of parameters each.
        baseline: Has the accuracy fallen since this baseline, a file that ``puregrid promote --to`` wrote?
        drop: It has not, if it has fallen by less than so many points; it has, if by more than :data:`MARGIN`.
    """

    bounds: ClassVar[dict[str, Bound]] = {"threshold": Bound(100, "an accuracy in %")}

    threshold: float | None = Field(default=None, ge=1, lt=100, description="It is in %, like 50.")
    between: tuple[Any, ...] | None = None
    baseline: str | None = None
    drop: float | None = Field(default=None, gt=100 * MARGIN, le=100, description="It is in points, like 5.")

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if sum(value is not None for value in (self.threshold, self.between, self.baseline)) != 1:
            raise InvalidInput(
                "give `threshold`, an accuracy in %, or `between`, two defences, or `baseline` with `drop`: one of "
                "them, and not both."
            )
        if (self.baseline is None) != (self.drop is None):
            raise InvalidInput("`baseline` and `drop`, in points, belong together.", keys=("drop",))
        if self.between is not None and len(self.between) != 2:
            raise InvalidInput("`between` names two defences, like `between: [none, diffpure]`.", keys=("between",))
        return self


class Precision(Spec):
    """When a cell is precise enough.

    Arguments:
        half_width: Half the width of the interval of a cell, in points (percentage points).
        decide: A question that is decided once its interval leaves only one answer.
        of: What the accuracy is of: the distribution that images are drawn from (``population``), or the images that
            the sweep names, had all of them been judged (``images``).
        measure: What the interval is of.
    """

    bounds: ClassVar[dict[str, Bound]] = {"half_width": Bound(50, "wider than any answer")}

    half_width: float | None = Field(default=None, ge=100 * SMALLEST, description="It is in points, like 2.")
    decide: Decide | None = None
    of: Literal["population", "images"] = "population"
    measure: Measure = "avg"

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.half_width is None) == (self.decide is None):
            raise InvalidInput("give `half_width`, in points, or `decide`, a question, and not both.")
        if self.of == "images" and self.decide is not None and self.decide.baseline is not None:
            raise InvalidInput(
                "a baseline may be of other images, so that drops are of the population.", keys=("of",)
            )
        return self

    def population(self, cell: Cell) -> int | None:
        """Return how many images the accuracy of a cell is of; None for the distribution."""
        return cell.images.count if self.of == "images" else None

    @property
    def guarantee(self) -> str:
        """What intervals promise, in words."""
        of = "of the sweep's images" if self.of == "images" else "of the population"
        return f"anytime-valid 95 %, {of}"


@dataclass(frozen=True)
class Question:
    """What one or two cells are computed for.

    Arguments:
        cells: Positions of the cells in the sweep: one, or the two that are compared.
        precision: What is asked.
        reference: Of a question about a baseline, its value of each image; empty where it has no such cell.
    """

    cells: tuple[int, ...]
    precision: Precision
    reference: Mapping[int, float] | None = field(default=None, compare=False, repr=False)


def random_order(ids: Iterable[int]) -> list[int]:
    """Return image ids in random order: by a hash of each, so that some of the images have the order of all."""
    return sorted(ids, key=lambda i: hashlib.sha256(f"puregrid order {i}".encode()).digest())


def questions(cells: Sequence[Cell], precision: Precision | None, sides: Sequence[Any] = ()) -> list[Question]:
    """Return the questions of a sweep; cells without one are computed in full.

    Clean and attacked cells have them. Certificates and corruptions are means over other things than images, or have
    guarantees of their own.

    Arguments:
        cells: The cells of the sweep.
        precision: What it asks.
        sides: The two of ``between``, in their proper spelling.

    Raises:
        InvalidInput: ``between`` names a defence that is not there, or not in one cell of each threat.
    """
    if precision is None:
        return []
    asked = {position: cell for position, cell in enumerate(cells) if cell.adversarial}
    if precision.decide is None or precision.decide.between is None:
        return [Question((position,), precision) for position in asked]
    first, second = (_side(asked, side, wanted) for side, wanted in enumerate(sides))
    pairs = [(i, j) for i, one in first.items() for j, other in second.items() if i != j and _beside(one, other)]
    if not pairs:
        raise InvalidInput(
            "the two defences meet no threat in common, on the same images.", keys=("precision", "decide", "between")
        )
    return [Question(pair, precision) for pair in pairs]


def _side(asked: Mapping[int, Cell], side: int, wanted: Any) -> dict[int, Cell]:
    """Return the cells of the defence that is named on one side of ``between``."""
    matching = {position: cell for position, cell in asked.items() if cell.matches({"defence": wanted})}
    keys = ("precision", "decide", "between", side)
    if not matching:
        raise InvalidInput(f"{wanted!r} matches no defence of the clean and attacked cells.", keys=keys)
    defences = {cell.defence: None for cell in matching.values()}
    if len(defences) > 1:
        labels = ", ".join(defence.label() for defence in defences)
        raise InvalidInput(
            f"one defence is compared with another, and {wanted!r} matches {len(defences)} ({labels}): name more of "
            "its parameters, like {purifier: diffpure, t_star: 100}.",
            keys=keys,
        )
    return matching


def _beside(one: Cell, other: Cell) -> bool:
    """Return whether two cells differ in their defence alone; on no defence an adaptive attack is the static one."""
    if (one.images, one.classifier.id, one.seed) != (other.images, other.classifier.id, other.seed):
        return False
    if one.attack is None or other.attack is None:
        return one.attack is other.attack
    attacks = one.attack, other.attack
    if any(isinstance(cell.defence.purifier, NoPurifierConfig) for cell in (one, other)):
        attacks = attacks[0].on_bare_classifier(), attacks[1].on_bare_classifier()
    return attacks[0].id == attacks[1].id
