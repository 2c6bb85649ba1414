r"""Certificates that stop early, with the same error probability: a bound that holds at every sample size at once.

**The bound.** A gambler who stakes the share :math:`\lambda \in [0, 1]` of his wealth on the selected class, at odds
that are fair if its probability is m, has after k answers in n

.. math:: W_n(m; \lambda) = \left(1 + \lambda\tfrac{1-m}{m}\right)^k (1-\lambda)^{n-k},

a martingale if p = m and a supermartingale if p < m. So is the mixture :math:`W_n(m) = \sum_i w_i W_n(m; \lambda_i)`,
and by Ville's inequality :math:`P(\exists n: W_n(p) \ge 1/\alpha) \le \alpha`. :math:`W_n` falls in m, hence

.. math:: \underline p_n = \inf\{m: W_n(m) < 1/\alpha\}

satisfies :math:`P(\exists n: \underline p_n > p) \le \alpha`: a confidence sequence (Robbins, Ann. Math. Stat. 1970;
Howard et al., Ann. Stat. 2021; betting form: Waudby-Smith and Ramdas, JRSS B 2024). The stopping rule has no part in
that. Stakes are :math:`2^{-i/2}`, i = 0..14; :math:`\lambda = 1`, which wins fastest while all answers agree, has
weight 1/4 and the others share the rest.

**The last sample.** A plan names the number n beyond which it never goes. A share ``terminal`` of alpha is kept for
Clopper-Pearson at exactly n, the rest is the sequence's; the larger of the two bounds holds at n. By the union bound
the whole has error alpha at any stopping time. That is for images near 1/2, which need all n: Clopper-Pearson at
0.3 alpha loses little against alpha, and the sequence much.

**When to stop.** With k answers in m samples, :math:`\hat p = (k+\tfrac12)/(m+1)` and r = n - m to go, the count at n
is predicted to be at most

.. math:: k^*(z) = \min\left(k + r,\ k + r\hat p + z\sqrt{r\hat p(1-\hat p)(1 + r/m)}\right).

* Stop if the radius now is at least (1 - ``tolerance``) times that of a fixed-n certificate with
  :math:`k^*` of z = 1.28 (a chance of 90 % that it is not more).
* Stop, and abstain, if a fixed-n certificate would abstain even with :math:`k^*` of z = 3.
* Stop at n.

Every certificate is a function of k and the number of samples at which it stopped, and of nothing between.

**What it saves** depends on the images. On the probabilities behind the public CIFAR-10 certificates of Cohen et al.
(sigma 0.25, 0.5, 1; 1500 images, abstentions spread over 0.3 to 0.5) it takes 37, 30 and 30 % of n = 100,000 samples,
with the same class for 99.8 % of images, an average radius 3.6 % smaller, and nine in ten radii within 5 %. Of
n = 10,000 it takes 72, 65 and 59 %: where all answers agree, even a fixed-n test needs 58 % of them (47 % of 100,000)
to come within 5 % of the ceiling.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, xlog1py

from defense.certify.bounds import (
    Floats,
    check_probability,
    check_sigma,
    checked_counts,
    lower_bound,
    radius,
    smallest_k,
)
from defense.certify.certificate import ABSTAIN, Certificate, Counts, selected_class
from defense.errors import InvalidInput

__all__ = ["SequentialPlan", "sequence_lower_bound"]

_STAKES = 2.0 ** -(np.arange(15) / 2)
_LOG_WEIGHTS = np.log(np.r_[0.25, np.full(14, 0.75 / 14)])
_BISECTIONS = 50


def sequence_lower_bound(k: npt.ArrayLike, n: npt.ArrayLike, alpha: float) -> Floats:
    """Lower bound of a probability after each of any number of looks: all of them hold with probability 1 - alpha.

    Arguments:
        k: Answers of the class among the first ``n`` samples, any shape.
        n: Samples so far, broadcast against ``k``.
        alpha: Probability that the bound is ever above the truth, at most.

    Returns:
        Bounds in [0, 1).

    Raises:
        InvalidInput: Counts that do not fit, or ``alpha`` outside (0, 1).
    """
    check_probability(alpha, "alpha")
    k, n = checked_counts(k, n)
    lost = _LOG_WEIGHTS + xlog1py((n - k)[..., None], -_STAKES)
    low, high = np.zeros_like(k), np.ones_like(k)
    for _ in range(_BISECTIONS):
        m = (low + high) / 2
        wealth = logsumexp(lost + k[..., None] * np.log1p(_STAKES * ((1 - m) / m)[..., None]), axis=-1)
        # The bracket's lower end is returned: what is rejected is rejected, rounding of the bisection included.
        rejected = wealth >= -math.log(alpha)
        low, high = np.where(rejected, m, low), np.where(rejected, high, m)
    return low


@dataclass(frozen=True)
class SequentialPlan:
    """How far a sequential certificate goes, and when it stops; see the module.

    Arguments:
        n: Estimation samples at most: those of the fixed-n certificate that it stands in for.
        alpha: Error probability of the whole.
        tolerance: Part of the fixed-n radius that may be given up.
        terminal: Share of alpha kept for the bound at ``n``.
        optimism: z of the prediction for the radius.
        quitting: z of the prediction for abstention.

    Raises:
        InvalidInput: A parameter out of range, or an ``n`` that can certify nothing.
    """

    n: int = 100_000
    alpha: float = 0.001
    tolerance: float = 0.05
    terminal: float = 0.3
    optimism: float = 1.28
    quitting: float = 3.0

    def __post_init__(self) -> None:
        for name in ("alpha", "tolerance", "terminal"):
            check_probability(getattr(self, name), name)
        if not min(self.optimism, self.quitting) >= 0:
            raise InvalidInput("optimism and quitting count standard deviations: 0 or more.")
        smallest_k(self.n, self.terminal * self.alpha)

    def looks(self, batch: int, growth: float = 1.05) -> tuple[int, ...]:
        """Sample sizes at which to ask :meth:`done`: multiples of ``batch``, growing by ``growth``, then ``n``.

        Raises:
            InvalidInput: A batch below 1, or a growth not above 1.
        """
        if batch < 1 or not growth > 1:
            raise InvalidInput(f"looks every {batch} samples growing by {growth}: at least 1, and above 1.")
        sizes, size = [], max(self.n / 200, 1.0)
        while size < self.n:
            sizes.append(math.ceil(size / batch) * batch)
            size = max(size * growth, sizes[-1] + 1)
        return (*(s for s in sizes if s < self.n), self.n)

    def lower_bound(self, k: npt.ArrayLike, m: npt.ArrayLike) -> Floats:
        """Return the bound after ``m`` samples, valid at any stopping time up to ``n``.

        Arguments:
            k: Answers of the selected class, any shape.
            m: Samples so far, at most ``n``.

        Raises:
            InvalidInput: Counts that do not fit, or more samples than planned.
        """
        k, m = checked_counts(k, m)
        if (m > self.n).any():
            raise InvalidInput(f"{int(m.max())} samples, but the plan and its bound end at n = {self.n}.")
        sequence = sequence_lower_bound(k, m, (1 - self.terminal) * self.alpha)
        last = lower_bound(np.minimum(k, self.n), self.n, self.terminal * self.alpha)
        return np.where(m == self.n, np.maximum(sequence, last), sequence)

    def done(self, k: npt.ArrayLike, m: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return whether to stop after ``m`` samples. See :meth:`lower_bound`."""
        k, m = checked_counts(k, m)
        now = radius(self.lower_bound(k, m), 1.0)
        hoped = radius(lower_bound(self._predicted(k, m, self.optimism), self.n, self.alpha), 1.0)
        good = (now > 0) & (now >= (1 - self.tolerance) * hoped)
        hopeless = self._predicted(k, m, self.quitting) < smallest_k(self.n, self.alpha)
        stop: npt.NDArray[np.bool_] = good | hopeless | (m == self.n)
        return stop

    def _predicted(self, k: Floats, m: Floats, z: float) -> Floats:
        """Return the count at ``n`` that is exceeded with the chance of a normal above ``z``, roughly."""
        r, p = self.n - m, (k + 0.5) / (m + 1)
        return np.floor(np.minimum(k + r, k + r * p + z * np.sqrt(r * p * (1 - p) * (1 + r / m))))

    def certify(self, counts0: Counts, counts: Counts, sigma: float) -> Certificate:
        """Return the certificate after the samples so far, by the one-sided rule, wherever one stops.

        Arguments:
            counts0: Selection samples.
            counts: Estimation samples 0 to m - 1, without a gap: which of them count must not depend on their
                answers.
            sigma: Standard deviation of the noise, units of [0, 1] pixels.

        Raises:
            InvalidInput: Counts that do not belong together, with a gap, or beyond ``n``; ``sigma`` out of range.
        """
        check_sigma(sigma)
        chosen = selected_class(counts0, counts)
        total = counts.total
        if counts.samples != ((0, total),):
            raise InvalidInput(
                f"image {counts.image_id}: a sequential certificate takes its samples in order from 0, these are "
                f"{counts.samples}."
            )
        p = float(self.lower_bound(counts.per_class[chosen], total))
        far = float(radius(p, sigma))
        certified = p > 0.5
        return Certificate(
            chosen if certified else ABSTAIN, far, p, 1 - p, total, self.alpha, sigma, "one-sided", "sequential"
        )
