r"""GDMP (Wang et al., "Guided diffusion model for adversarial purification", arXiv 2205.14969).

Rounds of: noise to t*, then steps with the mean

.. math:: \mu_\theta(z_t) + \Sigma_t\, S_t\, \nabla_{z_t} \mathrm{Sim}(z_t, z_{adv,t}), \qquad
          z_{adv,t} = \sqrt{\bar\alpha_t}\,(2x-1) + \sqrt{1-\bar\alpha_t}\,n_t

where x is the input of the first round in all rounds, n_t is fresh in every step, Sim is -MSE or SSIM, and

.. math:: S_t = \frac{3\, s\, \sqrt{1-\bar\alpha_t}}{(2\,\mathrm{ptb}/255)\,\sqrt{\bar\alpha_t}}

(``scale_rule: budget``; ``constant`` is :math:`S_t = s`). ``ptb`` is the perturbation budget that the defence
assumes, in 1/255: **this defence knows the attacker's eps**, and its rows record that.

**B_ref.** The authors' code averages Sim over the whole batch, so that the guidance of an image is divided by the
batch size: with s = 60000, ptb = 8 and variance ``large`` the pull on an image, summed over 36 steps, is 0.026 in
batches of 100 and 2.61 alone. Here Sim is a mean over the pixels of one image, divided by the declared constant
``b_ref``.

Published settings: CIFAR-10 t* = 36, 4 rounds, s = 60000 (MSE) or 70000 (SSIM), variance large, ten draws.

**Two details of the authors' code** are defaults. It noises to ``alphas_cumprod[36]``, the level after 37 steps, and
reverses from that after 36 (``forward_offset: 1``). Its last step, which has no noise, is guided with the posterior
variance of the step before and not with beta (``last_gain: posterior``; 1.8 times less on all levels of
``linear-1000``).
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from defense.errors import InvalidInput
from defense.guidance import Guidance, Moment, distance
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.reverse import StandardReverseConfig
from defense.samplers import Ancestral, LastGain, Sampler, Variance
from defense.schedules import Schedule

__all__ = ["GDMPConfig", "SimilarityGuidance"]


class SimilarityGuidance(Guidance):
    """The potential -Sim / b_ref with the scale S_t; see the module.

    Arguments:
        similarity: ``mse`` (mean over pixels, negated) or ``ssim``.
        s: The scale s.
        b_ref: Batch size that the guidance is divided by.
        ptb: Assumed budget in 1/255; None for the constant rule.
    """

    def __init__(self, similarity: Literal["mse", "ssim"], s: float, b_ref: int, ptb: float | None) -> None:
        super().__init__()
        self.similarity = similarity
        self.distance = distance(similarity)
        self.s = s
        self.b_ref = b_ref
        self.ptb = ptb

    def scale(self, t: int, schedule: Schedule) -> float:
        """S_t."""
        if self.ptb is None:
            return self.s
        abar = float(schedule.abar[t])
        return 3 * self.s * math.sqrt(1 - abar) / ((2 * self.ptb / 255) * math.sqrt(abar))

    def forward(self, moment: Moment) -> Tensor:
        """See :class:`Guidance`."""
        value = self.distance(moment.z, moment.diffused_input())
        pixels = moment.z[0].numel() if self.similarity == "mse" else 1
        return value / (pixels * self.b_ref)


@PURIFIERS.register("gdmp")
class GDMPConfig(StandardReverseConfig):
    """GDMP: rounds of DDPM guided towards the re-noised input.

    Arguments:
        rounds: Number of rounds.
        similarity: ``mse`` or ``ssim``.
        scale: s, in the paper's units.
        scale_rule: ``budget`` (the paper's S_t) or ``constant``.
        ptb: Assumed budget of the attacker in 1/255, for ``budget``.
        b_ref: Batch size of the authors' code whose effect is reproduced; 1 for none.
        forward_offset: A round noises by this many steps more than it reverses; 1 in the authors' code.
        last_gain: Factor of the guidance in the last step, of ``form: ddpm`` with ``variance: large``: ``posterior``
            (the authors' code) or its ``own`` beta.
    """

    # Rows from before there were these fields.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"forward_offset": (0,), "last_gain": ("own",)}

    purifier: Literal["gdmp"] = "gdmp"
    rounds: int = Field(default=4, ge=1)
    similarity: Literal["mse", "ssim"] = "mse"
    scale: float = Field(default=60000.0, ge=0)
    scale_rule: Literal["budget", "constant"] = "budget"
    ptb: float = Field(default=8.0, gt=0)
    b_ref: int = Field(default=100, ge=1)
    variance: Variance = "large"
    forward_offset: int = Field(default=1, ge=0)
    last_gain: LastGain = "posterior"

    @model_validator(mode="before")
    @classmethod
    def _last_gain_of_large(cls, data: Any) -> Any:
        """Other variances and forms have no choice of the last gain."""
        if not isinstance(data, dict) or "last_gain" in data:
            return data
        large = data.get("form", "ddpm") == "ddpm" and data.get("variance", "large") == "large"
        return {**data, "last_gain": "posterior" if large else "own"}

    @model_validator(mode="after")
    def _switches_fit(self) -> Self:
        if self.last_gain == "posterior" and (self.form, self.variance) != ("ddpm", "large"):
            raise InvalidInput(
                "last_gain posterior belongs to form ddpm with variance large; write `last_gain: own`."
            )
        top = self.denoiser.noise_schedule.steps
        if self.t_star + self.forward_offset > top:
            raise InvalidInput(
                f"t_star = {self.t_star} and forward_offset = {self.forward_offset} noise beyond the {top} steps of "
                f"{self.schedule!r}: write `forward_offset: 0`, or a smaller t_star."
            )
        return self

    def sampler(self, t_star: int | None = None, steps: int | None = None) -> Sampler:
        """See :class:`StandardReverseConfig`; with the forward level and the last gain."""
        schedule = self.denoiser.noise_schedule
        sampler = super().sampler(t_star, steps)
        if self.last_gain == "posterior":
            sampler = Ancestral(
                schedule, sampler.grid, variance="large", clip=self.clip_denoised, last_gain="posterior"
            )
        return sampler.noised_to(float(schedule.abar[sampler.grid[0] + self.forward_offset]))

    @property
    def guided(self) -> bool:
        """By the similarity to the input."""
        return True

    @property
    def pulls_to(self) -> str | None:
        """The input, unless the scale is 0."""
        return "the input" if self.scale > 0 else None

    @property
    def knows_eps(self) -> bool:
        """With the rule ``budget``."""
        return self.scale_rule == "budget"

    @property
    def evaluations(self) -> int:
        """Reverse steps of all rounds."""
        return self.rounds * self.steps

    def label(self) -> str:
        """``gdmp t*=36 x4``."""
        return f"gdmp {self.t_star_label()} x{self.rounds}"

    def build(self, models: Models | None = None) -> Diffusion:
        """Load the denoiser."""
        ptb = self.ptb if self.scale_rule == "budget" else None
        guidance = SimilarityGuidance(self.similarity, self.scale, self.b_ref, ptb)
        denoiser = (models or Models()).load(self.denoiser)
        return Diffusion(denoiser, [self.sampler()] * self.rounds, guidance=guidance).eval()
