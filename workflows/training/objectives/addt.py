r"""ADDT: adversarial denoising diffusion training with rank-based Gaussian mapping (Liu et al., arXiv 2404.14309).

.. math:: n' = \sqrt{1-r_t^2}\,n + r_t\,\delta, \qquad
          r_t = \mathrm{clamp}\left(0.03 \sqrt{\bar\alpha_t/(1-\bar\alpha_t)},\ 0,\ 0.3\right), \qquad
          \min\ \lVert \epsilon_\theta(\sqrt{\bar\alpha_t}\,z_0 + \sqrt{1-\bar\alpha_t}\,n',\ t) - n' \rVert^2 .

The perturbation :math:`\delta` is made to look like noise: in ``inner_steps`` steps the gradient of the classifier's
loss at the predicted clean image is accumulated, each with fresh n, and :math:`\delta` becomes fresh standard normal
numbers in the order of that sum, for each image and channel.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from defense.levels import factor, root
from workflows.training.objectives.base import OBJECTIVES, Denoising, GuidedLoss

__all__ = ["AdversarialDenoising", "rank_mapped"]


def rank_mapped(values: Tensor, normal: Tensor) -> Tensor:
    """Return the numbers of ``normal`` in the order of ``values``, in each channel of each image.

    Arguments:
        values: Shape (B, C, H, W).
        normal: Likewise.
    """
    ranks = values.flatten(2).argsort(dim=2).argsort(dim=2)
    return normal.flatten(2).sort(dim=2).values.gather(2, ranks).view_as(values)


@OBJECTIVES.register("addt")
class AdversarialDenoising(GuidedLoss):
    """ADDT.

    Arguments:
        inner_steps: Gradients that are accumulated.
        strength: Factor of the share r of the perturbation.
        most: Largest share.
    """

    objective: Literal["addt"] = "addt"
    inner_steps: int = Field(default=5, ge=1)
    strength: float = Field(default=0.03, gt=0)
    most: float = Field(default=0.3, gt=0, le=1)

    def share(self, abar: Tensor) -> Tensor:
        """Return r_t of each image's level."""
        share: Tensor = (self.strength * root(abar / (1 - abar))).clamp(0, self.most)
        return share

    def loss(self, batch: Denoising) -> Tensor:
        """See the module."""
        x, guide = 2 * batch.x - 1, batch.guide
        assert guide is not None
        t = (batch.uniform() * batch.schedule.steps).long() + 1
        a, labels = batch.abar(t), (t - 1).to(x.device)
        share = factor(self.share(a), x)
        kept = factor(root(1 - self.share(a) ** 2), x)

        def state(noise: Tensor) -> Tensor:
            noised: Tensor = factor(root(a), x) * x + factor(root(1 - a), x) * noise
            return noised

        delta, total = batch.normal(), torch.zeros_like(x)
        for _ in range(self.inner_steps):
            delta = delta.detach().requires_grad_()
            z = state(kept * batch.normal() + share * delta)
            clean = (z - factor(root(1 - a), x) * batch.ask(z, labels)) / factor(root(a), x)
            (slope,) = torch.autograd.grad(F.cross_entropy(guide((clean + 1) / 2), batch.y), delta)
            total = total + slope
            delta = rank_mapped(total, batch.normal())
        mixed = kept * batch.normal() + share * delta
        return F.mse_loss(batch.ask(state(mixed), labels), mixed)
