r"""A difference of two means on the same images, its interval, and the test that it is above a margin.

Let :math:`a_i` and :math:`b_i` be two values of image i in [0, 1]: shares of right draws, right answers, certified at
a radius. :math:`d_i = b_i - a_i` is **second minus first**, here and in every caller. Images are the sample, and
:math:`H_0: E\,d \le m` is tested for a margin m.

* **Test**: one-sided t, made safe where it is not. A t test raises false alarms where the images that speak against
  one are few and can be missed (if no image differs its interval has no length). So :math:`w = t^2/2` pseudo-images
  that fell as far as one can, d = -h, join the sample: the pseudo-count of Agresti and Coull (Am. Stat. 1998), on
  that side. They count fully for the spread, and for the mean as :math:`\kappa w` images,
  :math:`\kappa = -\mu_3/(\mu_2(h+\bar d))` in [0, 1] by the central moments: 1 where such rare images are all that
  varies, 0 where d is symmetric or skewed to the other side, because skewness spoils a t test (Johnson, JASA 1978).
  p is the level at which the lower bound meets m.
* **Interval**: that lower bound at 2.5 %, and the upper one, made with pseudo-images of d = +h.
* **h** is the largest difference that one image can have: 1, unless the caller knows better.

Exact tests of the same differences are in :mod:`workflows.statistics.exact_tests`.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from defense.errors import InvalidInput

__all__ = ["PairedDifference", "paired_difference", "safe_t_test"]

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two means on the same images, second minus first.

    Arguments:
        first: Mean of the first values, in [0, 1].
        second: Mean of the second.
        low: Lower end of the 95 % interval of second minus first.
        high: Upper end.
        images: Number of images.
        rose: Images whose second value is higher.
        fell: Images whose second value is lower.
        spread: Standard deviation of the difference over images.
    """

    first: float
    second: float
    low: float
    high: float
    images: int
    rose: int
    fell: int
    spread: float

    @property
    def value(self) -> float:
        """Second minus first."""
        return self.second - self.first


def paired_difference(first: Values, second: Values, largest: float = 1.0) -> PairedDifference:
    """Compare two values of the same images.

    Arguments:
        first: One value in [0, 1] per image.
        second: Another value of the same images, in the same order.
        largest: h, the largest difference that one image can have, in (0, 1]; an interval that is to hold against
            images that were never seen needs 1.

    Returns:
        The difference of their means; of a single image, whose spread is unknown, with the interval [-1, 1].

    Raises:
        InvalidInput: No image, or not the same number of them.
    """
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise InvalidInput(
            f"a paired difference needs the same images in both, at least one: there are {len(first)} and "
            f"{len(second)}"
        )
    d = np.asarray(second - first, dtype=np.float64)
    return PairedDifference(
        first=float(first.mean()),
        second=float(second.mean()),
        low=_lower_bound(d, largest),
        high=-_lower_bound(-d, largest),
        images=len(d),
        rose=int((d > 0).sum()),
        fell=int((d < 0).sum()),
        spread=float(d.std()),
    )


def safe_t_test(d: Values, margin: float, largest: float = 1.0) -> Values:
    """One-sided p of the test that the mean difference is at most ``margin``.

    Arguments:
        d: Differences per image, second minus first, shape (tests, images), two images or more: each line is a test
            of its own.
        margin: m, in [0, 1).
        largest: See :func:`paired_difference`.

    Returns:
        Shape (tests,).

    Raises:
        InvalidInput: Fewer than two images, which have no spread.
    """
    images, sums = d.shape[1], _power_sums(d - margin)
    if images < 2:
        raise InvalidInput(f"a t test needs at least two images; there are {images}")
    # With w = t^2/2 no statistic exceeds sqrt(2 n).
    low, high = np.full(len(d), -40.0), np.full(len(d), math.sqrt(2 * images) + 1)
    for _ in range(45):
        middle = (low + high) / 2
        mean, error = _safe_mean(sums, images, middle, largest + margin)
        above = mean > middle * error
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    from scipy import stats  # here: it takes most of a second, and a plan needs none of it

    return np.asarray(stats.t.sf((low + high) / 2, images - 1), dtype=np.float64)


def _lower_bound(d: Values, largest: float) -> float:
    """Lower bound of the mean of d at 2.5 %."""
    if len(d) == 1:
        return -1.0
    from scipy import stats  # here: see above

    t = float(stats.t.ppf(0.975, len(d) - 1))
    mean, error = _safe_mean(_power_sums(d[None]), len(d), np.array([t]), largest)
    return max(-1.0, float(mean[0] - t * error[0]))


def _power_sums(d: Values) -> tuple[Values, Values, Values]:
    return d.sum(1), (d * d).sum(1), (d**3).sum(1)


def _safe_mean(sums: tuple[Values, Values, Values], images: int, t: Values, h: float) -> tuple[Values, Values]:
    """Mean and its standard error, with the pseudo-images at -h that make the bound at t safe."""
    w = np.maximum(t, 0.0) ** 2 / 2
    first, second, third = (
        (total + sign * w * h**power) / (images + w)
        for total, sign, power in zip(sums, (-1, 1, -1), (1, 2, 3), strict=True)
    )
    variance = np.maximum(second - first**2, 0.0)
    skew = third - 3 * first * second + 2 * first**3
    scale = variance * (h + first)
    kappa = np.clip(np.divide(-skew, scale, out=np.zeros_like(scale), where=scale > 1e-15), 0.0, 1.0)
    return (sums[0] - kappa * w * h) / (images + kappa * w), np.sqrt(variance / (images + w))
