r"""DiffSmooth (Zhang et al., USENIX Security 2023, arXiv 2308.14333): one-shot denoising, then local smoothing.

.. math:: D(x; \omega_k) = \hat x + s\,n_k, \qquad \hat x = \tfrac12(\hat z_0(z) + 1), \qquad
          F(x) = \arg\max \tfrac1m \sum_{k=1}^m \mathrm{softmax}\, f(D(x;\omega_k)),

with the denoised image of :mod:`defense.purifiers.one_shot`, m = 5 local noises of s = 0.25 pixels, and f a
classifier that was trained on such noise. The m draws share the forward noise and differ in the local one, so that
the defence is written with ``draws: 5, aggregation: mean-probability``. Inside a certificate (base ``denoised``) the
noise of the certificate is the forward noise, and the mean is taken in each of its samples. The authors' local noises
are five fixed ones; here they have the key ``("local", 0)`` of each draw.
"""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.one_shot import OneShotConfig
from defense.randomness import Omega
from defense.samplers import DDIM

__all__ = ["DiffSmooth", "DiffSmoothConfig"]


class DiffSmooth(Diffusion):
    """One-shot denoising, and noise on its result.

    Arguments:
        denoiser: Noise predictor.
        sampler: One step from t* to 0.
        local_sigma: s, units of [0, 1] pixels.
    """

    def __init__(self, denoiser: Any, sampler: DDIM, local_sigma: float) -> None:
        super().__init__(denoiser, [sampler], shared_forward=True)
        self.local_sigma = local_sigma

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Back to [0, 1] pixels, with the local noise, which is not clipped."""
        return super().finish(z, x, omega) + self.local_sigma * omega.normal("local", 0, z)


@PURIFIERS.register("diff-smooth")
class DiffSmoothConfig(OneShotConfig):
    """DiffSmooth: one-shot denoising and local noise; its draws are averaged (``aggregation: mean-probability``).

    Arguments:
        local_sigma: Standard deviation of the local noise, units of [0, 1] pixels.
    """

    purifier: Literal["diff-smooth"] = "diff-smooth"  # type: ignore[assignment]
    local_sigma: float = Field(default=0.25, gt=0)

    def label(self) -> str:
        """``diff-smooth t*=145 s=0.25``."""
        return f"diff-smooth t*={self.t_star} s={self.local_sigma:g}"

    def build(self, models: Models | None = None) -> DiffSmooth:
        """Load the denoiser."""
        sampler = DDIM(self.denoiser.noise_schedule, [self.t_star, 0], clip=self.clip_denoised)
        return DiffSmooth((models or Models()).load(self.denoiser), sampler, self.local_sigma).eval()
