r"""Corrections: what changes the predicted clean image between the denoiser and the next state.

.. math:: z_s = \sqrt{\bar\alpha_s}\, C(\hat z_0(z_t), x) + c_1 n + c_2\,\epsilon_\theta(z_t, t)

with the factors of DDIM (:mod:`defense.samplers`) and the noise that was predicted *before* the correction. Like
guidance, a correction has no reduction over the batch, and its dependence on x is part of the defence and of its
exact gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from defense.randomness import Omega
from defense.samplers import EpsModel

__all__ = ["Correction", "Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A predicted clean image, and the step that it is of.

    Arguments:
        z0: Predicted clean image, shape (B, C, H, W), diffusion units.
        t: Level at which it was predicted.
        abar: The level's abar.
        abar_after: That of the level which the step reaches.
        x: The purifier's input, [0, 1] pixels.
        omega: Randomness.
        key: Number of the step among all steps of the purifier, for noise of its own.
        denoiser: The denoiser.
        guidance_path: If false, the correction counts as a constant in gradients.
    """

    z0: Tensor
    t: int
    abar: float
    abar_after: float
    x: Tensor
    omega: Omega
    key: int
    denoiser: EpsModel
    guidance_path: bool = True


class Correction(nn.Module, ABC):
    """Maps a predicted clean image to the one that is gone on with."""

    @abstractmethod
    def forward(self, estimate: Estimate) -> Tensor:
        """Return the clean image, shape (B, C, H, W), diffusion units."""

    def softened(self) -> Correction:
        """Return the same correction with a differentiable approximation in its backward pass; itself by default."""
        return self
