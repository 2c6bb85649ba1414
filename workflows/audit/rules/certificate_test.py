r"""The test of certificates against draws at the certified images, or within their radii.

A certificate of radius R at noise sigma bounds the label's probability under that noise, at a point of distance r, by

.. math:: p(x + \delta) \ge \Phi\left(\frac{R - r}{\sigma}\right), \qquad r = \|\delta\|_2,

since :math:`\sigma\Phi^{-1}(p)` changes by at most r over a distance r (Salman et al., arXiv 1906.04584); at r = R it
is 1/2, the certificate itself. So the number k of right answers among N fresh draws at :math:`x + \delta` is no
smaller than Bin(N, q), with q the right-hand side, and few of them refute the certificate:

* image by image, :math:`P(\mathrm{Bin}(N, q_i) \le k_i)`, by Holm's procedure (Scand. J. Stat. 1979);
* all together: the sum of independent answers whose probabilities have the mean :math:`\bar q` is below
  :math:`n N\bar q - 1` no more often than that of Bin(nN, :math:`\bar q`) (Hoeffding, Ann. Math. Stat. 1956).

A certificate may be wrong with probability alpha. So of n certificates up to ``allowed`` may be, the upper quantile
of Bin(n, alpha): the image-by-image test finds a defect where it refutes more than that, and in the sum as many
images, those with fewest right draws, count as right on all. The three errors, quantile and tests, share the level.

A paired comparison of certified accuracy with the accuracy of a vote would be no test: of an image of probability
0.55, which many samples certify, three draws are wrong by majority four times in ten.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = ["CertificateTest", "certificate_test"]

Floats = npt.NDArray[np.float64]

_PARTS = 3
"""The quantile of wrong certificates and the two tests share the level."""


@dataclass(frozen=True)
class CertificateTest:
    """Certificates against draws.

    Arguments:
        certificates: Number of certificates, those that bound nothing at the judged point included.
        allowed: How many of them may be wrong at the level.
        covered: How many bound the probability of a right draw at the point that was judged.
        refuted: How many of these the draws refute, each by itself.
        worst: Place of the most clearly refuted one among the covered.
        worst_p: Its p, times the number of tests.
        together: p of all draws together, times the number of tests.
        mean_bound: Mean of the certified lower bounds.
        failed: Whether more is refuted than chance explains.
    """

    certificates: int
    allowed: int
    covered: int
    refuted: int
    worst: int
    worst_p: float
    together: float
    mean_bound: float
    failed: bool


def certificate_test(
    right: npt.NDArray[np.int64], draws: int, q: Floats, certificates: int, alpha: float, level: float, tests: int = 1
) -> CertificateTest:
    """Test certified lower bounds on draws.

    Arguments:
        right: Number of right draws of each covered image, shape (images,), one image or more.
        draws: N, independent of each other and of the certificates.
        q: Certified lower bounds of the probability of a right draw, shape (images,).
        certificates: Number of certificates from which the covered ones were selected by their outcome.
        alpha: Error probability of each certificate.
        level: Probability, at most, of ``failed`` in any of ``tests`` tests if all certificates are sound.
        tests: How many judgements the same certificates are tested on (Bonferroni).
    """
    images, part = len(right), level / _PARTS
    allowed = int(stats.binom.isf(part, certificates, alpha))
    alone = np.asarray(stats.binom.cdf(right, draws, q))
    stepwise = np.sort(alone) * np.arange(images, 0, -1) * tests > part
    refuted = int(stepwise.argmax()) if stepwise.any() else images
    worst = int(alone.argmin())

    forgiven = np.sort(right)
    forgiven[:allowed] = draws
    total, mean = int(forgiven.sum()), float(q.mean())
    tail = float(stats.binom.cdf(total, draws * images, mean)) if total <= draws * images * mean - 1 else 1.0
    together = min(1.0, _PARTS * tests * tail)
    return CertificateTest(
        certificates=certificates,
        allowed=allowed,
        covered=images,
        refuted=refuted,
        worst=worst,
        worst_p=min(1.0, _PARTS * tests * images * float(alone[worst])),
        together=together,
        mean_bound=mean,
        failed=refuted > allowed or together < level,
    )
