r"""FlowPure of an attack ("PGD-FlowPure" of arXiv 2505.13280): the velocity from an attacked to the clean image.

.. math:: x_u = (1-u)\,x_0 + u\,x_1, \quad x_0 = \mathrm{PGD}(x_1; \epsilon), \quad \epsilon \sim U(0, E), \qquad
          \min\ \lVert v_\theta(x_u, u) - (x_1 - x_0) \rVert^2

in [0, 1] pixels; u is drawn on the levels of the schedule ``flowpure``, u = 1 - t/1000. Purify by ``flowpure`` with
``forward: none``: from the image that came, without noise. What is learned is the way back from *this* attack on
*this* classifier without a purifier.

The authors: CIFAR-10, WRN-28-10, E = .05, each image its own; 10 steps of 2/255 from a uniform
start; 300,000 steps of 64 images with Adam(2e-4). Their other form attacks with a batched C&W, which is not here.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from defense.denoisers import Prediction
from workflows.training.objectives.attacked import attacked
from workflows.training.objectives.base import OBJECTIVES, Denoising, GuidedLoss

__all__ = ["AttackedFlow"]


@OBJECTIVES.register("flowpure-attacked")
class AttackedFlow(GuidedLoss):
    """FlowPure of PGD.

    Arguments:
        eps: Largest radius, l_inf, units of [0, 1] pixels.
        inner_steps: PGD steps.
        step_size: Their size, pixel units, whatever the radius.
    """

    prediction: ClassVar[Prediction] = "flowpure"
    denoises_images = False
    objective: Literal["flowpure-attacked"] = "flowpure-attacked"
    eps: float = Field(gt=0, le=1)
    inner_steps: int = Field(default=10, ge=1)
    step_size: float = Field(gt=0, le=1)

    @property
    def needs_schedule(self) -> str:
        """That of the purifier."""
        return "flowpure"

    def loss(self, batch: Denoising) -> Tensor:
        """See the module."""
        assert batch.guide is not None
        found = attacked(
            batch.guide,
            batch.x,
            batch.y,
            self.eps * batch.uniform().view(-1, 1, 1, 1),
            batch.generator,
            steps=self.inner_steps,
            step_size=self.step_size,
        )
        t = (batch.uniform() * batch.schedule.steps).long() + 1
        u = (1 - t.double() / batch.schedule.steps).to(batch.x)
        velocity = batch.x - found
        return F.mse_loss(batch.ask(found + u.view(-1, 1, 1, 1) * velocity, u.float()), velocity)
