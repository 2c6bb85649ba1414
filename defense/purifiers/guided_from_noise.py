r"""Guided generation from random noise (Wu, Ye and Gu, arXiv 2206.10875).

"Guided diffusion model for adversarial purification from random noise":

.. math:: z_T \sim N(0, I), \qquad
          z_{t-1} \sim N(\mu_\theta(z_t) - s\,\Sigma_t \nabla_{z_t} D(z_t, z_{adv,t}),\ \Sigma_t), \qquad
          z_{adv,t} = \sqrt{\bar\alpha_t}\,(2x-1) + \sqrt{1-\bar\alpha_t}\,n_t

The body of the paper could not be read; this is a reconstruction from its abstract and from works that quote it. All
that the output knows of x comes through the guidance, so a gradient that does not follow the guidance path is zero:
``exact-no-guidance-path`` makes this defence look unbreakable.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from defense.guidance import Distance, Guidance, Moment
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.distance_guided import DistanceGuidedConfig
from defense.samplers import Variance
from defense.schedules import Schedule

__all__ = ["DistanceGuidance", "GuidedFromNoiseConfig"]


class DistanceGuidance(Guidance):
    """The potential ``D(z_t, z_adv,t)`` with a constant scale.

    Arguments:
        distance: D.
        s: The scale.
        network: The network in D, if any, so that it moves with the module.
    """

    def __init__(self, distance: Distance, s: float, network: nn.Module | None = None) -> None:
        super().__init__()
        self.distance = distance
        self.s = s
        self.network = network

    def scale(self, t: int, schedule: Schedule) -> float:
        """Return the scale s."""
        return self.s

    def forward(self, moment: Moment) -> Tensor:
        """See :class:`Guidance`."""
        return self.distance(moment.z, moment.diffused_input())


@PURIFIERS.register("guided-from-noise")
class GuidedFromNoiseConfig(DistanceGuidedConfig):
    """Generation from pure noise, guided towards the input at every step; t_star is T by default."""

    default_level = "noise"
    purifier: Literal["guided-from-noise"] = "guided-from-noise"
    scale: float = Field(default=10.0, ge=0)
    variance: Variance = "large"

    def build(self, models: Models | None = None) -> Diffusion:
        """Load the denoiser."""
        models = models or Models()
        distance, network = self.build_distance(models)
        guidance = DistanceGuidance(distance, self.scale, network)
        denoiser = models.load(self.denoiser)
        return Diffusion(denoiser, [self.sampler()], guidance=guidance, from_noise=True, clamp=True).eval()
