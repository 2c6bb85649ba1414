r"""Consistency training and fine-tuning (Song et al., arXiv 2303.01469, algorithm 3; Lei et al., arXiv 2407.00623).

With :math:`f(x, \sigma) = c_{skip}\,x + c_{out}\,F(c_{in}\,x,\ 250\ln\sigma)` and neighbours
:math:`\sigma_k < \sigma_{k+1}` of a grid of ``grid`` levels of the schedule ``edm``,

.. math:: \min\ \lVert f(z_0 + \sigma_{k+1} n,\ \sigma_{k+1}) - \mathrm{sg}\,f(z_0 + \sigma_k n,\ \sigma_k) \rVert^2
          + \lambda\,\lVert f(z_0 + \sigma_{k+1} n,\ \sigma_{k+1}) - z_0 \rVert^2 .

The second term is the fine-tuning of consistency purification, which measures the distance from the clean image with
LPIPS; with the squared error, the only one for images of a few pixels, it pulls to the mean of all images that the
noised one may have been, as any denoiser does. Levels go up to ``sigma_max``: purification lives at small noise.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from defense.denoisers import Prediction
from defense.denoisers.predictions import consistency_scalings
from defense.levels import factor
from workflows.training.objectives.base import OBJECTIVES, DenoiserLoss, Denoising

__all__ = ["ConsistencyTuning"]


@OBJECTIVES.register("consistency")
class ConsistencyTuning(DenoiserLoss):
    """Consistency training, with the distance from the clean image as its second term.

    Arguments:
        grid: Number of levels, evenly chosen on ``edm``.
        sigma_max: The largest one, diffusion units.
        clean: Weight lambda of the second term; 0 for none.
    """

    prediction: ClassVar[Prediction] = "consistency"
    objective: Literal["consistency"] = "consistency"
    grid: int = Field(default=18, ge=2)
    sigma_max: float = Field(default=5.0, gt=0, le=80)
    clean: float = Field(default=1.0, ge=0)

    @property
    def needs_schedule(self) -> str:
        """That of Karras et al."""
        return "edm"

    def loss(self, batch: Denoising) -> Tensor:
        """See the module."""
        z0, noise = 2 * batch.x - 1, batch.normal()
        most = batch.schedule.t_for_sigma(self.sigma_max / 2)
        levels = torch.linspace(1, most, self.grid, dtype=torch.float64).round().long()
        k = (batch.uniform() * (self.grid - 1)).long()
        # The same dropout on both: otherwise they would be two networks.
        seed = int(torch.randint(2**62, (), generator=batch.generator))

        def end(t: Tensor) -> Tensor:
            abar = batch.abar(t)
            sigma = ((1 - abar) / abar).sqrt()
            skip, out, scale, label = consistency_scalings(sigma)
            x = z0 + factor(sigma, z0) * noise
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                answer = batch.ask(factor(scale, x) * x, label.flatten().to(x))
            reached: Tensor = factor(skip, x) * x + factor(out, x) * answer
            return reached

        upper = end(levels[k + 1])
        with torch.no_grad():
            lower = end(levels[k])
        loss = F.mse_loss(upper, lower)
        return loss + self.clean * F.mse_loss(upper, z0) if self.clean else loss
