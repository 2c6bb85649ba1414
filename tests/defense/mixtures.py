"""A mixture of Gaussians whose posterior is known, drawn through samplers, and the responses of methods.md 9.5."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from defense import GaussianMixtureDenoiser
from defense.samplers import (
    DDIM,
    EpsModel,
    Noise,
    reverse,
)

SAMPLES = 100_000
FLOOR = 0.0016  # Wasserstein-1 between two samples of that size, methods.md 9.3


def fresh(seed: int) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return lambda t, like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def ddim(model: EpsModel, z: Tensor, grid: list[int], noise: Noise, eta: float = 0.0, clip: bool = False) -> Tensor:
    return reverse(model, z, DDIM(model.schedule, grid, eta=eta, clip=clip), noise)


def law(mixture: GaussianMixtureDenoiser, n: int, t: int) -> Tensor:
    """The n mid-quantiles of the mixture after t noising steps: a sample without sampling error."""
    abar = mixture.schedule.level(t).abar
    x = np.linspace(-6, 6, 1_000_001)
    cdf = np.zeros_like(x)
    for weight, mean, std in zip(mixture.weights, mixture.means, mixture.stds, strict=True):
        cdf += weight * norm.cdf(x, math.sqrt(abar) * mean, math.sqrt(abar * std**2 + 1 - abar))
    return torch.from_numpy(np.interp((np.arange(n) + 0.5) / n, cdf, x))


# methods.md 9.5: VP t, s2, k, var
TOY = [
    (0.1, 0.25, 0.683583, 0.133179),
    (0.1, 1.0, 0.896282, 0.196678),
    (0.47, 0.25, 0.028769, 0.249793),
    (0.47, 1.0, 0.105932, 0.988778),
]
