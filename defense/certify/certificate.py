r"""CERTIFY and PREDICT of Cohen, Rosenfeld, Kolter (arXiv 1902.02918, section 3.2), from counts alone.

CERTIFY takes the class :math:`\hat c` with most answers among n0 *selection* samples, and from n fresh *estimation*
samples the bound of its probability. Both rules have error alpha for the pair (class, radius):

* ``one-sided``: :math:`\underline p_A` with error alpha, :math:`R = \sigma\Phi^{-1}(\underline p_A)`, abstain where
  :math:`\underline p_A \le 1/2`. That is the published algorithm.
* ``two-class``: :math:`\underline p_A` and :math:`\overline p_B` with error alpha/2 each,
  :math:`R = \tfrac\sigma2(\Phi^{-1}(\underline p_A) - \Phi^{-1}(\overline p_B))`, abstain where
  :math:`\underline p_A \le \overline p_B`. :math:`\overline p_B` is the upper bound of the runner-up *among the
  estimation samples*, or :math:`1-\underline p_A` if that is less. No correction for the number of classes is due:
  the bound rises with the count, so that of the runner-up is at least that of the truly most probable other class,
  and that class is one, fixed by :math:`\hat c`; only its own bound has to hold. The rule can certify a class of
  probability below 1/2, and pays for it with the smaller alpha.

Counts of parts of the samples add up, so that the samples of one image may be drawn anywhere, in any order. They
remember which samples they hold: a part that is counted twice, or samples of another image or purpose, would be a
wrong certificate that looks like a right one, and is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from defense.certify.bounds import (
    check_probability,
    check_sigma,
    lower_bound,
    radius,
    top_two_p_value,
    two_class_radius,
    upper_bound,
)
from defense.errors import InvalidInput

__all__ = [
    "ABSTAIN",
    "ESTIMATE",
    "SELECT",
    "Certificate",
    "Counts",
    "Guarantee",
    "Role",
    "Rule",
    "certify",
    "predict",
]

ABSTAIN = -1
"""The class of a certificate that makes no statement."""

Role: TypeAlias = Literal["certify-select", "certify-estimate"]
SELECT: Role = "certify-select"
ESTIMATE: Role = "certify-estimate"
Rule: TypeAlias = Literal["one-sided", "two-class"]
Guarantee: TypeAlias = Literal["fixed-n", "sequential"]


@dataclass(frozen=True)
class Counts:
    """How often each class was the answer among some samples of one image.

    Arguments:
        image_id: The image.
        role: What the samples are for, ``"certify-select"`` or ``"certify-estimate"``; also the role of their noise.
        per_class: Answers per class, two classes or more.
        samples: The samples counted, as disjoint rising ranges (first, past the last).

    Raises:
        InvalidInput: Counts that are negative or do not add up to the number of samples.
    """

    image_id: int
    role: Role
    per_class: tuple[int, ...]
    samples: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if self.role not in (SELECT, ESTIMATE):
            raise InvalidInput(f"role {self.role!r} of counts is neither {SELECT!r} nor {ESTIMATE!r}.")
        if len(self.per_class) < 2 or min(self.per_class) < 0:
            raise InvalidInput("counts take two classes or more, and no negative number of answers.")
        edges = [edge for first, stop in self.samples for edge in (first, stop)]
        if edges and (edges[0] < 0 or any(a >= b for a, b in itertools.pairwise(edges))):
            raise InvalidInput(f"samples {self.samples} are not rising ranges with gaps between them.")
        if sum(self.per_class) != sum(stop - first for first, stop in self.samples):
            raise InvalidInput(
                f"image {self.image_id}: {sum(self.per_class)} answers of samples {self.samples}, which "
                "have one each."
            )

    @classmethod
    def of(cls, image_id: int, role: Role, per_class: npt.ArrayLike, first: int = 0) -> Counts:
        """Counts of consecutive samples that begin with sample ``first``.

        Arguments:
            image_id: The image.
            role: See the class.
            per_class: Integers, shape (classes,).
            first: Number of the first sample.
        """
        many = tuple(int(count) for count in np.asarray(per_class))
        return cls(image_id, role, many, ((first, first + sum(many)),) if sum(many) else ())

    @property
    def total(self) -> int:
        """Number of samples."""
        return sum(self.per_class)

    @property
    def top(self) -> int:
        """The class with most answers, the lowest number of several."""
        return int(np.argmax(self.per_class))

    def missing(self, n: int) -> tuple[tuple[int, int], ...]:
        """The ranges of samples 0 to ``n - 1`` that are not counted: what an interrupted certificate still needs."""
        gaps, at = [], 0
        for first, stop in (*self.samples, (n, n)):
            if at < min(first, n):
                gaps.append((at, min(first, n)))
            at = max(at, stop)
        return tuple(gaps)

    def __add__(self, other: Counts) -> Counts:
        """Counts of the samples of both.

        Raises:
            InvalidInput: Another image, role or number of classes, or samples that both count.
        """
        if not isinstance(other, Counts):
            return NotImplemented
        for name, own_value, other_value in (
            ("image", self.image_id, other.image_id),
            ("role", self.role, other.role),
            ("number of classes", len(self.per_class), len(other.per_class)),
        ):
            if own_value != other_value:
                raise InvalidInput(
                    f"counts of {name} {own_value!r} and {other_value!r} do not add up to one certificate."
                )
        return Counts(
            self.image_id,
            self.role,
            tuple(a + b for a, b in zip(self.per_class, other.per_class, strict=True)),
            _joined(self.image_id, (*self.samples, *other.samples)),
        )


def _joined(image_id: int, ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for first, stop in sorted(ranges):
        if joined and first < joined[-1][1]:
            raise InvalidInput(
                f"image {image_id}: samples {first} to {min(stop, joined[-1][1]) - 1} are counted twice. Add every "
                "part once."
            )
        if joined and first == joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((first, stop))
    return tuple(joined)


@dataclass(frozen=True)
class Certificate:
    """The certificate of one image: ``prediction`` within ``radius``, wrong with probability at most ``alpha``.

    Arguments:
        prediction: Class, or :data:`ABSTAIN`.
        radius: l_2 radius, units of [0, 1] pixels; 0 for an abstention.
        p_lower: Lower bound of the probability of the class that was selected.
        p_other: Upper bound of that of every other class; ``1 - p_lower`` under the one-sided rule.
        n: Estimation samples.
        alpha: Error probability.
        sigma: Standard deviation of the noise.
        rule: ``"one-sided"`` or ``"two-class"``.
        guarantee: ``"fixed-n"``: n was fixed beforehand. ``"sequential"``: the bound holds at any stopping time.
    """

    prediction: int
    radius: float
    p_lower: float
    p_other: float
    n: int
    alpha: float
    sigma: float
    rule: Rule
    guarantee: Guarantee

    @property
    def abstains(self) -> bool:
        """Whether no class is certified."""
        return self.prediction == ABSTAIN


def selected_class(counts0: Counts, counts: Counts) -> int:
    """Return the class that the selection samples name.

    Raises:
        InvalidInput: Counts of other roles, images or classes, or none.
    """
    if counts0.role != SELECT or counts.role != ESTIMATE:
        raise InvalidInput(
            f"a certificate takes counts of role {SELECT!r} and of role {ESTIMATE!r}, not {counts0.role!r} and "
            f"{counts.role!r}: a class that is chosen on the samples that bound it has no bound."
        )
    if counts0.image_id != counts.image_id or len(counts0.per_class) != len(counts.per_class):
        raise InvalidInput(
            f"selection on image {counts0.image_id} with {len(counts0.per_class)} classes, estimation on image "
            f"{counts.image_id} with {len(counts.per_class)}: one certificate is of one image."
        )
    if not counts0.total or not counts.total:
        raise InvalidInput(f"image {counts.image_id}: a certificate takes samples of both roles, one at least.")
    return counts0.top


def certify(
    counts0: Counts, counts: Counts, alpha: float, sigma: float, rule: Rule = "one-sided", *, n: int | None = None
) -> Certificate:
    """CERTIFY; see the module.

    The guarantee is that of a number of samples fixed beforehand. Who looks at a certificate and then decides to draw
    more has none: for that there is :class:`~defense.certify.sequential.SequentialPlan`.

    Arguments:
        counts0: Selection samples.
        counts: Estimation samples.
        alpha: Error probability.
        sigma: Standard deviation of the noise, units of [0, 1] pixels.
        rule: ``"one-sided"`` or ``"two-class"``.
        n: The number of estimation samples that was fixed beforehand: incomplete counts are then refused.

    Raises:
        InvalidInput: Counts that do not belong together or are not ``n``; an unknown rule; ``alpha`` or ``sigma`` out
            of range.
    """
    check_probability(alpha, "alpha")
    check_sigma(sigma)
    chosen = selected_class(counts0, counts)
    if n is not None and counts.samples != ((0, n),):
        raise InvalidInput(
            f"image {counts.image_id}: a certificate of n = {n} samples from {counts.total}. Samples still to be "
            f"drawn: {counts.missing(n)}."
        )
    k, total = counts.per_class[chosen], counts.total
    if rule == "one-sided":
        p_lower = float(lower_bound(k, total, alpha))
        p_other, far = 1 - p_lower, float(radius(p_lower, sigma))
        certified = p_lower > 0.5
    elif rule == "two-class":
        p_lower = float(lower_bound(k, total, alpha / 2))
        runner_up = max(count for c, count in enumerate(counts.per_class) if c != chosen)
        p_other = min(float(upper_bound(runner_up, total, alpha / 2)), 1 - p_lower)
        far, certified = float(two_class_radius(p_lower, p_other, sigma)), p_lower > p_other
    else:
        raise InvalidInput(f"unknown rule {rule!r} of a certificate: one-sided or two-class.")
    return Certificate(chosen if certified else ABSTAIN, far, p_lower, p_other, total, alpha, sigma, rule, "fixed-n")


def predict(counts: Counts, alpha: float) -> int:
    """PREDICT: the smoothed classifier's answer, or :data:`ABSTAIN`.

    Arguments:
        counts: Samples of either role, their number fixed beforehand.
        alpha: Probability, at most, of an answer that is not the smoothed classifier's.

    Returns:
        The class with most answers if the two-sided test against the runner-up has p <= ``alpha``.

    Raises:
        InvalidInput: ``alpha`` outside (0, 1).
    """
    check_probability(alpha, "alpha")
    second, first = sorted(counts.per_class)[-2:]
    return counts.top if top_two_p_value(first, second) <= alpha else ABSTAIN
