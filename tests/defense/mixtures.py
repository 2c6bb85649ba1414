"""A mixture of Gaussians whose posterior is known, drawn through samplers, and the responses of methods.md 9.5."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from defense import GaussianMixtureDenoiser
from defense.samplers import DDIM, EpsModel, Sampler

Noise = Callable[[int, Tensor], Tensor]
"""``noise(t, like)``: the noise of the step that leaves level t, shaped like ``like``."""

SAMPLES = 100_000
FLOOR = 0.0016  # Wasserstein-1 between two samples of that size, methods.md 9.3


def fresh(seed: int) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return lambda t, like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def reverse(model: EpsModel, z: Tensor, sampler: Sampler, noise: Noise) -> Tensor:
    """Run a whole reverse process without guidance.

    Arguments:
        model: Noise predictor; with ``with_variance(z, t) -> (eps, v)`` if the sampler's variance is learned.
        z: State at level ``sampler.grid[0]``, shape (B, ...).
        sampler: The sampler.
        noise: Source of the per-step noise.

    Returns:
        State at level 0, shape (B, ...).
    """
    for i, t in enumerate(sampler.grid[:-1]):
        asked = sampler.asked(i)
        eps, v = model.with_variance(z, asked) if sampler.learned else (model(z, asked), None)  # type: ignore[attr-defined]
        step = sampler.transition(i, z, eps, v)
        z = step.mean
        if isinstance(step.std, Tensor) or step.std > 0:
            z = z + step.std * noise(t, z)
    return z


def no_noise(t: int, like: Tensor) -> Tensor:
    """Zero noise: with it a reverse process follows its means."""
    return torch.zeros_like(like)


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


def gaussian_slope(abar: float, variance: float) -> float:
    """E[purified | x] = k x for p0 = N(0, s2): k = a s2 / (a s2 + 1 - a), in the limit of small steps."""
    return abar * variance / (abar * variance + 1 - abar)


def gaussian_variance(abar: float, variance: float) -> float:
    """Var[purified | x] for p0 = N(0, s2): posterior variance plus the forward noise carried through."""
    total = abar * variance + 1 - abar
    return variance * (1 - abar) / total + (1 - abar) * abar * variance**2 / total**2
