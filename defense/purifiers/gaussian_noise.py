r"""Gaussian noise.

.. math:: D(x;\omega) = x + \sigma n, \quad n \sim N(0, I)

The base of randomized smoothing (Cohen, Rosenfeld, Kolter, arXiv 1902.02918): the majority vote of a classifier
over many draws has a certified l_2 radius. Clipping to [0, 1] is off by default. As a function of the noised image it
would leave the certificate valid, but a classifier that was trained on unclipped noise then sees other images than in
training.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from defense.models import Models
from defense.purifiers.base import PURIFIERS, Purifier, PurifierConfig
from defense.randomness import Omega

__all__ = ["GaussianNoise", "GaussianNoiseConfig"]


class GaussianNoise(Purifier):
    """Adds noise from the key ``("forward", 0)``.

    Arguments:
        sigma: Standard deviation, units of [0, 1] pixels.
        clip: Clamp the noised image to [0, 1]. It zeroes the gradient of the pixels that leave the range.
    """

    def __init__(self, sigma: float, *, clip: bool = False) -> None:
        super().__init__()
        if sigma <= 0:
            raise ValueError(f"sigma = {sigma}; the standard deviation of noise is above 0")
        self.sigma = sigma
        self.clip = clip

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        """Noised images, same shape and dtype, outside [0, 1] here and there unless clipped."""
        noised = x + self.sigma * omega.normal("forward", 0, x)
        return noised.clamp(0, 1) if self.clip else noised


@PURIFIERS.register("gaussian-noise")
class GaussianNoiseConfig(PurifierConfig):
    """Gaussian noise of standard deviation sigma, in pixel units; the base of randomized smoothing.

    Arguments:
        sigma: Standard deviation, units of [0, 1] pixels.
        clip: Clamp the noised image to [0, 1].
    """

    purifier: Literal["gaussian-noise"] = "gaussian-noise"
    sigma: float = Field(gt=0)
    clip: bool = False

    def label(self) -> str:
        """``gaussian-noise s=0.25``, with ``clipped`` where it is."""
        return f"gaussian-noise s={self.sigma:g}{' clipped' if self.clip else ''}"

    def build(self, models: Models | None = None) -> GaussianNoise:
        """Return the noise; it holds no network."""
        return GaussianNoise(self.sigma, clip=self.clip).eval()
