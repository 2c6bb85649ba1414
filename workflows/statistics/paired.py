r"""Statistics of two runs on the same images: differences, and the test that a drop is larger than a margin.

Let :math:`d_i = b_i - c_i` be the drop on image i, b before and c now: of any value per image in [0, 1] (share of
right draws, right answer, certified at a radius), so d lies in [-1, 1]. Images are the sample.

* **Gate** (non-inferiority): :math:`H_0: E\,d \le m`, margin m. A drop has to be shown, so that chance alone raises
  an alarm in at most a share alpha of the runs; :func:`holm` keeps that over all cells of a sweep (Holm, Scand. J.
  Stat. 1979).
* **Test**: one-sided t, made safe where it is not. It raises false alarms where the images that speak against one
  are few and can be missed (if none differs its interval has no length). So :math:`w = t^2/2` images that *improved*
  by all they could, d = -1, join the sample: the pseudo-count of Agresti and Coull (Am. Stat. 1998), on that side.
  They count fully for the spread, and for the mean as :math:`\kappa w` images,
  :math:`\kappa = -\mu_3/(\mu_2(1+\bar d))` in [0, 1] by the central moments: 1 where such rare images are all that
  varies, 0 where d is symmetric or skewed to the other side: skewness spoils a t test (Johnson, JASA 1978).
  p is the level at which the lower bound meets m.
* **Interval** of a difference: that lower bound at 2.5 %, and the upper one, made with images of d = +1.
* **Power**: :func:`detectable` gives the smallest drop that is found in 80 % of the runs.
* **McNemar's** exact test (Psychometrika 1947) for right and wrong answers: each side won half of the images on which
  the two differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import fft, optimize, stats

from defense.errors import InvalidInput

__all__ = ["Drop", "PairedTest", "detectable", "drop_p", "holm", "mcnemar", "paired_drop", "paired_test"]

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drop:
    """How far a value per image fell, on the same images.

    Arguments:
        before: Mean before, in [0, 1].
        now: Mean now.
        low: Lower end of the 95 % interval of before - now.
        high: Upper end.
        p: Of the one-sided test that the drop is at most the margin.
        images: Number of images.
        worse: Images whose value fell.
        better: Images whose value rose.
        spread: Standard deviation of the drop over images.
    """

    before: float
    now: float
    low: float
    high: float
    p: float
    images: int
    worse: int
    better: int
    spread: float

    @property
    def value(self) -> float:
        """Before minus now."""
        return self.before - self.now


def paired_drop(before: Values, now: Values, margin: float = 0.0) -> Drop:
    """Compare two runs on the same images.

    Arguments:
        before: One value in [0, 1] per image.
        now: Of the same images in the same order.
        margin: Drop that is tolerated, in [0, 1).

    Raises:
        InvalidInput: Fewer than two images, or not the same number of them.
    """
    if before.shape != now.shape or before.ndim != 1 or len(before) < 2:
        raise InvalidInput(
            f"a paired test needs the same images in both, at least two; there are {len(before)} and {len(now)}"
        )
    d = np.asarray(before - now, dtype=np.float64)
    n, t = len(d), float(stats.t.ppf(0.975, len(d) - 1))
    return Drop(
        before=float(before.mean()),
        now=float(now.mean()),
        low=_lower(d, t),
        high=-_lower(-d, t),
        p=float(drop_p(d[None], margin)[0]),
        images=n,
        worse=int((d > 0).sum()),
        better=int((d < 0).sum()),
        spread=float(d.std()),
    )


def _lower(d: Values, t: float) -> float:
    """Lower bound of the mean of d."""
    mean, error = _safe(_sums(d[None]), len(d), np.array([t]), 1.0)
    return max(-1.0, float(mean[0] - t * error[0]))


def _sums(d: Values) -> tuple[Values, Values, Values]:
    return d.sum(1), (d * d).sum(1), (d**3).sum(1)


def _safe(sums: tuple[Values, Values, Values], n: int, t: Values, a: float) -> tuple[Values, Values]:
    """Mean and its standard error, with the images at -a that make the bound at t safe."""
    w = np.maximum(t, 0.0) ** 2 / 2
    first, second, third = (
        (total + sign * w * a**k) / (n + w) for total, sign, k in zip(sums, (-1, 1, -1), (1, 2, 3), strict=True)
    )
    variance = np.maximum(second - first**2, 0.0)
    skew = third - 3 * first * second + 2 * first**3
    scale = variance * (a + first)
    kappa = np.clip(np.divide(-skew, scale, out=np.zeros_like(scale), where=scale > 1e-15), 0.0, 1.0)
    return (sums[0] - kappa * w * a) / (n + kappa * w), np.sqrt(variance / (n + w))


def drop_p(d: Values, margin: float) -> Values:
    """One-sided p of the test that the mean drop is at most ``margin``.

    Arguments:
        d: Drops per image, shape (runs, images): each line is a test of its own.
        margin: In [0, 1).

    Returns:
        Shape (runs,).
    """
    n, sums = d.shape[1], _sums(d - margin)
    # With w = t^2/2 no statistic exceeds sqrt(2 n).
    low, high = np.full(len(d), -40.0), np.full(len(d), math.sqrt(2 * n) + 1)
    for _ in range(45):
        middle = (low + high) / 2
        mean, error = _safe(sums, n, middle, 1 + margin)
        above = mean > middle * error
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray(stats.t.sf((low + high) / 2, n - 1), dtype=np.float64)


def holm(p: Sequence[float]) -> list[float]:
    """The p values corrected for their number, so that the chance of *any* false alarm is at most alpha."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    found = np.empty(len(order))
    found[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in found]


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Two-sided p of McNemar's exact test, on right answers to the same images; 1 if no image differs."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def detectable(images: int, spread: float, alpha: float, margin: float, power: float = 0.8) -> float | None:
    r"""The smallest drop that the gate finds with this power, None if not even a drop from 1 to 0 is.

    The change is taken to be a share of images lost altogether, on top of what differs anyway, so that the variance
    of d is :math:`s^2 + \delta(1-\delta)`; a drop that is spread thinly over all images is found sooner. By the
    normal limit of d, which for few images promises a little too little.

    Arguments:
        images: Number of images.
        spread: s, the standard deviation of d without any change.
        alpha: Level at which one cell is tested: that of the sweep, divided by the number of tests.
        margin: Drop that is tolerated.
        power: Share of the runs in which it must be found.
    """
    t, z = float(stats.t.isf(alpha, max(images - 1, 1))), float(stats.norm.ppf(power))
    w = t * t / 2

    def slack(delta: float) -> float:
        variance = spread**2 + delta * (1 - delta)
        joined = images * variance + w * images / (images + w) * (1 + delta) ** 2
        return images * (delta - margin) - t * math.sqrt(joined) - z * math.sqrt(images * variance)

    return float(optimize.brentq(slack, margin, 1.0, xtol=1e-6)) if slack(1.0) > 0 else None


@dataclass(frozen=True)
class PairedTest:
    """A one-sided comparison of two cells on the same images.

    Arguments:
        first: Avg of the first cell on the shared images.
        second: Avg of the second.
        p: Probability, if the two were alike on every image, of a difference at least as large.
        n: Number of shared images.
        changed: Number of images on which the two differ.
    """

    first: float
    second: float
    p: float
    n: int
    changed: int

    @property
    def difference(self) -> float:
        """First minus second."""
        return self.first - self.second

    def among(self, candidates: int) -> PairedTest:
        """The same with p multiplied by the number of comparisons it was chosen from (Bonferroni)."""
        return replace(self, p=min(1.0, self.p * max(candidates, 1)))


_LONGEST_GRID = 1 << 20


def paired_test(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> PairedTest:
    r"""Test whether the first cell is more accurate than the second on the same images.

    With :math:`d_i` the difference of the shares of right draws of image i, the statistic is :math:`\sum_i d_i` and
    the reference its law when every :math:`d_i` keeps its size and takes either sign with probability 1/2: what
    holds if swapping the two cells on an image changes nothing. p is :math:`P(\sum_i s_i d_i \ge \sum_i d_i)`.

    Shares are multiples of 1/L, with L the least common multiple of the numbers of draws, so that the sum is an
    integer in units of 1/L and its law is exact: its characteristic function is :math:`\prod_i \cos(k_i t)`,
    summed back by one FFT. With one draw each, all :math:`|k_i|` are 0 or 1 and the test is McNemar's exact test of
    the discordant images (Psychometrika 1947), taken from the binomial law, whose tail is good to every digit; the
    FFT's is good to about 1e-13, and p is never given below that. A t test would be as good for many images, but not
    where few of them differ, the usual case here. Grids of more than 2^20 points fall back on the normal limit.

    Arguments:
        first: Right answers, shape (n, N).
        second: Right answers on the same images, shape (n, M).

    Raises:
        InvalidInput: No image, or not the same number of them.
    """
    if len(first) != len(second) or len(first) == 0:
        raise InvalidInput(f"a paired test needs the same images in both, there are {len(first)} and {len(second)}")
    unit = math.lcm(first.shape[1], second.shape[1])
    k = first.sum(1) * (unit // first.shape[1]) - second.sum(1) * (unit // second.shape[1])
    total, sizes = int(k.sum()), np.abs(k[k != 0])
    p = 1.0 if total <= -int(sizes.sum()) else _flipped_tail(total, sizes)
    return PairedTest(float(first.mean()), float(second.mean()), p, len(first), len(sizes))


def _flipped_tail(total: int, sizes: npt.NDArray[np.int64]) -> float:
    """P(sum of sizes with random signs >= total)."""
    size, count = np.unique(sizes, return_counts=True)
    if len(size) == 1:
        n, more = int(count[0]), (total // int(size[0]) + int(count[0])) // 2
        return float(stats.binom.sf(more - 1, n, 0.5))
    span = int(sizes.sum())
    points = fft.next_fast_len(2 * span + 1, real=True)
    if points > _LONGEST_GRID:
        # Half a step back, since the sums are two steps apart.
        return float(stats.norm.sf((total - 1) / math.sqrt(float((sizes.astype(np.float64) ** 2).sum()))))
    t = 2 * np.pi * np.arange(points // 2 + 1) / points
    law = fft.irfft(np.prod(np.cos(np.outer(size, t)) ** count[:, None], axis=0), points)
    tail = law[total : span + 1] if total >= 0 else np.concatenate([law[total:], law[: span + 1]])
    return float(np.clip(tail.sum(), 1e-13, 1.0))
