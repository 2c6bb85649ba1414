r"""Random noise of the attack's norm: the control that every attack must beat.

.. math:: x' = \Pi(x + \varepsilon\, s), \quad s_i = \pm 1 \text{ with equal odds} \quad (l_\infty), \qquad
          x' = \Pi(x + \varepsilon\, n / \|n\|_2), \quad n \sim N(0, I) \quad (l_2)

A defence that random noise breaks as well as a gradient does has been attacked with a gradient that says nothing.
"""

from typing import ClassVar, Literal

from torch import Tensor

from defense.randomness import Omega
from tasks.attacks.base import ATTACKS, AttackConfig, AttackResult
from tasks.attacks.losses import point_loss
from tasks.attacks.region import Region
from tasks.attacks.target import Target

__all__ = ["RandomNoiseConfig"]


@ATTACKS.register("random-noise")
class RandomNoiseConfig(AttackConfig):
    """Random noise on the surface of the ball."""

    black_box: ClassVar[bool] = True
    attack: Literal["random-noise"] = "random-noise"

    @property
    def evaluations(self) -> int:
        """One, for the loss in the rows."""
        return 1

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`."""
        region = Region(x, self.norm, self.eps)
        if self.norm == "linf":
            images = region.project(x + self.eps * (2 * (omega.uniform("noise", 0, x) < 0.5).to(x) - 1))
        else:
            noise = omega.normal("noise", 0, x)
            images = region.project(x + self.eps * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
        return AttackResult(images, target.evaluate(images, point_loss("ce")).loss)
