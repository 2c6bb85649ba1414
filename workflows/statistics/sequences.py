r"""Confidence sequences of a mean: intervals that hold at every number of images at once.

Wilson's interval holds at a number of images that was fixed beforehand. Whoever looks after every chunk and stops
when the answer pleases is wrong more often than 5 %. A confidence sequence (Darling and Robbins, PNAS 1967) is a
sequence of intervals with :math:`P(\exists t: \mu \notin C_t) \le \alpha`: one may stop at any time for any reason.

* **Betting** (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86, 2024,
  their hedged capital process, Theorem 3). Images :math:`X_i \in [0, 1]` come in random order. If the mean were m,
  the capital :math:`K_t^+(m) = \prod_i (1 + \lambda_i (X_i - m))` of who bets that it is higher, with
  :math:`0 \le \lambda_i \le c/m`, would be a nonnegative martingale, and so would :math:`K_t^-(m)` of who bets that
  it is lower. By Ville's inequality either is ever above :math:`2/\alpha` with probability :math:`\alpha/2` at most;
  the interval is all m where neither has ever been. :math:`K^+` falls with m and :math:`K^-` rises, so it is an
  interval indeed, and bisection finds its ends.
* **Bets**. :math:`\lambda_i = h/\hat\sigma^2_{i-1}` with the running variance of their equation for predictable
  plug-ins is the best constant bet if the interval shall have half-width h. As nobody's h is known, capital is spread
  over several (:data:`SCALES`), which is a martingale too. Bets so depend on neither level nor wanted precision: who
  wants more of it later goes on with the same sequence. For half-widths of 2 and 5 points this takes about 1.9 times
  the images of Wilson's interval; their plug-in :math:`\lambda_i \propto 1/\sqrt{i \log i}` takes 2 to 9 times.
* **Without replacement** (their section 5): of N images of which :math:`S_{i-1}` is the sum of those seen, the mean
  of the unseen ones would be :math:`m_i = (Nm - S_{i-1})/(N - i + 1)`. With that in place of m the interval is for
  the mean of these N images, and after the last one it is a point.

A value is one number in [0, 1] per image, for example the share of its right draws: draws of one image may depend on
each other as they like. Differences in [-1, 1] are halved and moved to [0, 1].
"""

import numpy as np
import numpy.typing as npt

from workflows.statistics.paired import PairedDifference
from workflows.statistics.proportions import Proportion

__all__ = ["SCALES", "SMALLEST", "anytime", "anytime_difference", "evidence", "sequence_ends"]

Values = npt.NDArray[np.float64]

SCALES = (0.005, 0.01, 0.02, 0.04, 0.08)
"""Half-widths for which the bets are best."""

_SHARES = np.array([1.0, 1.0, 4.0, 4.0, 4.0]) / 14
"""How capital is spread over :data:`SCALES`."""

SMALLEST = 0.005
"""The smallest half-width that can be asked for: with these bets no interval gets below half of that."""

_MOST = 0.75
"""c: the share of the capital that one image can cost at most."""

_HALVINGS = 18
"""Steps of the bisection: ends are exact to 4e-6, and outside by as much."""


def sequence_ends(values: npt.ArrayLike, population: int | None = None, level: float = 0.05) -> tuple[float, float]:
    """Return the confidence sequence of a mean at the last of some images.

    Arguments:
        values: One value in [0, 1] per image, in the random order in which images come, shape (n,).
        population: N, if the interval is for the mean of the N images of which these are the first; None if it is for
            the distribution that images are drawn from.
        level: Chance that the interval is ever wrong, at this or any earlier image.

    Returns:
        Both ends, in [0, 1]: the intersection of the intervals after each image. Without an image [0, 1].

    Raises:
        ValueError: A value is outside [0, 1], or there are more than N.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or (len(x) and not (x.min() >= 0 and x.max() <= 1)):
        raise ValueError("a confidence sequence needs one value in [0, 1] per image")
    if population is not None and len(x) > population:
        raise ValueError(f"there are {len(x)} images of {population}")
    if len(x) == 0:
        return 0.0, 1.0
    bets = _bets(x)
    low = _least(x, bets, population, level)
    high = 1.0 - _least(1.0 - x, bets, population, level)
    if population is not None:  # what the unseen images can still do
        low = max(low, float(x.sum()) / population)
        high = min(high, (float(x.sum()) + population - len(x)) / population)
    mean = float(x.mean())
    if population == len(x):
        return mean, mean
    return min(low, high), max(low, high)


def anytime(values: npt.ArrayLike, population: int | None = None, level: float = 0.05) -> Proportion:
    """Return the mean of per-image values with :func:`sequence_ends`, which need not be around it."""
    x = np.asarray(values, dtype=np.float64)
    return Proportion(float(x.mean()), *sequence_ends(x, population, level), n=len(x))


def anytime_difference(
    first: Values, second: Values, population: int | None = None, level: float = 0.05
) -> PairedDifference:
    """Return the difference of two values of the same images, second minus first, with its confidence sequence.

    Arguments:
        first: One value in [0, 1] per image, in random order.
        second: Another value of the same images.
        population: See :func:`sequence_ends`.
        level: See :func:`sequence_ends`.
    """
    d = np.asarray(second - first, dtype=np.float64)
    low, high = sequence_ends((d + 1) / 2, population, level)
    return PairedDifference(
        first=float(first.mean()),
        second=float(second.mean()),
        low=2 * low - 1,
        high=2 * high - 1,
        images=len(d),
        rose=int((d > 0).sum()),
        fell=int((d < 0).sum()),
        spread=float(d.std()),
    )


def evidence(values: npt.ArrayLike, mean: float, population: int | None = None) -> float:
    """Return p of the hypothesis that the mean is at most ``mean``, valid at whatever image one stops.

    It is one over the largest capital so far of who bets against that (Ville's inequality).

    Arguments:
        values: See :func:`sequence_ends`.
        mean: In [0, 1].
        population: See :func:`sequence_ends`.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) == 0:
        return 1.0
    return float(min(1.0, np.exp(-_log_capital(x, _bets(x), mean, population).max())))


def _bets(x: Values) -> Values:
    """Bets before they are cut, shape (scales, images), each from the images before: the same on either side."""
    t = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    return np.asarray(np.array(SCALES)[:, None] / before, dtype=np.float64)


def _log_capital(x: Values, bets: Values, mean: float, population: int | None) -> Values:
    """Logarithm of the capital after each image of who bets that the mean is higher than this one, shape (n,)."""
    expected: Values | float = mean
    if population is not None:
        seen = np.concatenate([[0.0], np.cumsum(x)[:-1]])
        expected = np.clip((population * mean - seen) / (population - np.arange(len(x))), 0.0, 1.0)
    stakes = np.minimum(bets, _MOST / np.maximum(expected, 1e-12))
    capital = np.cumsum(np.log1p(stakes * (x - expected)), axis=1)
    return np.asarray(np.logaddexp.reduce(capital + np.log(_SHARES)[:, None], axis=0))


def _least(x: Values, bets: Values, population: int | None, level: float) -> float:
    """Return the lower end: every mean below it has let the bets on a higher one exceed 2 / level."""
    low, high, limit = 0.0, 1.0, np.log(2 / level)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _log_capital(x, bets, middle, population).max() >= limit:
            low = middle
        else:
            high = middle
    return low
