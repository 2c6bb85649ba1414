r"""DensePure (Xiao et al., "DensePure: understanding diffusion models towards adversarial robustness", ICLR 2023).

For a smoothing sample :math:`x + \sigma e`: scale by :math:`\sqrt{\bar\alpha_t}` with
:math:`\bar\alpha_t = 1/(1 + (2\sigma)^2)`, reverse in a few respaced ancestral steps with K reverse seeds, and let
the classifier's K answers vote. Forward noise is shared by the K draws of an image; they differ in the reverse noise.
So a sweep file asks for ``draws: K`` and ``aggregation: majority-vote``.

The level is the smallest one with at least the noise sigma (the authors' code takes the nearest by a closed form of
the cosine schedule, which is a fraction of a step away).
"""

from typing import Literal

from pydantic import Field

from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.reverse import StandardReverseConfig

__all__ = ["DensePureConfig"]


@PURIFIERS.register("densepure")
class DensePureConfig(StandardReverseConfig):
    """DensePure: shared forward noise, a short reverse process per draw, majority vote over draws."""

    purifier: Literal["densepure"] = "densepure"
    steps: int = Field(default=10, ge=1)

    def build(self, models: Models | None = None) -> Diffusion:
        """Load the denoiser."""
        return Diffusion((models or Models()).load(self.denoiser), [self.sampler()], shared_forward=True).eval()
