r"""Confidence bounds of a class probability, and the radii that follow from them.

A smoothed classifier :math:`g(x) = \arg\max_c P(f(x + \sigma n) = c)`, :math:`n \sim N(0, I)`, whose top class has
probability at least :math:`p_A` and whose other classes have at most :math:`p_B < p_A` does not change its answer
within the l_2 radius (Cohen, Rosenfeld, Kolter, arXiv 1902.02918, theorem 1; f may be random)

.. math:: R = \tfrac\sigma2 \left(\Phi^{-1}(p_A) - \Phi^{-1}(p_B)\right), \qquad
          R = \sigma\,\Phi^{-1}(p_A) \text{ with } p_B = 1 - p_A.

From k answers of a class in n, with one-sided error alpha (Clopper and Pearson, Biometrika 1934):

.. math:: \underline p = \mathrm{Beta}^{-1}(\alpha;\ k,\ n-k+1), \qquad
          \overline p = \mathrm{Beta}^{-1}(1-\alpha;\ k+1,\ n-k).

k = n gives :math:`\alpha^{1/n}`: no certificate of n samples exceeds the *ceiling*
:math:`\sigma\Phi^{-1}(\alpha^{1/n})`.

**A whole data set.** Of N independent certificates, each wrong with probability at most alpha, the number of wrong
ones is stochastically at most Binomial(N, alpha). With q its upper rho-quantile, certified accuracy is at least
:math:`\text{share} - q/N` with probability :math:`1-\rho`: that is :func:`dataset_bound`. The public analysis code of
Cohen et al. subtracts :math:`\alpha + \sqrt{\alpha(1-\alpha)\ln(1/\rho)/N} + \ln(1/\rho)/(3N)` instead, where
Bernstein's inequality has :math:`2\alpha(1-\alpha)` under the root. Without the 2 it fails with more than rho as soon
as :math:`N\alpha` is large (at N = 10,000 and alpha = rho = 0.001 with 0.0016, at N = 50,000 and alpha = 0.01 with
0.0037), so :func:`cohen_dataset_bound` is for comparison with printed numbers only.
"""

import bisect
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, ndtri

from defense.errors import InvalidInput

__all__ = [
    "ceiling",
    "cohen_dataset_bound",
    "dataset_bound",
    "lower_bound",
    "radius",
    "smallest_k",
    "top_two_p_value",
    "two_class_radius",
    "upper_bound",
]

Floats = npt.NDArray[np.float64]


def check_probability(value: float, name: str) -> None:
    """Refuse an error probability outside (0, 1)."""
    if not 0 < value < 1:
        raise InvalidInput(f"{name} = {value} is an error probability: between 0 and 1, such as 0.001.")


def check_sigma(sigma: float) -> None:
    """Refuse a standard deviation that is not a positive number."""
    if not (sigma > 0 and math.isfinite(sigma)):
        raise InvalidInput(f"sigma = {sigma} is the standard deviation of the noise: a finite number above 0.")


def checked_counts(k: npt.ArrayLike, n: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Counts as floats of one shape, 0 <= k <= n, 1 <= n."""
    k, n = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if not ((k >= 0) & (k <= n) & (n >= 1)).all():
        raise InvalidInput("a bound of k answers in n samples takes 0 <= k <= n and at least one sample.")
    return k, n


def lower_bound(k: npt.ArrayLike, n: npt.ArrayLike, alpha: float) -> Floats:
    """Clopper-Pearson lower bound of a probability, one-sided: above it with probability at most ``alpha``.

    Arguments:
        k: Answers of the class, 0 to ``n``, any shape.
        n: Samples, fixed before they were drawn, broadcast against ``k``.
        alpha: Error probability.

    Returns:
        Bounds in [0, 1); 0 for k = 0.

    Raises:
        InvalidInput: Counts that do not fit, or ``alpha`` outside (0, 1).
    """
    check_probability(alpha, "alpha")
    k, n = checked_counts(k, n)
    # Beta(0, .) has all its mass at 0, which the inverse does not know.
    return np.where(k > 0, betaincinv(np.maximum(k, 1), n - k + 1, alpha), 0.0)


def upper_bound(k: npt.ArrayLike, n: npt.ArrayLike, alpha: float) -> Floats:
    """Clopper-Pearson upper bound, one-sided; 1 for k = n. See :func:`lower_bound`."""
    k, n = checked_counts(k, n)
    return 1 - lower_bound(n - k, n, alpha)


def radius(p_a: npt.ArrayLike, sigma: float) -> Floats:
    """Certified l_2 radius of a class of probability at least ``p_a``; 0 where that is not above 1/2.

    Arguments:
        p_a: Lower bounds, any shape.
        sigma: Standard deviation of the noise, units of [0, 1] pixels; the radius has the same.

    Raises:
        InvalidInput: ``sigma`` is not positive and finite.
    """
    check_sigma(sigma)
    p_a = np.asarray(p_a, dtype=np.float64)
    return np.where(p_a > 0.5, sigma * ndtri(np.maximum(p_a, 0.5)), 0.0)


def two_class_radius(p_a: npt.ArrayLike, p_b: npt.ArrayLike, sigma: float) -> Floats:
    """Certified l_2 radius when every other class has probability at most ``p_b``; 0 where that is not below ``p_a``.

    Both must hold together: two bounds of error alpha/2 each hold with probability 1 - alpha.

    Arguments:
        p_a: Lower bounds of the top class, any shape.
        p_b: Upper bounds of every other class, broadcast against ``p_a``.
        sigma: See :func:`radius`.

    Raises:
        InvalidInput: See :func:`radius`.
    """
    check_sigma(sigma)
    p_a, p_b = np.asarray(p_a, dtype=np.float64), np.asarray(p_b, dtype=np.float64)
    certified = p_a > p_b
    half = np.where(certified, p_a, 0.75), np.where(certified, p_b, 0.25)
    return np.where(certified, sigma / 2 * (ndtri(half[0]) - ndtri(half[1])), 0.0)


def ceiling(n: int, alpha: float, sigma: float) -> float:
    """Return the largest radius that ``n`` samples can certify, that of n equal answers."""
    return float(radius(lower_bound(n, n, alpha), sigma))


@lru_cache(maxsize=256)
def smallest_k(n: int, alpha: float) -> int:
    """Return the smallest number of answers in ``n`` that certifies a class.

    Raises:
        InvalidInput: Not even ``n`` do; ``alpha`` outside (0, 1).
    """
    if float(lower_bound(n, n, alpha)) <= 0.5:
        raise InvalidInput(
            f"n = {n} samples cannot certify anything at alpha = {alpha}: it takes more than "
            f"{math.log2(1 / alpha):.1f} of them."
        )
    # The bound rises with k, so "certifies" is False ... False True ... True.
    return bisect.bisect_left(range(n + 1), True, key=lambda k: bool(lower_bound(k, n, alpha) > 0.5))


def top_two_p_value(first: int, second: int) -> float:
    """P-value of the two-sided binomial test that the two classes with most answers are equally likely.

    It is the test of PREDICT (Cohen et al., section 3.2.2): answer with the first class if p <= alpha, else abstain;
    the answer differs from the smoothed classifier's with probability at most alpha.

    Arguments:
        first: Answers of the one class.
        second: Answers of the other. Without any answers p is 1.
    """
    from scipy.stats import binomtest  # here: it takes half a second, and a plan needs none of it

    return float(binomtest(first, first + second, 0.5).pvalue) if first + second else 1.0


def dataset_bound(share: float, images: int, alpha: float, rho: float) -> float:
    """Lower bound of certified accuracy, above the true one with probability at most ``rho``; see the module.

    Arguments:
        share: Measured share of images with a right class and a radius of at least r.
        images: Their number N, drawn or fixed without a look at the certificates.
        alpha: Error probability of each certificate, independent of each other.
        rho: Error probability of this bound.

    Raises:
        InvalidInput: No images, a share outside [0, 1], or a probability outside (0, 1).
    """
    _check_dataset(share, images, alpha, rho)
    from scipy.stats import binom

    return max(0.0, share - float(binom.isf(rho, images, alpha)) / images)


def cohen_dataset_bound(share: float, images: int, alpha: float, rho: float) -> float:
    """The correction in the public code of Cohen et al., which is too small for many images; see the module."""
    _check_dataset(share, images, alpha, rho)
    log = math.log(1 / rho)
    return share - alpha - math.sqrt(alpha * (1 - alpha) * log / images) - log / (3 * images)


def _check_dataset(share: float, images: int, alpha: float, rho: float) -> None:
    check_probability(alpha, "alpha")
    check_probability(rho, "rho")
    if images < 1 or not 0 <= share <= 1:
        raise InvalidInput(f"a share of {share} of {images} images: it takes 0 to 1, of at least one image.")
