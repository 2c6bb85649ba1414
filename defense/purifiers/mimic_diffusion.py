r"""MimicDiffusion (CVPR 2024), from the public code.

DDPM from pure noise, in which the steps in the middle are guided towards the input by an l_1 distance:

.. math:: z_T \sim N(0, I), \qquad
          z_s = \sqrt{\bar\alpha_s}\,\hat z_0 + c_1 n + c_2\,\epsilon_\theta - g, \qquad
          g = \rho\sqrt{\bar\alpha_t}\,\nabla_{z_t}(m_1 + m_2)
            = \frac{2 \rho}{H W\, b}\,\mathrm{sign}(\hat z_0 - (2x-1))

with :math:`\rho` = 3000 and :math:`m_1` the l_1 norm over channels, mean over pixels and over the batch, which the
declared ``b_ref`` stands for (16 in their script). :math:`m_2`, their "super-resolution guidance", is the same of
both images enlarged four times by repetition of pixels, so that it *is* :math:`m_1`: together a factor 2. Their
gradient leaves :math:`\epsilon_\theta` out, so that only the sign is left.

**The derivative is zero.** All that the output knows of x comes through signs: almost everywhere the defence has no
gradient, whatever network is in it. No attack by its true gradient can succeed. ``exact`` therefore is
straight-through here, with the sign's derivative that of the identity; ``soft`` takes that of tanh(d / 0.1). Read
figures of gradient attacks on it together with those of attacks by scores.

Settings for CIFAR-10: T = 1000 in 100 steps, guided in steps 21 to 89, which are levels 790 to 110 (one stored
version of the code guides all of them), one draw. Published attacks detach both guidances, the only path of x.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from defense.corrections import Correction, Estimate
from defense.denoisers.network import as_tuple
from defense.errors import InvalidInput
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.reverse import SoftGuidedConfig
from defense.purifiers.soft import with_gradient_of
from defense.samplers import DDIM, time_grid

__all__ = ["MimicDiffusionConfig", "SignPull"]

_WIDTH = 0.1


class SignPull(Correction):
    """The guidance, as a change of the predicted clean image: ``g / sqrt(abar_s)``; see the module.

    Arguments:
        scale: rho.
        b_ref: b.
        levels: Lowest and highest level at which steps are guided.
        soft: Differentiate tanh instead of the identity for the sign.
    """

    def __init__(self, scale: float, b_ref: int, levels: tuple[int, int], *, soft: bool = False) -> None:
        super().__init__()
        self.scale, self.b_ref, self.levels, self.soft = scale, b_ref, levels, soft

    def softened(self) -> SignPull:
        """Return the pull with the gradient of tanh."""
        return SignPull(self.scale, self.b_ref, self.levels, soft=True)

    def forward(self, estimate: Estimate) -> Tensor:
        """See :class:`Correction`."""
        if not self.levels[0] <= estimate.t <= self.levels[1]:
            return estimate.z0
        apart = estimate.z0 - (2 * estimate.x - 1)
        sign = apart.detach().sign()
        if estimate.guidance_path and apart.requires_grad:
            sign = with_gradient_of(sign, torch.tanh(apart / _WIDTH) if self.soft else apart)
        pixels = apart.shape[-1] * apart.shape[-2]
        return estimate.z0 - 2 * self.scale / (pixels * self.b_ref * math.sqrt(estimate.abar_after)) * sign


@PURIFIERS.register("mimic-diffusion")
class MimicDiffusionConfig(SoftGuidedConfig):
    """MimicDiffusion: generation from noise, guided towards the input by an l_1 distance.

    Arguments:
        steps: Reverse steps.
        scale: rho.
        b_ref: Batch size of the authors' code whose effect is reproduced; 1 for none.
        guided_levels: Lowest and highest level at which steps are guided.
    """

    default_level = "noise"
    purifier: Literal["mimic-diffusion"] = "mimic-diffusion"
    steps: int = Field(default=100, ge=1)
    scale: float = Field(default=3000.0, ge=0)
    b_ref: int = Field(default=16, ge=1)
    guided_levels: Annotated[tuple[int, int], BeforeValidator(as_tuple)] = (110, 790)

    @model_validator(mode="after")
    def _some_step_is_guided(self) -> Self:
        low, high = self.guided_levels
        if not any(low <= t <= high for t in time_grid(self.t_star, self.steps)[:-1]):
            raise InvalidInput(
                f"guided_levels {low} to {high} hold no step of t* = {self.t_star} in {self.steps} steps: nothing of "
                "the image would enter. Write a wider interval, the lowest level first.",
                keys=("guided_levels",),
            )
        return self

    @property
    def differentiable(self) -> bool:
        """False: its derivative is zero almost everywhere, and the exact modes are straight-through."""
        return False

    @property
    def pulls_to(self) -> str | None:
        """The input, unless the scale is 0."""
        return "the input" if self.scale > 0 else None

    def label(self) -> str:
        """``mimic-diffusion t*=1000 in 100 steps b=16``."""
        return f"mimic-diffusion t*={self.t_star} in {self.steps} steps b={self.b_ref}"

    def build(self, models: Models | None = None) -> Diffusion:
        """Load the denoiser."""
        sampler = DDIM(
            self.denoiser.noise_schedule, time_grid(self.t_star, self.steps), eta=1.0, clip=self.clip_denoised
        )
        pull = SignPull(self.scale, self.b_ref, self.guided_levels)
        denoiser = (models or Models()).load(self.denoiser)
        return Diffusion(denoiser, [sampler], correction=pull, from_noise=True).eval()
