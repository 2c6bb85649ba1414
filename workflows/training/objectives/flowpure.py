r"""Gaussian FlowPure (arXiv 2505.13280): the velocity from a noised image to the clean one.

.. math:: x_u = (1-u)\,x_0 + u\,x_1, \quad x_0 = x_1 + s\,n, \quad u \sim U(0, 1), \qquad
          \min\ \lVert v_\theta(x_u, u) - (x_1 - x_0) \rVert^2

in [0, 1] pixels with s = 0.3. As :math:`x_u = x_1 + s(1-u)n` and the target is :math:`-s\,n`, it is noise prediction
at :math:`\sigma_{eq} = s(1-u)`; see :mod:`defense.denoisers.predictions`. u is drawn on the levels of the schedule
``flowpure``, which are those that the purifier asks at.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from defense.denoisers import Prediction
from defense.denoisers.predictions import FLOWPURE_SIGMA
from workflows.training.objectives.base import OBJECTIVES, DenoiserLoss, Denoising

__all__ = ["GaussianFlow"]


@OBJECTIVES.register("flowpure")
class GaussianFlow(DenoiserLoss):
    """Gaussian FlowPure."""

    prediction: ClassVar[Prediction] = "flowpure"
    objective: Literal["flowpure"] = "flowpure"

    @property
    def needs_schedule(self) -> str:
        """Its own."""
        return "flowpure"

    def loss(self, batch: Denoising) -> Tensor:
        """See the module."""
        t = (batch.uniform() * batch.schedule.steps).long() + 1
        u = (1 - t.double() / batch.schedule.steps).to(batch.x)
        noise = batch.normal()
        at = batch.x + FLOWPURE_SIGMA * (1 - u).view(-1, 1, 1, 1) * noise
        return F.mse_loss(batch.ask(at, u.to(torch.float32)), -FLOWPURE_SIGMA * noise)
