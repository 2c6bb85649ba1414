r"""AAOpt: optimisation of the image along the score, with or without a diffusion model of perturbations.

Source: the public code and algorithm 1 of the paper. N Adam steps from :math:`u_0 = 2x - 1` along

.. math:: g = \frac{1}{n b}\left(\hat\epsilon - e + \lambda\,(d_\phi(\gamma_\tau, \tau) - e')\right), \qquad
          \hat\epsilon = \frac{u + \sigma e - D(u + \sigma e; \sigma)}{\sigma}, \quad \gamma = u - u_0,

with :math:`\sigma \sim U(s - 0.1, s + 0.1)`, fresh noises e and e', n the number of values of an image and b the
declared ``b_ref``. The first term is the gradient of the negative log-likelihood, as score distillation has it: no
derivative of the denoiser is in it, so that its own derivative, which an exact attack needs, is a first one. The
second comes from a diffusion model :math:`d_\phi` of *perturbations* (an ordinary noise predictor, trained on
:math:`x_{clean} - x_{attacked}`), asked at :math:`\gamma_\tau = \sqrt{\bar\alpha_\tau}\gamma +
\sqrt{1-\bar\alpha_\tau}\,e'`, level :math:`\tau = \lfloor 1000 \sigma \rfloor` of its schedule. The objective
``aaopt`` of ``puregrid train`` makes one; without (``perturbation`` left out) lambda is 0 and the defence is score
regularisation alone.

**The sign.** Algorithm 1 descends along the second term (``direction: towards``): u less u_0 becomes a likelier
perturbation. By default the released code has the model of attacked less clean images, asks it at :math:`u_0 - u` and
adds the term as it stands, without the minus of the chain rule: u moves *away* from where the model sees it. The same
model of either sign gives that as :math:`-\lambda`, which is ``direction: away``.

Settings: s = .25 diffusion units (``sigma_eq: 0.125``, ``spread: 0.05``), N = 20, lr .1, lambda .25.

**The published evaluation** is PGD with EOT whose gradient is that of *one* of the twenty steps, with both networks
detached: the identity's gradient, evaluated at another image (86.24 %; 84.08 % with the networks followed).

Keys of the noise: ``("level", i)``, ``("score", i)``, ``("perturbation", i)``.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor

from defense.denoisers import DenoiserConfig
from defense.denoisers.levels import denoised_at, drawn_levels, noise_at, sigma_of
from defense.errors import InvalidInput
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.optimised import SpreadConfig, SpreadOptimised
from defense.randomness import Omega
from defense.samplers import EpsModel

__all__ = ["AAOpt", "AAOptConfig"]


class AAOpt(SpreadOptimised):
    """The chain; see the module.

    Arguments:
        given: Those of :class:`~defense.purifiers.optimised.SpreadOptimised`.
        lam: lambda; below 0 for the direction away.
        perturbation: The model of perturbations; None for lambda = 0.
        named: Those that have names there.
    """

    def __init__(self, *given: Any, lam: float = 0.0, perturbation: EpsModel | None = None, **named: Any) -> None:
        super().__init__(*given, **named)
        self.lam = lam
        self.perturbation: Any = perturbation

    def gradient(self, i: int, u: Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Return g; see the module."""
        schedule = self.denoiser.schedule
        t = drawn_levels(schedule, self.low, self.high, omega, i, u)
        sigma, e = sigma_of(schedule, t, u), omega.normal("score", i, u)
        noised = u + sigma * e
        g = (noised - denoised_at(self.denoiser, noised, t, clip=self.clip)) / sigma - e
        if self.perturbation is not None:
            of = self.perturbation.schedule
            # The network's index, counted from 0, is floor(1000 sigma): level tau = index + 1.
            levels = [min(int(1000 * s), of.steps - 1) + 1 for s in sigma.flatten().tolist()]
            other, own = sigma_of(of, levels, u), omega.normal("perturbation", i, u)
            state = (u - (2 * x - 1) + other * own) / (1 + other.square()).sqrt()
            g = g + self.lam * (noise_at(self.perturbation, state, levels) - own)
        return g / (u[0].numel() * self.b_ref)


@PURIFIERS.register("aaopt")
class AAOptConfig(SpreadConfig):
    """AAOpt: optimiser steps along the score, and along that of a model of perturbations.

    Arguments:
        perturbation: A denoiser of perturbations; without one lambda is 0.
        lam: lambda, by default 0.25 with a model of perturbations.
        direction: ``towards`` likelier perturbations, as in the algorithm, or ``away``, as in the released code.
    """

    # Rows from before there was a choice.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"direction": ("towards",)}
    default_level = 0.125
    purifier: Literal["aaopt"] = "aaopt"
    iterations: int = Field(default=20, ge=1, le=100_000)
    perturbation: SerializeAsAny[DenoiserConfig] | None = None
    lam: float = Field(ge=0)
    direction: Literal["towards", "away"] = "towards"

    @model_validator(mode="before")
    @classmethod
    def _lambda_with_a_model(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "lam" in data:
            return data
        return {**data, "lam": 0.0 if data.get("perturbation") is None else 0.25}

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.lam > 0) != (self.perturbation is not None):
            raise InvalidInput(
                f"lam = {self.lam:g} weighs the model of perturbations, which `perturbation` names: give both, or "
                "neither.",
                keys=("lam",),
            )
        if self.direction == "away" and self.perturbation is None:
            raise InvalidInput(
                "direction is that of the model of perturbations: name one as `perturbation`, or leave it out.",
                keys=("direction",),
            )
        if self.perturbation is not None and not self.perturbation.unconditional:
            raise InvalidInput(
                f"perturbation is told one of {self.perturbation.classes} classes, and a purifier does not know the "
                "class: take an unconditional network.",
                keys=("perturbation",),
            )
        return self

    def check_images(self, image_shape: tuple[int, int, int]) -> None:
        """See :class:`PurifierConfig`; the model of perturbations must take them too."""
        super().check_images(image_shape)
        other = None if self.perturbation is None else self.perturbation.image_shape
        if other not in (None, image_shape):
            raise InvalidInput(
                f"purifier {self.label()!r}: the model of perturbations takes images of shape {other}, not "
                f"{image_shape}. Name one that was trained on these images.",
                keys=("perturbation",),
            )

    @property
    def evaluations(self) -> int:
        """One per step and network."""
        return self.iterations * (1 if self.perturbation is None else 2)

    def _form(self) -> str:
        return "" if self.perturbation is None else f" lam={self.lam:g}{' away' if self.direction == 'away' else ''}"

    def build(self, models: Models | None = None) -> AAOpt:
        """Load the denoiser, and the model of perturbations."""
        models = models or Models()
        other = None if self.perturbation is None else models.load(self.perturbation)
        lam = self.lam if self.direction == "towards" else -self.lam
        return self.chain(AAOpt, models.load(self.denoiser), lam=lam, perturbation=other)
