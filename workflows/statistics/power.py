r"""The smallest difference that a test of :mod:`workflows.statistics.paired` finds in most runs.

The change is taken to be a share :math:`\delta` of images lost altogether, on top of what differs anyway, so that
the variance of d is :math:`s^2 + \delta(1-\delta)`; a change that is spread thinly over all images is found sooner.
By the normal limit of d, :math:`\delta` is found with power :math:`\Phi(z)` if

.. math:: n(\delta - m) \ge t\sqrt{n\,\mathrm{Var}(d) + \tfrac{nw}{n+w}(1+\delta)^2} + z\sqrt{n\,\mathrm{Var}(d)},
    \qquad w = t^2/2,

with n images, margin m, and t the quantile of the level. For few images that promises a little too little.
"""

import math

__all__ = ["detectable"]


def detectable(images: int, spread: float, alpha: float, margin: float, power: float = 0.8) -> float | None:
    """Return the smallest drop that the safe t test finds with this power, None if not even a drop from 1 to 0 is.

    Arguments:
        images: n, the number of images.
        spread: s, the standard deviation of d without any change.
        alpha: Level at which one cell is tested: that of the sweep, divided by the number of tests.
        margin: m, the drop that is tolerated.
        power: Share of the runs in which it must be found.
    """
    from scipy import optimize, stats  # here: they take most of a second, and a plan needs neither

    t, z = float(stats.t.isf(alpha, max(images - 1, 1))), float(stats.norm.ppf(power))
    w = t * t / 2

    def slack(delta: float) -> float:
        variance = spread**2 + delta * (1 - delta)
        joined = images * variance + w * images / (images + w) * (1 + delta) ** 2
        return images * (delta - margin) - t * math.sqrt(joined) - z * math.sqrt(images * variance)

    return float(optimize.brentq(slack, margin, 1.0, xtol=1e-6)) if slack(1.0) > 0 else None
