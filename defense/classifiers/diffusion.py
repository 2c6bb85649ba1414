r"""Classifiers made of a class-conditional denoiser: the class whose noise prediction explains the image best.

**The diffusion classifier** (Chen et al., "Robust classification via a single diffusion model", RDC, ICML 2024; its
approximate class posterior by the evidence lower bound). With D the image that the network predicts for class y, x in
[-1, 1] and levels :math:`\sigma_i`,

.. math:: f_y(x) = -\sum_i w(\sigma_i)\,\Delta\sigma\;
          \mathrm{mean}\,\lVert D(x + \sigma_i e_i;\ \sigma_i, y) - x\rVert^2, \qquad
          w(\sigma) = \frac{\sigma^2 + \sigma_d^2}{(\sigma\,\sigma_d)^2}\; p(\sigma),

:math:`\sigma_d = 0.5`, on an even grid from 1e-4 to 3. ``weight: log-normal`` has the density of training,
:math:`\ln\sigma \sim N(-1.2, 1.2^2)`; ``published`` that of the authors' code, where the exponent is
:math:`-\tfrac12(\ln\sigma+1.2)^2 \cdot 1.2^2`, a slip of precedence: at 0.02 it is 0.0833 instead of 1.293. The
defence RDC is the purifier ``likelihood-maximization`` in front of this classifier.

**Noised diffusion classifiers** (Chen et al., "Diffusion models are certifiably robust classifiers", NeurIPS 2024)
are the base of a smoothing certificate: their input is the noised image itself, at :math:`\sigma_\tau = 2\sigma_c`.

* ``apndc``: with :math:`\hat x = D(z; \sigma_\tau)` without a class and
  :math:`z_i = z + \sqrt{\sigma_i^2 - \sigma_\tau^2}\, e_i`, the distances :math:`\lVert D(z_i; \sigma_i, y) - \hat
  x\rVert^2` with the weights above;
* ``epndc``: the distance of two posterior means at the level :math:`\sigma_{i}` below :math:`\sigma_{i+1}`,
  :math:`p = ((\sigma_{i+1}^2 - \sigma_i^2) D + \sigma_i^2 z_{i+1})/\sigma_{i+1}^2` and
  :math:`q = ((\sigma_{i+1}^2 - \sigma_i^2) z + (\sigma_i^2 - \sigma_\tau^2) z_{i+1})/(\sigma_{i+1}^2 -
  \sigma_\tau^2)`, with the further weight :math:`\sigma_{i+1}^2 (\sigma_{i+1}^2 - \sigma_\tau^2) /
  (4 (\sigma_{i+1} - \sigma_i)^2 (\sigma_i^2 - \sigma_\tau^2))`; the first five levels are left out.

**Randomness.** A classifier is a function of the image, so the noises :math:`e_i` are fixed: one for each level, the
same for all classes (as published) and all images, from the key ``("noise", i)`` and ``seed``. An attacker knows
them. The authors draw them anew in every call.

**Levels** are those of the network's schedule: of each :math:`\sigma` on the grid the smallest one that reaches it.

**Many classes.** With ``sift`` the first few levels of the grid, evenly chosen, are asked for all classes; those
whose mean distance exceeds the least by ``margin`` are out, and the rest of the levels is asked for the others alone.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from defense.classifiers.base import ENTRIES, Architecture, ClassifierConfig
from defense.classifiers.examine import examine
from defense.code import Code
from defense.denoisers import DenoiserConfig
from defense.denoisers.predictions import SIGMA_DATA
from defense.errors import InvalidInput
from defense.randomness import Omega
from defense.spec import Spec

__all__ = [
    "DiffusionClassifier",
    "DiffusionClassifierConfig",
    "NoisedDiffusionClassifier",
    "NoisedDiffusionClassifierConfig",
    "Sift",
    "density",
]

Weight = Literal["published", "log-normal"]

_LEFT_OUT = 5
"""First levels that epndc leaves out."""


def density(sigma: float, weight: Weight) -> float:
    """Return p(sigma), the density of noise levels in training; see the module."""
    apart = (math.log(sigma) + 1.2) ** 2 / 2
    exponent = apart * 1.2**2 if weight == "published" else apart / 1.2**2
    return math.exp(-exponent) / (sigma * 1.2 * math.sqrt(2 * math.pi))


class Sift(Spec):
    """Ask a few levels of all classes, and the others of those classes that are left.

    Arguments:
        levels: How many levels are asked of all classes.
        margin: Classes whose mean weighted distance is larger than the least one by more than this are out.
    """

    levels: int = Field(default=50, ge=1)
    margin: float = Field(default=5e-5, gt=0)


class _Levels(nn.Module):
    """A denoiser with levels of its schedule, and the noise of each."""

    def __init__(self, denoiser: Any, grid: list[float], weight: Weight, seed: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.classes: int = denoiser.classes
        self.times = [denoiser.schedule.t_for_sigma(sigma / 2) for sigma in grid]
        self.sigmas = [2 * denoiser.schedule.level(t).sigma_eq for t in self.times]
        self.step = grid[1] - grid[0]
        self.weights = [
            (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2 * density(sigma, weight) for sigma in self.sigmas
        ]
        self.seed = seed

    def noise(self, i: int, like: Tensor) -> Tensor:
        """Return e_i, one for all images."""
        omega = Omega.of("diffusion-classifier", self.seed, "classifier", [0])
        return omega.normal("noise", i, like[:1])

    def predicted(self, x: Tensor, i: int, labels: Tensor | None) -> Tensor:
        """Return D(x; sigma_i, y) of noised images in units of the clean one; without a class for ``labels`` None."""
        abar = self.denoiser.schedule.level(self.times[i]).abar
        z = math.sqrt(abar) * x
        eps = (
            self.denoiser(z, self.times[i]) if labels is None else self.denoiser.conditional(z, self.times[i], labels)
        )
        image: Tensor = x - self.sigmas[i] * eps
        return image

    def for_each_class(self, term: Any, i: int, x: Tensor, wanted: Tensor) -> Tensor:
        """Return ``term(i, x, labels)``, one number a pair, where images and classes are ``wanted``; zero elsewhere.

        ``wanted`` and what is returned have shape (B, classes).
        """
        image, label = wanted.nonzero(as_tuple=True)

        def of_pairs(x: Tensor) -> Tensor:
            values: Tensor = term(i, x[image], label)
            return values

        # One level's graph at a time: the backward pass asks the network again.
        tracked = torch.is_grad_enabled() and x.requires_grad
        values = checkpoint(of_pairs, x, use_reentrant=False) if tracked else of_pairs(x)
        return torch.zeros(wanted.shape, dtype=x.dtype, device=x.device).index_put((image, label), values)


class DiffusionClassifier(_Levels):
    """The diffusion classifier; see the module.

    Arguments:
        denoiser: Class-conditional noise predictor.
        grid: Levels in diffusion units, rising.
        weight: See the module.
        seed: Seed of the noises.
        sift: How classes are left out early; by default none is.
    """

    def __init__(
        self, denoiser: Any, grid: list[float], weight: Weight = "log-normal", seed: int = 0, sift: Sift | None = None
    ) -> None:
        super().__init__(denoiser, grid, weight, seed)
        self.sift = sift

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, classes), of images in [0, 1], shape (B, C, H, W)."""
        x = 2 * x - 1
        wanted = torch.ones(len(x), self.classes, dtype=torch.bool, device=x.device)
        every = range(len(self.times))
        if self.sift is None:
            return -self._distance(x, every, wanted)
        count = min(self.sift.levels, len(every))
        first = sorted({round(k) for k in np.linspace(0, len(every) - 1, count)})
        coarse = self._distance(x, first, wanted)
        mean = coarse.detach() / len(first)
        wanted = mean <= mean.min(1, keepdim=True).values + self.sift.margin
        rest = self._distance(x, [i for i in every if i not in first], wanted)
        # A class that is out keeps its distance to the best one, as far as it was measured, behind all that are left.
        left = coarse + rest
        last = torch.where(wanted, left, -math.inf).max(1, keepdim=True).values
        out = last + coarse - coarse.min(1, keepdim=True).values
        return -torch.where(wanted, left, out)

    def _distance(self, x: Tensor, levels: Any, wanted: Tensor) -> Tensor:
        total = torch.zeros(wanted.shape, dtype=x.dtype, device=x.device)
        for i in levels:
            total = total + self.step * self.weights[i] * self.for_each_class(self._term, i, x, wanted)
        return total

    def _term(self, i: int, x: Tensor, labels: Tensor) -> Tensor:
        noised = x + self.sigmas[i] * self.noise(i, x)
        return (self.predicted(noised, i, labels) - x).square().flatten(1).mean(1)


class NoisedDiffusionClassifier(_Levels):
    """APNDC and EPNDC: classifiers of images with noise; see the module.

    Arguments:
        denoiser: Class-conditional noise predictor, for ``apndc`` one that can be asked without a class.
        grid: Levels in diffusion units, rising, the first one that of the input's noise.
        weight: See the module.
        seed: Seed of the noises.
        form: ``apndc`` or ``epndc``.
    """

    def __init__(
        self,
        denoiser: Any,
        grid: list[float],
        weight: Weight = "log-normal",
        seed: int = 0,
        form: Literal["apndc", "epndc"] = "apndc",
    ) -> None:
        super().__init__(denoiser, grid, weight, seed)
        self.form = form
        self.start = grid[0]

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, classes), of noised images in units of [0, 1] pixels, not clipped, shape (B, C, H, W)."""
        z = 2 * x - 1
        wanted = torch.ones(len(z), self.classes, dtype=torch.bool, device=z.device)
        skipped = 1 + (_LEFT_OUT if self.form == "epndc" else 0)  # levels that a step reaches, from the first
        reference = self.predicted(z, 0, None) if self.form == "apndc" else z
        total = torch.zeros(wanted.shape, dtype=z.dtype, device=z.device)
        for i in range(skipped, len(self.times)):
            if self.sigmas[i] <= self.start or (self.form == "epndc" and self.sigmas[i - 1] <= self.start):
                continue  # a level that the schedule does not tell apart from that of the input
            both = torch.cat([z, reference], dim=1)
            total = total + self.step * self.weights[i] * self.for_each_class(self._term, i, both, wanted)
        return -total

    def _term(self, i: int, both: Tensor, labels: Tensor) -> Tensor:
        z, reference = both.chunk(2, dim=1)
        start, high = self.start**2, self.sigmas[i] ** 2
        noised = z + math.sqrt(high - start) * self.noise(i, z)
        image = self.predicted(noised, i, labels)
        if self.form == "apndc":
            return (image - reference).square().flatten(1).mean(1)
        low = self.sigmas[i - 1] ** 2
        if low >= high:
            return torch.zeros(len(z), dtype=z.dtype, device=z.device)
        mean = ((high - low) * image + low * noised) / high
        wanted = ((high - low) * z + (low - start) * noised) / (high - start)
        further = high * (high - start) / (4 * (self.sigmas[i] - self.sigmas[i - 1]) ** 2 * (low - start))
        distance: Tensor = further * (mean - wanted).square().flatten(1).mean(1)
        return distance


class _OfDenoiserConfig(ClassifierConfig):
    """What both have in common: a denoiser that is told classes, a grid of levels."""

    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = dict.fromkeys(("weights_key", "sha256", "mean", "std"), (None,))
    denoiser: SerializeAsAny[DenoiserConfig] = Field(
        description="It is a name from the section `denoisers`, of a class-conditional network."
    )
    levels: int = Field(default=126, ge=2)
    sigma_max: float = Field(default=3.0, gt=1e-4)
    weight: Weight = "log-normal"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _takes_classes(self) -> Self:
        for name in ("weights", "sha256", "weights_key", "mean", "std"):
            if getattr(self, name) is not None:
                raise InvalidInput(
                    f"{name} belongs to classifiers with weights of their own; {self.classifier} takes a `denoiser`.",
                    keys=(name,),
                )
        if self.denoiser.classes is None or self.denoiser.image_shape is None:
            raise InvalidInput(
                f"denoiser is not class-conditional, and {self.classifier} compares what it predicts for each class. "
                "Take a network that was trained with labels (a diffusers folder with `num_class_embeds`, a preset "
                "with `cond` in its name, or your own from `puregrid train`).",
                keys=("denoiser",),
            )
        schedule = self.denoiser.noise_schedule
        top = 2 * schedule.level(schedule.steps).sigma_eq
        if self.sigma_max > top:
            raise InvalidInput(
                f"sigma_max = {self.sigma_max:g} is beyond schedule {schedule.name!r}, which ends at {top:.4g} "
                "(diffusion units, twice those of pixels)."
            )
        return self

    @property
    def architecture(self) -> Architecture:
        """What images and classes there are: the denoiser's."""
        shape, classes = self.denoiser.image_shape, self.denoiser.classes
        assert shape is not None and classes is not None
        zeros, ones = (0.0,) * shape[0], (1.0,) * shape[0]
        return Architecture(build=self._network, image_shape=shape, classes=classes, mean=zeros, std=ones)

    def code(self) -> Code | None:
        """Return None, or the code of a class that is not puregrid's; there is no architecture to look at."""
        return Spec.code(self)

    def _grid(self) -> list[float]:
        raise NotImplementedError

    def _network(self) -> nn.Module:
        raise NotImplementedError

    def resolved(self, base: Path) -> Self:
        """This config, whose only files are those of the denoiser."""
        return self.model_copy(update={"denoiser": self.denoiser.resolved(base)})

    def build(self) -> nn.Module:
        """Load the denoiser, and make the classifier of it."""
        network = self._network().eval().requires_grad_(False)
        architecture = self.architecture
        examine(network, name=self.label(), image_shape=architecture.image_shape, classes=architecture.classes)
        return network


class DiffusionClassifierConfig(_OfDenoiserConfig):
    """The diffusion classifier of a class-conditional denoiser.

    Arguments:
        classifier: ``diffusion-classifier``.
        denoiser: The denoiser.
        levels: Levels of the grid from 1e-4 to ``sigma_max``, 126 as published: evaluations of the network for each
            class.
        sigma_max: Largest level, diffusion units.
        weight: ``log-normal``, or ``published`` with the slip of the authors' code.
        seed: Seed of the noises, which are fixed.
        sift: Leave out classes early.
    """

    classifier: Literal["diffusion-classifier"]
    sift: Sift | None = None

    def _grid(self) -> list[float]:
        return np.linspace(1e-4, self.sigma_max, self.levels).tolist()  # type: ignore[no-any-return]

    def _network(self) -> nn.Module:
        return DiffusionClassifier(self.denoiser.build(), self._grid(), self.weight, self.seed, self.sift)

    def label(self) -> str:
        """Name in tables."""
        return self.name or f"dc {self.levels} levels"


class NoisedDiffusionClassifierConfig(_OfDenoiserConfig):
    """APNDC or EPNDC, the base of a smoothing certificate with the same ``sigma``.

    Arguments:
        classifier: ``noised-diffusion-classifier``.
        denoiser: The denoiser.
        form: ``apndc`` or ``epndc``.
        sigma: Noise of the certificate, units of [0, 1] pixels.
        levels: Levels of the grid from 2 ``sigma`` to ``sigma_max``.
        sigma_max: Largest level, diffusion units.
        weight: See :class:`DiffusionClassifierConfig`.
        seed: Seed of the noises.
    """

    classifier: Literal["noised-diffusion-classifier"]
    form: Literal["apndc", "epndc"] = "apndc"
    sigma: float = Field(gt=0)

    @model_validator(mode="after")
    def _noised(self) -> Self:
        if 2 * self.sigma >= self.sigma_max:
            raise InvalidInput(
                f"sigma = {self.sigma:g} leaves no levels up to sigma_max = {self.sigma_max:g}, which is in "
                "diffusion units, twice those of pixels."
            )
        if self.form == "epndc" and self.levels <= _LEFT_OUT + 1:
            raise InvalidInput(
                f"levels = {self.levels}: form epndc leaves out the first {_LEFT_OUT}, and none is left to compare. "
                f"Write at least {_LEFT_OUT + 2}; 126 are published.",
                keys=("levels",),
            )
        if self.form == "apndc" and not self.denoiser.unconditional:
            raise InvalidInput(
                "form apndc asks the network without a class first, which this one was not trained for: write `form: "
                "epndc`, or take one that was."
            )
        return self

    def _grid(self) -> list[float]:
        return np.linspace(2 * self.sigma, self.sigma_max, self.levels).tolist()  # type: ignore[no-any-return]

    def _network(self) -> nn.Module:
        return NoisedDiffusionClassifier(self.denoiser.build(), self._grid(), self.weight, self.seed, self.form)

    def label(self) -> str:
        """Name in tables."""
        return self.name or f"{self.form} s={self.sigma:g} {self.levels} levels"


ENTRIES["diffusion-classifier"] = DiffusionClassifierConfig
ENTRIES["noised-diffusion-classifier"] = NoisedDiffusionClassifierConfig
