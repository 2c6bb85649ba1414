r"""Consistency purification (Li et al., "Consistency purification", NeurIPS 2024, arXiv 2407.00623).

One-shot denoising by a consistency model (Song et al., arXiv 2303.01469), which takes a noised image to the end of
its trajectory, an image of the data, and not to the mean of all images that it may have been:

.. math:: D(x) = \tfrac12\left(\mathrm{clamp}\left(f(2x - 1 + \sigma n,\ \sigma)\right) + 1\right), \qquad
          f(x, \sigma) = c_{skip}\,x + c_{out}\,F(c_{in}\,x,\ 250\ln\sigma)

with the coefficients of :mod:`defense.denoisers.predictions`. Sigma in these units is twice the smoothing noise of a
certificate (``sigma_eq``, pixels), whose base ``denoised`` takes this purifier as it takes ``one-shot``.

The networks: the paper's CIFAR-10 model is a checkpoint of JAX; in torch, diffusers folders of ImageNet 64x64 exist
(``UNet2DModel`` with ``CMStochasticIterativeScheduler``), which are told the class.
"""

from typing import Literal, Self

from pydantic import model_validator

from defense.errors import InvalidInput
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.reverse import ReverseConfig
from defense.samplers import DDIM

__all__ = ["ConsistencyConfig"]


@PURIFIERS.register("consistency")
class ConsistencyConfig(ReverseConfig):
    """Consistency purification: noise to t*, one call of a consistency model."""

    purifier: Literal["consistency"] = "consistency"

    @model_validator(mode="after")
    def _is_a_consistency_model(self) -> Self:
        prediction = getattr(self.denoiser, "prediction", "consistency")
        if prediction != "consistency":
            raise InvalidInput(
                f"denoiser predicts {prediction!r}, which makes this `one-shot`: write that, or take a consistency "
                "model (`prediction: consistency`).",
                keys=("denoiser",),
            )
        return self

    @property
    def evaluations(self) -> int:
        """One."""
        return 1

    def label(self) -> str:
        """``consistency t*=145``."""
        return f"consistency t*={self.t_star}"

    def build(self, models: Models | None = None) -> Diffusion:
        """Load the denoiser."""
        sampler = DDIM(self.denoiser.noise_schedule, [self.t_star, 0], clip=self.clip_denoised)
        return Diffusion((models or Models()).load(self.denoiser), [sampler]).eval()
