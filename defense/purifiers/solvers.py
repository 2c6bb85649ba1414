r"""Higher-order solvers of the probability flow, as reverse processes: Heun and DPM-Solver++(2M).

With :math:`x = z/\sqrt{\bar\alpha}` and :math:`\sigma = \sqrt{(1-\bar\alpha)/\bar\alpha}` the flow is
:math:`dx/d\sigma = \epsilon_\theta`, and

* ``heun`` (Karras et al., arXiv 2206.00364, algorithm 1): an Euler step, and the mean of the slopes at its ends,

  .. math:: x' = x_t + (\sigma_s - \sigma_t)\,\epsilon_\theta(x_t, t), \qquad
            x_s = x_t + \tfrac12(\sigma_s - \sigma_t)\left(\epsilon_\theta(x_t, t) + \epsilon_\theta(x', s)\right),

  the last step, to sigma = 0, by Euler: 2 N - 1 evaluations in N steps;
* ``dpm++`` (Lu et al., "DPM-Solver++", arXiv 2211.01095, algorithm 2, 2M): with
  :math:`\lambda = \tfrac12\log\frac{\bar\alpha}{1-\bar\alpha}`, :math:`h_i = \lambda_{i+1} - \lambda_i`,
  :math:`r = h_{i-1}/h_i` and the predicted images :math:`\hat z_0`,

  .. math:: D_i = \left(1 + \tfrac1{2r}\right)\hat z_0^{(i)} - \tfrac1{2r}\hat z_0^{(i-1)}, \qquad
            z_s = \sqrt{\tfrac{1-\bar\alpha_s}{1-\bar\alpha_t}}\, z_t - \sqrt{\bar\alpha_s}\,(e^{-h_i} - 1)\,D_i,

  the first step and the last one, where :math:`h = \infty`, of first order: one evaluation a step.

The state holds what the next step needs, z and for ``dpm++`` the last prediction, so that gradients go back through
the history as well. Both are deterministic: the noise of a draw is its forward noise, with the key ``("forward",
0)``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from defense.purifiers.base import IterativePurifier
from defense.randomness import Omega
from defense.samplers import EpsModel, forward_noise, predicted_z0, time_grid

__all__ = ["Solved", "Solver"]

Solver = Literal["heun", "dpm++"]


class Solved(IterativePurifier):
    """Noise to t*, then back by a solver; see the module.

    Arguments:
        denoiser: Noise predictor.
        t_star: Level that is noised to.
        steps: Number of steps.
        solver: Which one.
        clip: Clamp the predicted clean image to [-1, 1] in every step.
    """

    def __init__(self, denoiser: EpsModel, t_star: int, steps: int, *, solver: Solver, clip: bool = False) -> None:
        super().__init__()
        self.denoiser: Any = denoiser
        self.solver: Solver = solver
        self.clip = clip
        self.grid = time_grid(t_star, steps)
        self._abar = [denoiser.schedule.level(t).abar for t in self.grid]

    @property
    def length(self) -> int:
        """Steps."""
        return len(self.grid) - 1

    def surrogate(self, steps: int) -> Solved:
        """Return the same in at most ``steps`` steps."""
        fewer = min(steps, self.length)
        return Solved(self.denoiser, self.grid[0], fewer, solver=self.solver, clip=self.clip)

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        """Return the noised image; with a place for the last prediction."""
        z0 = 2 * x - 1
        z = forward_noise(z0, self._abar[0], omega.normal("forward", 0, z0))
        return z if self.solver == "heun" else torch.cat([z, torch.zeros_like(z)], dim=1)

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        """One step of the solver."""
        return self._heun(i, z) if self.solver == "heun" else self._multistep(i, z)

    def _slope(self, i: int, z: Tensor) -> Tensor:
        """The noise at the i-th level, of the clamped prediction if ``clip``."""
        eps: Tensor = self.denoiser(z, self.grid[i])
        if self.clip:
            abar = self._abar[i]
            eps = (z - math.sqrt(abar) * predicted_z0(z, eps, abar, True)) / math.sqrt(1 - abar)
        return eps

    def _heun(self, i: int, z: Tensor) -> Tensor:
        abar_t, abar_s = self._abar[i], self._abar[i + 1]
        across = math.sqrt((1 - abar_s) / abar_s) - math.sqrt((1 - abar_t) / abar_t)
        slope, x = self._slope(i, z), z / math.sqrt(abar_t)
        euler = math.sqrt(abar_s) * (x + across * slope)
        if i == self.length - 1:
            return euler
        return math.sqrt(abar_s) * (x + across * (slope + self._slope(i + 1, euler)) / 2)

    def _multistep(self, i: int, state: Tensor) -> Tensor:
        z, before = state.chunk(2, dim=1)
        abar_t, abar_s = self._abar[i], self._abar[i + 1]
        z0 = predicted_z0(z, self.denoiser(z, self.grid[i]), abar_t, self.clip)
        if i == self.length - 1:
            return torch.cat([z0, z0], dim=1)
        h = _half_log_snr(abar_s) - _half_log_snr(abar_t)
        image = z0
        if i > 0:
            r = (_half_log_snr(abar_t) - _half_log_snr(self._abar[i - 1])) / h
            image = (1 + 1 / (2 * r)) * z0 - 1 / (2 * r) * before
        after = math.sqrt((1 - abar_s) / (1 - abar_t)) * z - math.sqrt(abar_s) * math.expm1(-h) * image
        return torch.cat([after, z0], dim=1)

    def origin(self, i: int) -> int | None:
        """Return the input; None for ``dpm++``, whose states are more than an image."""
        return -1 if self.solver == "heun" else None

    def diffused(self, i: int, origin: Tensor | None, x: Tensor, omega: Omega) -> Tensor:
        """Return the input with its forward noise at the level of state ``i``; see the base class."""
        z0 = 2 * x - 1
        return forward_noise(z0, self._abar[i], omega.normal("forward", 0, z0))

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Back to [0, 1] pixels."""
        return (z[:, : x.shape[1]] + 1) / 2


def _half_log_snr(abar: float) -> float:
    return math.log(abar / (1 - abar)) / 2
