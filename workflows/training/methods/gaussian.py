r"""Training on noised images, and plain training as its case without noise.

.. math:: \min_\theta\ \mathbb E\ \mathrm{CE}(f_\theta(x + \sigma n), y), \qquad n \sim \mathcal N(0, I)

Cohen et al., "Certified adversarial robustness via randomized smoothing", arXiv 1902.02918, section 3.3 and
appendix F. The noised image is not clipped to [0, 1]: the certificate's noise is not.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from workflows.training.methods.base import METHODS, Method

__all__ = ["Gaussian", "Standard"]


def _noised(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=generator).to(x)


@METHODS.register("standard")
class Standard(Method):
    """Cross-entropy on the images as they are."""

    method: Literal["standard"] = "standard"

    def loss(
        self, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, step: int, smoothing: float = 0.0
    ) -> Tensor:
        """See :class:`Method`."""
        # Noise of size 0 and not none: batches and augmentation are then those of training with noise and the same
        # seed, and so is the memory layout, on which the last bits of a convolution depend.
        loss: Tensor = F.cross_entropy(net(_noised(x, 0.0, generator)), y, label_smoothing=smoothing)
        return loss


@METHODS.register("gaussian")
class Gaussian(Method):
    """Cross-entropy on images with Gaussian noise.

    Arguments:
        noise: Its standard deviation, units of [0, 1] pixels.
    """

    method: Literal["gaussian"] = "gaussian"
    noise: float = Field(gt=0)

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise."""
        return self.noise

    def loss(
        self, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, step: int, smoothing: float = 0.0
    ) -> Tensor:
        """See :class:`Method`."""
        x = _noised(x, self.noise, generator)
        loss: Tensor = F.cross_entropy(net(x), y, label_smoothing=smoothing)
        return loss
