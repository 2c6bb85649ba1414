r"""Denoisers with a closed form, for data whose law is known.

For a mixture :math:`p_0 = \sum_k w_k N(m_k, s_k^2)` per coordinate, the noised law is
:math:`p_t = \sum_k w_k N(\sqrt{\bar\alpha} m_k,\ v_k)` with :math:`v_k = \bar\alpha s_k^2 + 1 - \bar\alpha`, and
the optimal noise prediction is

.. math:: \epsilon^*(z, t) = -\sqrt{1-\bar\alpha}\,\nabla \log p_t(z)
          = \sqrt{1-\bar\alpha} \sum_k r_k(z)\, \frac{z - \sqrt{\bar\alpha} m_k}{v_k}

with responsibilities :math:`r_k`. Every sampler, gradient and attack can be checked against them on a CPU in
seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from defense.levels import factor, root
from defense.schedules import Levels, Schedule

__all__ = ["GaussianMixtureDenoiser"]


class GaussianMixtureDenoiser:
    """Exact noise prediction for independent coordinates that follow one 1-D Gaussian mixture.

    Arguments:
        schedule: Noise schedule.
        weights: Mixture weights, summing to 1.
        means: Component means, diffusion units.
        stds: Component standard deviations.
    """

    def __init__(
        self, schedule: Schedule, weights: Sequence[float], means: Sequence[float], stds: Sequence[float]
    ) -> None:
        if not len(weights) == len(means) == len(stds) or abs(sum(weights) - 1) > 1e-9:
            raise ValueError("a mixture takes as many weights, which sum to 1, as means and stds")
        self.schedule = schedule
        self.weights = tuple(weights)
        self.means = tuple(means)
        self.stds = tuple(stds)

    @classmethod
    def gaussian(cls, schedule: Schedule, variance: float, mean: float = 0.0) -> GaussianMixtureDenoiser:
        """Return the one-component case N(mean, variance)."""
        return cls(schedule, [1.0], [mean], [math.sqrt(variance)])

    def _components(self, z: Tensor, abar: Any) -> tuple[Tensor, Tensor]:
        weight, mean, std = (
            torch.tensor(v, dtype=z.dtype, device=z.device) for v in (self.weights, self.means, self.stds)
        )
        abar = abar.unsqueeze(-1).to(z.dtype) if isinstance(abar, Tensor) else abar
        residual = z.unsqueeze(-1) - root(abar) * mean
        var = abar * std**2 + 1 - abar
        log_density = weight.log() - 0.5 * var.log() - 0.5 * residual**2 / var
        return log_density.softmax(-1), residual / var

    def __call__(self, z: Tensor, t: int) -> Tensor:
        """Noise prediction, shape of ``z``."""
        return self._eps(z, float(self.schedule.abar[t]))

    def _eps(self, z: Tensor, abar: Any) -> Tensor:
        share, pull = self._components(z, abar)
        eps: Tensor = factor(root(1 - abar), z) * (share * pull).sum(-1)
        return eps

    def at_levels(self, z: Tensor, levels: Levels) -> Tensor:
        """Noise prediction where each image has its own level, as :class:`defense.denoisers.Denoiser` gives it."""
        return self._eps(z, levels.abar) if levels.shared is None else self(z, levels.shared)

    def with_variance(self, z: Tensor, t: int) -> tuple[Tensor, None]:
        """Noise prediction without a variance output, as :class:`defense.denoisers.Denoiser` gives it."""
        return self(z, t), None

    def responsibilities(self, z: Tensor, t: int) -> Tensor:
        """Return the posterior probability of each component given ``z`` at level ``t``, shape (*z.shape, K)."""
        return self._components(z, float(self.schedule.abar[t]))[0]
