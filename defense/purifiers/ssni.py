r"""SSNI: sample-specific noise injection (Sun et al., ICML 2025), DiffPure with a t* for each image.

The farther the score of an image is from that of clean ones, the more noise it gets. The statistic is the *expected
perturbation score* (Zhang et al., "Detecting adversarial data by probing multiple perturbations using expected
perturbation score", ICML 2023): the norm of the mean score of the noised image over the first S levels,

.. math:: \mathrm{EPS}(x) = \left\lVert \frac1S \sum_{t=1}^{S} \nabla\log p_t(z_t) \right\rVert_2, \qquad
          z_t = \sqrt{\bar\alpha_t}\,(2x-1) + \sqrt{1-\bar\alpha_t}\,n_t,

and with its least, largest and mean value over clean images, :math:`e_-`, :math:`e_+` and :math:`\mu`,

* ``linear``: :math:`t(x) = \mathrm{round}\left(\frac{\mathrm{EPS}(x) - e_-}{e_+ - e_-}\, t^* + b\right)`;
* ``sigmoid``: :math:`t(x) = \mathrm{round}\left(\mathrm{sigmoid}\left(\frac{\mathrm{EPS}(x) - \mu}{\tau}\right)
  (t^* + b)\right)`,

at least 1 and at most :math:`t^* + b`. Then DiffPure at t(x); see :mod:`defense.purifiers.per_image`.

Two things differ from the authors' code on purpose. There :math:`e_-` and :math:`e_+` run over the images that are
judged, adversarial ones included, as well: an image's noise then depends on its batch, and the defence on the attack.
Here they are numbers that were measured before, on clean training images, and are part of the id. And there the
statistic reaches the purifier as data, so that no gradient of it exists; here it is computed from x, and the mode
``soft`` follows it.

Keys of the noise: ``("statistic", t)`` for level t of the statistic; the others are those of ``diffpure``.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from defense.denoisers import Denoiser, DenoiserConfig
from defense.errors import InvalidInput
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.per_image import PerImageConfig, PerImageDiffusion
from defense.randomness import Omega
from defense.reading import read_object
from defense.samplers import EpsModel, Sampler, forward_noise
from defense.schedules import Schedule
from defense.spec import Spec, digest

__all__ = ["SSNI", "SSNIConfig", "ScoreReference", "expected_perturbation_score", "measure_reference"]

_SHIPPED = Path(__file__).parents[1] / "assets" / "score-references" / "digits-ddpm.json"


class ScoreReference(Spec):
    """The statistic of clean images, and where it comes from.

    Arguments:
        minimum: Its least value.
        maximum: Its largest value.
        mean: Its mean.
        images: How many images were looked at.
        levels: S, the levels that it is a mean over.
        denoiser: Id of the denoiser whose score it is.
        data: Digest of the images.
    """

    minimum: float = Field(ge=0)
    maximum: float = Field(gt=0)
    mean: float = Field(gt=0)
    images: int = Field(ge=2)
    levels: int = Field(ge=1)
    denoiser: str
    data: str

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.minimum <= self.mean <= self.maximum or self.minimum == self.maximum:
            raise InvalidInput(
                f"minimum, mean and maximum of a reference are {self.minimum:g}, {self.mean:g} and {self.maximum:g}: "
                "the mean lies between the others, and these differ."
            )
        return self


def _score(denoiser: Any, t: int, x: Tensor, omega: Omega) -> Tensor:
    """Score of the noised image at level t."""
    abar = float(denoiser.schedule.abar[t])
    z = forward_noise(2 * x - 1, abar, omega.normal("statistic", t, x))
    score: Tensor = denoiser(z, t) / -math.sqrt(1 - abar)
    return score


@torch.no_grad()
def expected_perturbation_score(denoiser: Any, x: Tensor, omega: Omega, levels: int) -> Tensor:
    """Return EPS(x) of each image, shape (B,).

    Arguments:
        denoiser: Noise predictor.
        x: Images in [0, 1], shape (B, C, H, W).
        omega: Their randomness.
        levels: S.
    """
    total = torch.zeros_like(x)
    for t in range(1, levels + 1):
        total = total + _score(denoiser, t, x, omega)
    values: Tensor = (total / levels).flatten(1).norm(dim=1)
    return values


def measure_reference(
    config: DenoiserConfig,
    images: Tensor,
    *,
    levels: int = 20,
    seed: int = 0,
    batch: int = 256,
    denoiser: Denoiser | None = None,
) -> ScoreReference:
    """Measure the statistic on clean images, those that networks were trained on and nobody is judged on.

    Arguments:
        config: The denoiser's config, resolved.
        images: Images in [0, 1], shape (N, C, H, W).
        levels: S.
        seed: Seed of the noise.
        batch: Images at once.
        denoiser: The network, if it is loaded already.
    """
    network = config.build() if denoiser is None else denoiser
    values: list[float] = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        omega = Omega.of("score-reference", seed, "reference", range(start, start + len(part)))
        values += expected_perturbation_score(network, part, omega, levels).tolist()
    return ScoreReference(
        minimum=min(values),
        maximum=max(values),
        mean=sum(values) / len(values),
        images=len(values),
        levels=levels,
        denoiser=config.id,
        data=digest(images.contiguous().numpy().tobytes()),
    )


@cache
def _shipped() -> Sequence[dict[str, Any]]:
    references: list[dict[str, Any]] = read_object(_SHIPPED, "score references")["references"]
    return references


class SSNI(PerImageDiffusion):
    """DiffPure whose t* follows the score statistic; see the module.

    Arguments:
        denoiser: Noise predictor with ``at_levels``.
        sampler: The reverse process.
        t_star: t*.
        bias: b.
        reference: The statistic of clean images.
        tau: Of ``sigmoid``, in units of the statistic; None for ``linear``.
        steps: Reverse steps of an image at most.
    """

    def __init__(
        self,
        denoiser: EpsModel,
        sampler: Sampler,
        *,
        t_star: int,
        bias: int,
        reference: ScoreReference,
        tau: float | None = None,
        steps: int | None = None,
    ) -> None:
        super().__init__(denoiser, sampler, most=t_star + bias, steps=t_star + bias if steps is None else steps)
        self.t_star, self.bias, self.reference, self.tau = t_star, bias, reference, tau

    @property
    def preparations(self) -> int:
        """Levels of the statistic."""
        return self.reference.levels

    def prepare(self, i: int, a: Tensor, t: Tensor, x: Tensor, omega: Omega) -> tuple[Tensor, Tensor]:
        """Add the score of a level; after the last one, choose."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.straight_through):
            a = a + _score(self.denoiser, i + 1, x, omega)
            if i == self.preparations - 1:
                t = self.rounded(self.chosen((a / self.preparations).flatten(1).norm(dim=1)))
        return a, t

    def chosen(self, statistic: Tensor) -> Tensor:
        """Return t before rounding, from 1 to ``t_star + bias``, of values of the statistic."""
        reference = self.reference
        if self.tau is None:
            share = (statistic - reference.minimum) / (reference.maximum - reference.minimum)
            t = share * self.t_star + self.bias
        else:
            t = torch.sigmoid((statistic - reference.mean) / self.tau) * (self.t_star + self.bias)
        return t.clamp(1, self.most)


@PURIFIERS.register("ssni")
class SSNIConfig(PerImageConfig):
    """SSNI: DiffPure with a t* for each image, by the score of the image.

    Arguments:
        weighting: ``linear`` or ``sigmoid`` (SSNI-L, SSNI-N).
        bias: b, noising steps that every image gets, and beyond t_star at most.
        tau: Temperature of ``sigmoid``, in units of the statistic.
        reference: The statistic of clean images; by default that which ships with puregrid for its own denoisers.
        steps: Reverse steps of an image at most, by default one a level.
    """

    purifier: Literal["ssni"] = "ssni"
    weighting: Literal["linear", "sigmoid"] = "linear"
    bias: int = Field(default=5, ge=0)
    tau: float | None = Field(default=None, gt=0)
    reference: ScoreReference

    @model_validator(mode="before")
    @classmethod
    def _known_reference(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("denoiser"), DenoiserConfig):
            return data
        if data.get("reference") is None:
            name = data["denoiser"].id
            known = next((entry for entry in _shipped() if entry["denoiser"] == name), None)
            if known is None:
                raise InvalidInput(
                    "reference is missing: the least, largest and mean score statistic of clean training images, for "
                    "this denoiser. Measure it with `defense.purifiers.ssni.measure_reference` and write what it "
                    "returns."
                )
            data = {**data, "reference": ScoreReference(**known)}
        bias = data.get("bias", cls.model_fields["bias"].default)
        if "steps" not in data and type(data.get("t_star")) is int and type(bias) is int:
            data = {**data, "steps": data["t_star"] + bias}
        return data

    @classmethod
    def _fill_t_star(cls, data: dict[str, Any], schedule: Schedule) -> None:
        steps = data.pop("steps", None)
        super()._fill_t_star(data, schedule)
        bias = data.get("bias", cls.model_fields["bias"].default)
        if type(data["t_star"]) is int and type(bias) is int:
            most = data["t_star"] + bias
            schedule.level(most)
            data["steps"] = most if steps is None else steps
            if type(steps) is int and steps > most:
                raise InvalidInput(f"steps = {steps} are more than the {most} levels that an image can have.")

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if (self.weighting == "sigmoid") != (self.tau is not None):
            raise InvalidInput(
                "tau is the temperature of `weighting: sigmoid`, in units of the score statistic: give it there (a "
                f"tenth of the reference's range is {(self.reference.maximum - self.reference.minimum) / 10:.3g}), "
                "and nowhere else."
            )
        if self.reference.denoiser != self.denoiser.id:
            raise InvalidInput(
                f"reference was measured with denoiser {self.reference.denoiser}, and this one is "
                f"{self.denoiser.id}: measure it again, its scores are others."
            )
        if self.reference.levels > self.denoiser.noise_schedule.steps:
            raise InvalidInput(
                f"reference has {self.reference.levels} levels, and the schedule has "
                f"{self.denoiser.noise_schedule.steps}."
            )
        return self

    @property
    def softens(self) -> bool:
        """True: the mode ``soft`` follows the choice of t, which ``exact`` has the derivative zero of."""
        return True

    @property
    def evaluations(self) -> int:
        """At most: those of the statistic, and a reverse step a level."""
        return self.reference.levels + self.steps

    def label(self) -> str:
        """``ssni linear t*=75+5``, with the number of steps where it is not one a level."""
        name = f"ssni {self.weighting} t*={self.t_star}+{self.bias}"
        return self.stepped_label(name, self.t_star + self.bias)

    def build(self, models: Models | None = None) -> SSNI:
        """Load the denoiser."""
        return SSNI(
            (models or Models()).load(self.denoiser),
            self.sampler(self.t_star + self.bias),
            t_star=self.t_star,
            bias=self.bias,
            reference=self.reference,
            tau=self.tau,
            steps=self.steps,
        ).eval()
