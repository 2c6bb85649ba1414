r"""ADBM: a bridge from noised adversarial images to clean ones (Li et al., ICLR 2025, arXiv 2408.00315).

With :math:`\delta` an adversarial perturbation (units of z in [-1, 1]), a = abar(t) and :math:`a_T` that of the level
from which will be purified, the network is trained on

.. math:: z = \sqrt a\,z_0 + \sqrt{1-a}\,n + \delta\,\frac{a_T (1-a)}{(1-a_T)\sqrt a}, \qquad
          \min\ \left\lVert \epsilon_\theta(z, t) - n
          - \delta\,\frac{a_T \sqrt{1/a - 1}}{1-a_T} \right\rVert^2 .

At t = T the image is the noised adversarial one, at t = 0 the clean one, and the target inverts it to the clean one
exactly. T is drawn for each batch between ``t_low`` and ``t_high``, t below it for each image. The perturbation is
made against a classifier of the predicted clean image, with t and n fixed: ``inner_steps`` sign steps of size eps
from a uniform start, within eps. Purify with DDIM in five steps.
"""

import math
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from defense.errors import InvalidInput
from defense.levels import factor, root
from workflows.training.objectives.base import OBJECTIVES, Denoising, GuidedLoss

__all__ = ["AdversarialBridge", "adbm_coefficients"]


def adbm_coefficients(abar: Any, abar_top: Any) -> tuple[Any, Any]:
    """Return what delta is multiplied by in the state and in the target; numbers, or tensors of one an image."""
    state = abar_top * (1 - abar) / ((1 - abar_top) * root(abar))
    target = abar_top * root(1 / abar - 1) / (1 - abar_top)
    return state, target


@OBJECTIVES.register("adbm")
class AdversarialBridge(GuidedLoss):
    """ADBM.

    Arguments:
        eps: Budget of the perturbation, l_inf, units of [0, 1] pixels.
        inner_steps: Sign steps.
        t_low: Least T, in levels of the schedule.
        t_high: Largest T.
    """

    objective: Literal["adbm"] = "adbm"
    eps: float = Field(gt=0)
    inner_steps: int = Field(default=3, ge=1)
    t_low: int = Field(default=100, ge=1)
    t_high: int = Field(default=200, ge=1)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.t_low > self.t_high:
            raise InvalidInput(f"t_low = {self.t_low} is above t_high = {self.t_high}.")
        return self

    def loss(self, batch: Denoising) -> Tensor:
        """See the module."""
        x, guide = 2 * batch.x - 1, batch.guide
        assert guide is not None
        share = float(torch.rand((), generator=batch.generator))
        top = self.t_low + math.floor(share * (self.t_high - self.t_low + 1))
        t = (batch.uniform() * top).long() + 1
        a, a_top = batch.abar(t), batch.abar(torch.full_like(t, top))
        in_state, in_target = adbm_coefficients(a, a_top)
        noise, labels = batch.normal(), (t - 1).to(x.device)

        def state(delta: Tensor) -> Tensor:
            noised: Tensor = factor(root(a), x) * x + factor(root(1 - a), x) * noise + factor(in_state, x) * delta
            return noised

        radius = 2 * self.eps
        delta = radius * (2 * torch.rand(x.shape, generator=batch.generator).to(x) - 1)
        for _ in range(self.inner_steps):
            delta = delta.detach().requires_grad_()
            z = state(delta)
            clean = (z - factor(root(1 - a), x) * batch.ask(z, labels)) / factor(root(a), x)
            (slope,) = torch.autograd.grad(F.cross_entropy(guide((clean + 1) / 2), batch.y), delta)
            delta = (delta + radius * slope.sign()).clamp(-radius, radius).detach()
        return F.mse_loss(batch.ask(state(delta), labels), noise + factor(in_target, x) * delta)
