r"""One-shot denoising (Carlini et al., "(Certified!!) Adversarial robustness for free!", arXiv 2206.10550).

.. math:: D(x) = \tfrac12\left(\mathrm{clamp}\left(\hat z_0(z)\right) + 1\right), \qquad
          z = \sqrt{\bar\alpha_t}\,(2x-1) + \sqrt{1-\bar\alpha_t}\,\epsilon

with t the smallest level whose sigma_eq is at least the smoothing noise sigma: the noise of the forward process *is*
the smoothing noise, rescaled. As a defence by itself it is DiffPure with a single reverse step.
"""

from typing import Literal

from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.reverse import ReverseConfig
from defense.samplers import DDIM

__all__ = ["OneShotConfig"]


@PURIFIERS.register("one-shot")
class OneShotConfig(ReverseConfig):
    """One-shot denoising: noise to t*, one denoiser call."""

    purifier: Literal["one-shot"] = "one-shot"

    @property
    def evaluations(self) -> int:
        """One."""
        return 1

    def label(self) -> str:
        """``one-shot t*=145``."""
        return f"one-shot t*={self.t_star}"

    def build(self, models: Models | None = None) -> Diffusion:
        """Load the denoiser."""
        sampler = DDIM(self.denoiser.noise_schedule, [self.t_star, 0], clip=self.clip_denoised)
        return Diffusion((models or Models()).load(self.denoiser), [sampler]).eval()
