r"""Corrections of p for the number of tests that were made.

Some of n tests at level alpha fire by chance more often than alpha. With :math:`p_{(1)} \le p_{(2)} \le \dots`

* **Bonferroni**: :math:`\min(1, n p)`, for one result that was chosen from n candidates;
* **Holm** (Scand. J. Stat. 1979): :math:`\max_{j \le i} \min(1, (n - j + 1)\,p_{(j)})`, for n results that all count.

Either keeps the chance of *any* false alarm at alpha, however the tests depend on each other.
"""

from collections.abc import Sequence

import numpy as np

__all__ = ["bonferroni", "holm"]


def bonferroni(p: float, candidates: int) -> float:
    """Return the p of a result that was chosen from so many candidates; below one candidate p stays as it is."""
    return min(1.0, p * max(candidates, 1))


def holm(p: Sequence[float]) -> list[float]:
    """Return the p values corrected for their number, in the order given."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in corrected]
