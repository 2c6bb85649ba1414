r"""Exact tests of whether two cells or runs differ on the same images.

Let :math:`d_i` be the difference of the shares of right draws on image i, second minus first. If swapping the two on
an image changes nothing, every :math:`d_i` keeps its size and takes either sign with probability 1/2:

* **Sign flips** (a permutation test): one-sided :math:`p = P(\sum_i s_i d_i \ge \sum_i d_i)` over random signs s.
* **McNemar** (Psychometrika 1947): the same with one answer an image, where the images on which the two differ are
  won by either side like a fair coin; here two-sided.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from defense.errors import InvalidInput

__all__ = ["McNemar", "mcnemar", "sign_flip"]

_LONGEST_LAW = 1 << 20
"""Points of the law of a sum beyond which its normal limit is taken."""


class McNemar(NamedTuple):
    """McNemar's exact test.

    Arguments:
        only_first: Images that the first alone answers rightly.
        only_second: Images that the second alone does.
        p: Two-sided p; 1 where no image differs.
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> McNemar:
    """Test whether two sets of right answers to the same images, shape (images,) each, differ."""
    from scipy import stats  # here: it takes most of a second, and a plan needs none of it

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differ = only_first + only_second
    return McNemar(only_first, only_second, float(stats.binomtest(only_first, differ).pvalue) if differ else 1.0)


def sign_flip(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    r"""One-sided p of the test that the second is not more accurate than the first on the same images.

    Shares are multiples of 1/L, with L the least common multiple of the numbers of draws, so that the sum is an
    integer in units of 1/L and its law is exact: its characteristic function is :math:`\prod_i \cos(k_i t)`,
    summed back by one FFT. With one draw each, all :math:`|k_i|` are 0 or 1 and the test is McNemar's one-sided one,
    taken from the binomial law, whose tail is good to every digit; the FFT's is good to about 1e-13, and p is never
    given below that. A t test would be as good for many images, but not where few of them differ, the usual case
    here. Laws of more than 2^20 points fall back on the normal limit.

    Arguments:
        first: Right answers, shape (images, N).
        second: Right answers on the same images, shape (images, M).

    Raises:
        InvalidInput: No image, or not the same number of them.
    """
    if len(first) != len(second) or len(first) == 0:
        raise InvalidInput(f"a paired test needs the same images in both, there are {len(first)} and {len(second)}")
    unit = math.lcm(first.shape[1], second.shape[1])
    k = second.sum(1) * (unit // second.shape[1]) - first.sum(1) * (unit // first.shape[1])
    total, sizes = int(k.sum()), np.abs(k[k != 0])
    return 1.0 if total <= -int(sizes.sum()) else _upper_tail(total, sizes)


def _upper_tail(total: int, sizes: npt.NDArray[np.int64]) -> float:
    """P(sum of sizes with random signs >= total)."""
    from scipy import fft, stats  # here: see above

    size, count = np.unique(sizes, return_counts=True)
    if len(size) == 1:
        flips, positive = int(count[0]), (total // int(size[0]) + int(count[0])) // 2
        return float(stats.binom.sf(positive - 1, flips, 0.5))
    span = int(sizes.sum())
    points = fft.next_fast_len(2 * span + 1, real=True)
    if points > _LONGEST_LAW:
        # Half a step back, since the sums are two steps apart.
        return float(stats.norm.sf((total - 1) / math.sqrt(float((sizes.astype(np.float64) ** 2).sum()))))
    t = 2 * np.pi * np.arange(points // 2 + 1) / points
    law = fft.irfft(np.prod(np.cos(np.outer(size, t)) ** count[:, None], axis=0), points)
    tail = law[total : span + 1] if total >= 0 else np.concatenate([law[total:], law[: span + 1]])
    return float(np.clip(tail.sum(), 1e-13, 1.0))
