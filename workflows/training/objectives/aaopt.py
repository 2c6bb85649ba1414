r"""The model of perturbations of AAOpt (Wesego and Rooshenas, NeurIPS 2025), which the purifier ``aaopt`` asks.

Noise prediction, not of images but of what was done to them:

.. math:: \gamma = 2\,(x - x_k), \qquad \min\ \lVert n - d_\phi(\sqrt{\bar\alpha_t}\,\gamma
          + \sqrt{1-\bar\alpha_t}\,n,\ t) \rVert^2, \qquad t \sim U\{1, ..., 1000\},

where :math:`x_k` is x itself or x attacked within one of several balls, each as likely as the others. The sign is
that of the purifier: its :math:`\gamma = u - u_0` is clean less attacked where u has become clean, and the factor 2
is that of its units, images in [-1, 1].

The authors attack with AutoAttack, once for each image and ball (l_inf 2, 4 and 8/255, l_2 0.5 and 1 on CIFAR-10);
here it is PGD on the classifier, drawn anew for each batch. In their code the sign is a choice, for training and
defence together, and by default the other one: attacked less clean, with :math:`u_0 - u` in the defence.
"""

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from defense.errors import InvalidInput
from defense.levels import factor, root
from workflows.training.objectives.attacked import attacked
from workflows.training.objectives.base import OBJECTIVES, Denoising, GuidedLoss

__all__ = ["PerturbationDiffusion"]


@OBJECTIVES.register("aaopt")
class PerturbationDiffusion(GuidedLoss):
    """Noise prediction on perturbations.

    Arguments:
        linf: Radii of l_inf balls, units of [0, 1] pixels (8/255, not 8).
        l2: Radii of l_2 balls, likewise (0.5, not 128), up to 10: beyond it an image is another one.
        inner_steps: PGD steps of the attack.
    """

    denoises_images = False
    objective: Literal["aaopt"] = "aaopt"
    linf: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    l2: tuple[Annotated[float, Field(gt=0, le=10)], ...] = ()
    inner_steps: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _attacks(self) -> Self:
        if not self.linf and not self.l2:
            raise InvalidInput("objective aaopt learns of attacks: give their radii, `linf`, `l2` or both.")
        return self

    @property
    def needs_schedule(self) -> str:
        """That of the authors, whose level the purifier asks at."""
        return "linear-1000"

    def loss(self, batch: Denoising) -> Tensor:
        """See the module."""
        assert batch.guide is not None
        radii = torch.tensor([0.0, *self.linf, *self.l2])
        kind = (batch.uniform() * len(radii)).long().view(-1, 1, 1, 1)
        found = attacked(
            batch.guide,
            batch.x,
            batch.y,
            radii[kind],
            batch.generator,
            steps=self.inner_steps,
            l2=kind > len(self.linf),
        )
        gamma = 2 * (batch.x - found)
        t = (batch.uniform() * batch.schedule.steps).long() + 1
        a, noise = batch.abar(t), batch.normal()
        z = factor(root(a), gamma) * gamma + factor(root(1 - a), gamma) * noise
        return F.mse_loss(batch.ask(z, (t - 1).to(z.device)), noise)
