r"""OSGD: one-shot guided diffusion (FastDiffPure), from the public code.

The image is denoised in one shot, and the result guides a second pass, both noised by the same n:

.. math:: x' = \hat z_0(q_t(x; n_1)), \qquad z = q_t(x; n), \quad z' = q_t(x'; n),

.. math:: \tilde z = \mu(z) - s\sqrt{\tfrac{1-\bar\alpha_t}{\bar\alpha_t}}\;\Sigma\; 2\,(z - z') + \sqrt\Sigma\, n_2,
          \qquad D(x) = (\hat z_0(\tilde z, t) + 1)/2

with :math:`\mu, \Sigma` of the ancestral step from t to t - 1 and the last prediction made at level t, as there.
:math:`z - z' = \sqrt{\bar\alpha_t}\,(2x - 1 - x')`: the guidance moves towards the denoised image.

Settings for CIFAR-10: t = 350 of ``cosine-4000`` (sigma_eq 0.0747), s = 1e5, clamped predictions. On other schedules
one step is another share of the noise, and s has to be chosen anew. Published attacks attack the bare classifier, or
detach the guidance.

Keys of the noise: ``("forward", 0)`` (n_1), ``("forward", 1)`` (n), ``("reverse", t)``.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from defense.models import Models
from defense.purifiers.base import PURIFIERS, IterativePurifier
from defense.purifiers.reverse import ReverseConfig
from defense.randomness import Omega
from defense.samplers import Ancestral, EpsModel, forward_noise, predicted_z0

__all__ = ["OSGD", "OSGDConfig"]


class OSGD(IterativePurifier):
    """The chain of three steps: the first answer x', the guided step, and the last prediction.

    Arguments:
        denoiser: Noise predictor.
        t: Level.
        scale: s.
        variance: ``small`` or ``large``, of the ancestral step.
        clip: Clamp predictions to [-1, 1].
    """

    length = 3

    def __init__(
        self,
        denoiser: EpsModel,
        t: int,
        scale: float,
        *,
        variance: Literal["small", "large"] = "large",
        clip: bool = True,
    ) -> None:
        super().__init__()
        self.denoiser: Any = denoiser
        self.t, self.scale, self.clip = t, scale, clip
        grid = [t, t - 1, 0] if t > 1 else [1, 0]
        self._sampler = Ancestral(denoiser.schedule, grid, variance=variance, clip=clip)
        self._abar = denoiser.schedule.level(t).abar

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        """Return q_t(x; n_1)."""
        return self._noised(2 * x - 1, 0, omega)

    def _noised(self, z0: Tensor, number: int, omega: Omega) -> Tensor:
        return forward_noise(z0, self._abar, omega.normal("forward", number, z0))

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        """See the module; the guidance is in the second of three."""
        if i != 1:
            return predicted_z0(z, self.denoiser(z, self.t), self._abar, self.clip)
        first, z = z, self._noised(2 * x - 1, 1, omega)
        step = self._sampler.transition(0, z, self.denoiser(z, self.t))
        apart = z - self._noised(first, 1, omega)
        if not guidance_path:
            apart = apart.detach()
        pull = 2 * self.scale * math.sqrt((1 - self._abar) / self._abar) * step.gain
        return step.mean - pull * apart + step.std * omega.normal("reverse", self.t, z)

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Back to [0, 1] pixels."""
        return (z + 1) / 2

    def target_logits(self, classifier: Callable[[Tensor], Tensor], x: Tensor, omega: Omega) -> Tensor:
        """See :class:`Purifier`: on x', the first answer."""
        return classifier(self.finish(self.step(0, self.start(x, omega), x, omega), x, omega))


@PURIFIERS.register("osgd")
class OSGDConfig(ReverseConfig):
    """OSGD: one-shot denoising, guided by its own first answer.

    Arguments:
        scale: s.
        variance: Of the ancestral step: ``small`` or ``large``.
    """

    default_level = 0.0746
    purifier: Literal["osgd"] = "osgd"
    scale: float = Field(default=1e5, ge=0)
    variance: Literal["small", "large"] = "large"

    @property
    def guided(self) -> bool:
        """By its first answer, unless the scale is 0."""
        return self.scale > 0

    @property
    def pulls_to(self) -> str | None:
        """Its first answer."""
        return "its first answer" if self.guided else None

    @property
    def diffuses(self) -> bool:
        """False: it takes no chain of reverse steps whose states could be compared with the forward process."""
        return False

    @property
    def evaluations(self) -> int:
        """One a step."""
        return 3

    def label(self) -> str:
        """``osgd t*=350 s=1e+05``."""
        return f"osgd t*={self.t_star} s={self.scale:g}"

    def build(self, models: Models | None = None) -> OSGD:
        """Load the denoiser."""
        denoiser = (models or Models()).load(self.denoiser)
        return OSGD(denoiser, self.t_star, self.scale, variance=self.variance, clip=self.clip_denoised).eval()
