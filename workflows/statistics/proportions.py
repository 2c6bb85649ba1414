r"""Statistics of the matrix images x draws of right answers.

Let :math:`c_i` be the number of right draws among N of image i.

* Avg: mean of :math:`c_i/N`, an estimate of the accuracy on one draw.
* Wor(M), accuracy when an adversary may resubmit M times:
  :math:`\frac1n\sum_i \binom{c_i}{M}/\binom{N}{M}`, the unbiased estimator of the mean of :math:`p_i^M`, which
  exists only for M <= N.
* Proportions have Wilson's interval (Wilson, JASA 1927) at 95 %. Images are the sample: for a mean over draws,
  whose per-image values lie in [0, 1], n is the number of images, never images x draws. That is conservative,
  since :math:`\mathrm{Var}(p_i) \le \bar p(1-\bar p)`, and independent of how many draws were taken.
* Wor(M) for M < N is not a proportion of images, and far narrower than one: its interval is the bootstrap over images
  of :func:`bootstrap`.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

__all__ = [
    "Proportion",
    "average",
    "bootstrap",
    "proportion",
    "wilson",
    "worst",
    "worst_of",
]


@dataclass(frozen=True)
class Proportion:
    """A proportion with its interval.

    Arguments:
        value: Estimate.
        low: Lower end of the 95 % interval.
        high: Upper end.
        n: Number of images.
    """

    value: float
    low: float
    high: float
    n: int


def wilson(p: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion ``p`` of ``n``, both ends in [0, 1]."""
    if n < 1:
        raise ValueError("an interval needs at least one image")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Against p, too: at 0 and at 1 the end is p itself, which rounding would miss.
    return max(0.0, min(p, float(centre - half))), min(1.0, max(p, float(centre + half)))


def proportion(values: npt.ArrayLike) -> Proportion:
    """Return the mean of per-image values in [0, 1] with Wilson's interval over images."""
    array = np.asarray(values, dtype=np.float64)
    p = float(array.mean())
    return Proportion(p, *wilson(p, len(array)), n=len(array))


_RESAMPLES = 2000


def bootstrap(values: npt.ArrayLike) -> Proportion:
    r"""Return the mean of per-image values in [0, 1] with a percentile interval over resampled images.

    The percentile bootstrap (Efron 1979) of a mean near 0 or 1 is too short, and of equal values has no length. As
    Agresti and Coull do for proportions (Am. Stat. 1998), :math:`\kappa z^2/2` images of value 0 and as many of value
    1 join the sample, with :math:`\kappa = s^2/(p(1-p))` its variance in units of that of right and wrong answers (1
    where that is 0/0): with such answers alone the centre is Wilson's. Resampling is seeded, so that the same values
    have the same interval. It covers 95 +- 1 % down to about 5 images' worth of mean; below that it is too short.
    """
    array = np.sort(np.asarray(values, dtype=np.float64))  # sums must not depend on the order of images
    if len(array) == 0:
        raise ValueError("an interval needs at least one image")
    p, z = float(array.mean()), NormalDist().inv_cdf(0.975)
    of_answers = p * (1 - p)
    # At least 1/n: values that are all equal by chance must not leave an interval without length.
    kappa = 1.0 if of_answers < 1e-12 else min(1.0, max(float(array.var()) / of_answers, 1 / len(array)))
    level, count = np.unique(array, return_counts=True)
    level = np.concatenate([level, [0.0, 1.0]])
    weight = np.concatenate([count, np.full(2, kappa * z * z / 2)])
    size = round(float(weight.sum()))
    # Images of equal value are exchangeable: resampling them is a multinomial draw of how many have each value.
    drawn = np.random.default_rng(0).multinomial(size, weight / weight.sum(), size=_RESAMPLES)
    low, high = np.quantile(drawn @ level / size, (0.025, 0.975))
    return Proportion(p, min(p, float(low)), max(p, float(high)), n=len(array))


def worst(correct: npt.NDArray[np.bool_], m: int) -> Proportion:
    """Return Wor(M) of a matrix (n, N): by Wilson where M = N and each image is right or wrong, else by bootstrap."""
    values = worst_of(correct, m)
    return proportion(values) if m == correct.shape[1] else bootstrap(values)


def average(correct: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the share of right draws of each image, from a matrix (n, N)."""
    mean: npt.NDArray[np.float64] = correct.mean(1)
    return mean


def worst_of(correct: npt.NDArray[np.bool_], m: int) -> npt.NDArray[np.float64]:
    """Return the unbiased estimate of p^M of each image, from a matrix (n, N) of right answers.

    Raises:
        ValueError: M above the number of draws, where no unbiased estimator exists.
    """
    draws = correct.shape[1]
    if not 1 <= m <= draws:
        raise ValueError(f"worst of {m} needs at least {m} draws, there are {draws}")
    c = correct.sum(1).astype(np.float64)

    def log_choose(a: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(gammaln(a + 1) - gammaln(m + 1) - gammaln(np.maximum(a - m, 0) + 1))

    ratio = np.exp(log_choose(c) - log_choose(np.full_like(c, draws)))
    return np.where(c >= m, np.minimum(ratio, 1.0), 0.0)
