"""Whether one judgement is more accurate than another on the same images, by the exact sign-flip test.

A report makes many such tests. :func:`comparisons` counts them, and :func:`of_report` corrects p for their number, so
that the chance that a sound report has any error or warning of a test is below 2 %, whatever the number of its cells
(Bonferroni over all tests of the report; ``benchmarks/false_alarms.py`` measures the chance).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workflows.audit.view import View
from workflows.statistics.exact_tests import sign_flip
from workflows.statistics.multiplicity import bonferroni
from workflows.statistics.paired import PairedDifference, paired_difference
from workflows.statistics.proportions import average
from workflows.statistics.sequences import evidence

__all__ = [
    "FAR_BELOW",
    "LEVEL",
    "REPORT_LEVEL",
    "Comparisons",
    "Excess",
    "common_images",
    "comparisons",
    "count_comparison",
    "exceeds",
    "of_report",
    "significant_excess",
]

LEVEL = 0.01
"""A comparison counts where p is below this."""

FAR_BELOW = 0.001
"""What p is below, of tests that are not counted: sound sweeps are far from what they ask for."""

REPORT_LEVEL = 0.02
"""And where p, times the number of comparisons in the report, is below this."""


@dataclass
class Comparisons:
    """How many tests a report has made."""

    made: int = 0


_CURRENT: ContextVar[Comparisons | None] = ContextVar("comparisons", default=None)


@contextmanager
def comparisons() -> Iterator[Comparisons]:
    """Count the tests that are made inside the block."""
    counter = Comparisons()
    token = _CURRENT.set(counter)
    try:
        yield counter
    finally:
        _CURRENT.reset(token)


def count_comparison() -> None:
    """Count a test; every test whose p is the evidence of a finding is counted, whatever comes out of it."""
    counter = _CURRENT.get()
    if counter is not None:
        counter.made += 1


def of_report(p: float, made: int) -> float:
    """Return the p of a finding among all tests of its report."""
    return bonferroni(p, made)


@dataclass(frozen=True)
class Excess:
    """A significant difference of two accuracies (Avg) on the same images.

    Arguments:
        difference: From the lower one (``first``) to the higher one (``second``).
        p: p of the one-sided sign-flip test, or of the anytime-valid one, times the number of candidates.
    """

    difference: PairedDifference
    p: float

    @property
    def higher(self) -> float:
        """The higher accuracy."""
        return self.difference.second

    @property
    def lower(self) -> float:
        """The lower one."""
        return self.difference.first

    def evidence(self, higher: str, lower: str) -> dict[str, float]:
        """Return the numbers for a finding, with the two accuracies under these names."""
        return {
            higher: self.higher,
            lower: self.lower,
            "difference": self.difference.value,
            "p": self.p,
            "images": self.difference.images,
            "images_changed": self.difference.rose + self.difference.fell,
        }


def significant_excess(
    higher: npt.NDArray[np.bool_],
    lower: npt.NDArray[np.bool_],
    candidates: int = 1,
    level: float = LEVEL,
    *,
    may_stop: bool = False,
) -> Excess | None:
    """Test whether ``higher`` is more accurate than ``lower`` on the same images.

    Arguments:
        higher: Right answers, shape (images, draws), of the one that is claimed to be higher.
        lower: Right answers of the other; the number of draws may be another.
        candidates: From how many pairs this one was chosen for its accuracies (Bonferroni).
        level: p of an excess is below this.
        may_stop: Whether the number of images depends on what they show. Images are then in the order in which they
            came, and p is the anytime-valid one of :func:`workflows.statistics.sequences.evidence`.

    Returns:
        None where the difference is not significant, or there are no images.
    """
    if len(higher) == 0:
        return None
    count_comparison()
    if higher.mean() <= lower.mean():  # most pairs: no need for a test
        return None
    p = evidence((average(higher) - average(lower) + 1) / 2, 0.5) if may_stop else sign_flip(lower, higher)
    p = bonferroni(p, candidates)
    return Excess(paired_difference(average(lower), average(higher)), p) if p < level else None


def exceeds(higher: View, lower: View, candidates: int = 1) -> Excess | None:
    """Test as :func:`significant_excess` whether one view is more accurate than another on the images of both."""
    first, second = lower.correct, higher.correct
    if len(higher.image_ids) != len(lower.image_ids) or (higher.image_ids != lower.image_ids).any():
        i, j = common_images(higher, lower)
        second, first = second[i], first[j]
    return significant_excess(second, first, candidates, may_stop=higher.may_stop)


def common_images(
    one: View, other: View, ids: npt.NDArray[np.int64] | None = None
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return where the images of both are in either, in the order of the first.

    Arguments:
        one: A view.
        other: Another one.
        ids: Images to take in place of those of ``other``.
    """
    _, i, j = np.intersect1d(one.image_ids, other.image_ids if ids is None else ids, return_indices=True)
    order = np.argsort(i)
    return i[order], j[order]
