r"""Noise: independent in every pixel and channel.

* gaussian: :math:`x + n`, :math:`n \sim N(0, c^2)`
* shot: :math:`k/c`, :math:`k \sim \mathrm{Poisson}(c\,x)`, whose variance is :math:`x/c`
* impulse: with probability c the value is replaced, by 0 or 1 with equal probability
* speckle: :math:`x + x\,n`, :math:`n \sim N(0, c^2)`
"""

import numpy as np

from tasks.corruptions.base import Corruption, Image, Pixels

__all__ = ["GAUSSIAN_NOISE", "IMPULSE_NOISE", "SHOT_NOISE", "SPECKLE_NOISE"]


def gaussian_noise(x: Image, std: float, rng: np.random.Generator) -> Pixels:
    """Additive normal noise."""
    return x + rng.normal(0, std, x.shape)


def shot_noise(x: Image, rate: float, rng: np.random.Generator) -> Pixels:
    """Counts of photons, ``rate`` of them for white."""
    return rng.poisson(x * rate) / rate


def impulse_noise(x: Image, share: float, rng: np.random.Generator) -> Pixels:
    """Salt and pepper in equal parts; a channel is replaced alone."""
    replaced = rng.random(x.shape) <= share
    salt = rng.random(x.shape) <= 0.5
    return np.where(replaced, salt.astype(np.float64), x)


def speckle_noise(x: Image, std: float, rng: np.random.Generator) -> Pixels:
    """Multiplicative normal noise."""
    return x + x * rng.normal(0, std, x.shape)


GAUSSIAN_NOISE = Corruption("gaussian_noise", (0.04, 0.06, 0.08, 0.09, 0.10), gaussian_noise)
SHOT_NOISE = Corruption("shot_noise", (500, 250, 100, 75, 50), shot_noise)
IMPULSE_NOISE = Corruption("impulse_noise", (0.01, 0.02, 0.03, 0.05, 0.07), impulse_noise)
SPECKLE_NOISE = Corruption("speckle_noise", (0.06, 0.10, 0.12, 0.16, 0.20), speckle_noise)
