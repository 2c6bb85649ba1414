r"""MACER: training for a large certified radius, without attacks.

.. math::
    \bar p_\beta(c|x) &= \tfrac1k \textstyle\sum_j \mathrm{softmax}_c\left(\beta f_\theta(x + \sigma n_j)\right) \\
    \xi(x) &= \Phi^{-1}\left(\bar p_\beta(y|x)\right) - \Phi^{-1}\left(\max_{c \ne y} \bar p_\beta(c|x)\right) \\
    L &= \mathbb E\left[-\log \bar p_1(y|x) + \lambda \tfrac{\sigma}{2}\, \max(\gamma - \xi(x), 0)\,
         \mathbf 1\{\bar p_\beta \text{ is largest at } y\}\right]

Zhai et al., "MACER: attack-free and scalable robust training via maximizing certified radius", arXiv 2001.02378,
section 4: the soft smoothed classifier with inverse temperature beta makes the radius :math:`\sigma \xi / 2` of Cohen
et al. differentiable; only images that the smoothed classifier gets right have a radius to enlarge, and the hinge
stops where it is large enough. The classification loss takes the soft smoothed classifier at temperature 1.

Probabilities are kept 1e-6 away from 0 and 1, where the inverse of :math:`\Phi` is infinite; that is a margin of 9.5,
past the usual hinge. Batch norm sees all k noised copies of a batch together.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workflows.training.methods.base import METHODS, Method

__all__ = ["Macer", "macer_loss", "margin"]

_TINY = 1e-6


def margin(probabilities: Tensor, y: Tensor) -> Tensor:
    """``Phi^-1(p_y) - Phi^-1(max_{c != y} p_c)``, shape (B,), of probabilities, shape (B, classes)."""
    right = probabilities.gather(1, y[:, None]).squeeze(1)
    runner_up = probabilities.scatter(1, y[:, None], -1.0).amax(1)
    inverse = torch.special.ndtri
    difference: Tensor = inverse(right.clamp(_TINY, 1 - _TINY)) - inverse(runner_up.clamp(_TINY, 1 - _TINY))
    return difference


def macer_loss(logits: Tensor, y: Tensor, sigma: float, weight: float, gamma: float, beta: float) -> Tensor:
    """Return the module's L of logits at noised copies, shape (B, k, classes); a scalar."""
    smooth = logits.softmax(2).mean(1)
    classification = -smooth.gather(1, y[:, None]).clamp_min(1e-10).log().mean()
    xi = margin((beta * logits).softmax(2).mean(1), y)
    # The smoothed classifier is right where its margin is positive.
    hinge = torch.where(xi > 0, (gamma - xi).relu(), 0.0)
    return classification + weight * sigma / 2 * hinge.mean()


@METHODS.register("macer")
class Macer(Method):
    """Classification loss and certified-radius hinge of the soft smoothed classifier.

    Arguments:
        noise: sigma, standard deviation of the noise, units of [0, 1] pixels.
        samples: k, noised copies of each image.
        weight: lambda, weight of the radius.
        gamma: Hinge: margins above it are not enlarged.
        beta: Inverse temperature of the soft smoothed classifier in the radius.
    """

    hard_labels: ClassVar[bool] = True
    method: Literal["macer"] = "macer"
    noise: float = Field(gt=0)
    samples: int = Field(default=16, ge=1)
    weight: float = Field(default=12.0, ge=0)
    gamma: float = Field(default=8.0, gt=0)
    beta: float = Field(default=16.0, gt=0)

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise."""
        return self.noise

    def loss(
        self, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, step: int, smoothing: float = 0.0
    ) -> Tensor:
        """See :class:`Method`."""
        many = x.repeat_interleave(self.samples, 0)
        many = many + self.noise * torch.randn(many.shape, generator=generator).to(many)
        logits = net(many).float().unflatten(0, (len(x), self.samples))
        return macer_loss(logits, y, self.noise, self.weight, self.gamma, self.beta)
