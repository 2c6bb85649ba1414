r"""Adversarial training.

.. math:: \min_\theta\ \mathbb E\ \max_{\lVert d \rVert_p \le \varepsilon} \mathrm{CE}(f_\theta(x + d), y)

Madry et al., "Towards deep learning models resistant to adversarial attacks", arXiv 1706.06083, equation 2.1. The
inner maximum is approximated by projected gradient ascent from a uniform point of the ball.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.attacks.region import Region
from workflows.training.methods.base import METHODS, RobustMethod
from workflows.training.methods.inner import evaluation_mode, maximise, uniform_start

__all__ = ["AdversarialTraining", "adversarial"]


def adversarial(method: RobustMethod, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Return images that raise the cross-entropy, inside the method's ball, shape (B, C, H, W)."""
    region = Region(x, method.norm, method.eps)
    start = uniform_start(region, generator)

    def loss(images: Tensor) -> Tensor:
        return F.cross_entropy(net(images), y, reduction="sum")

    with evaluation_mode(net):
        return maximise(loss, region, start, method.steps, method.size)


@METHODS.register("at")
class AdversarialTraining(RobustMethod):
    """Cross-entropy on adversarial images."""

    method: Literal["at"] = "at"

    def loss(
        self, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, step: int, smoothing: float = 0.0
    ) -> Tensor:
        """See :class:`Method`."""
        attacked = adversarial(self, net, x, y, generator)
        loss: Tensor = F.cross_entropy(net(attacked), y, label_smoothing=smoothing)
        return loss
