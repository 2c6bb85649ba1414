r"""The config of a certificate: the noise, the number of samples, the error, the rule.

How the smoothed classifier is made of a defence is its *base*:

* ``bare``: the classifier alone, of the noised image. So are the defences ``none`` and ``gaussian-noise``.
* ``denoised``: the noise of the certificate *is* the forward noise of the defence's diffusion, from the smallest
  level with enough of it. The defence's own t* is replaced by that of sigma. So are ``one-shot``, ``densepure``,
  ``consistency``, ``diff-smooth``.
* ``purified``: the whole defence, its own forward noise included, behind the noise of the certificate. So are all
  others; a diffusion defence may be ``denoised`` too, which is the better certificate where its t* is free.

A defence with ``aggregation: majority-vote`` votes with its draws inside every sample (DensePure's K), one with
``mean-probability`` averages them there (DiffSmooth's m); one with a single answer has one draw a sample.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from defense.bounds import UNBOUNDED
from defense.certify import SequentialPlan, ceiling, smallest_k
from defense.certify.certificate import Guarantee, Rule
from defense.errors import InvalidInput
from defense.purifiers import NoPurifierConfig, PurifierConfig
from defense.purifiers.consistency import ConsistencyConfig
from defense.purifiers.densepure import DensePureConfig
from defense.purifiers.gaussian_noise import GaussianNoiseConfig
from defense.purifiers.one_shot import OneShotConfig
from defense.purifiers.reverse import ReverseConfig
from defense.spec import Spec

__all__ = ["Base", "CertificateConfig"]

Base = Literal["bare", "denoised", "purified"]


class CertificateConfig(Spec):
    """A certificate by randomized smoothing; see :mod:`defense.certify`.

    Arguments:
        certificate: ``smoothing``.
        sigma: Standard deviation of the noise, units of [0, 1] pixels.
        n: Estimation samples an image; with ``sequential`` at most.
        n0: Selection samples an image.
        alpha: Probability, at most, that class and radius of an image are wrong.
        rule: ``one-sided`` (Cohen et al., arXiv 1902.02918) or ``two-class``.
        guarantee: ``fixed-n``, or ``sequential``, which stops early with the same alpha.
        base: See the module; by default what the defence is made for. The smoothed classifier says it, not the id.
        shard: Samples of an image that are one unit of work. It changes no count, so it is not in the id.
        unbounded: Fields that are meant although they are beyond their bounds (:mod:`defense.bounds`).
    """

    named_by: ClassVar[str | None] = "certificate"
    certificate: Literal["smoothing"] = "smoothing"
    sigma: float = Field(gt=0)
    n: int = Field(default=100_000, ge=1)
    n0: int = Field(default=100, ge=1)
    alpha: float = Field(default=0.001, gt=0, lt=1)
    rule: Rule = "one-sided"
    guarantee: Guarantee = "fixed-n"
    base: Base | None = Field(default=None, exclude=True)
    shard: int = Field(default=1000, ge=1, exclude=True)
    unbounded: tuple[str, ...] = UNBOUNDED

    @model_validator(mode="after")
    def _can_certify(self) -> Self:
        smallest_k(self.n, self.alpha / 2 if self.rule == "two-class" else self.alpha)
        if self.guarantee == "sequential":
            if self.rule != "one-sided":
                raise InvalidInput("guarantee sequential has the one-sided rule alone.")
            self.plan()
        return self

    def plan(self) -> SequentialPlan:
        """Return the sequential plan."""
        return SequentialPlan(self.n, self.alpha)

    def label(self) -> str:
        """``certificate s=0.25 n=10000``, with what is not the default."""
        extra = [] if self.alpha == 0.001 else [f"alpha={self.alpha:g}"]
        extra += [word for word in (self.rule, self.guarantee) if word in ("two-class", "sequential")]
        extra += [] if self.base is None else [self.base]
        return " ".join([f"certificate s={self.sigma:g} n={self.n}", *extra])

    @property
    def ceiling(self) -> float:
        """The largest radius that it can give."""
        return ceiling(self.n, self.alpha, self.sigma)

    def base_of(self, purifier: PurifierConfig) -> tuple[Base, PurifierConfig]:
        """Return the base of the smoothed classifier.

        Arguments:
            purifier: The defence's.

        Returns:
            The base, and the purifier in it, at the t* of sigma where the base is ``denoised``.

        Raises:
            InvalidInput: The base does not fit the defence, or the schedule has no level with so much noise.
        """
        if isinstance(purifier, NoPurifierConfig | GaussianNoiseConfig):
            if self.base not in (None, "bare"):
                raise InvalidInput(f"base {self.base} takes a purifier; {purifier.label()!r} is none.")
            if isinstance(purifier, GaussianNoiseConfig) and purifier.clip:
                raise InvalidInput(
                    "clip: the noise of a certificate is not clipped. Certify `gaussian-noise` without."
                )
            return "bare", NoPurifierConfig()
        made_for = isinstance(purifier, OneShotConfig | DensePureConfig | ConsistencyConfig)
        base = self.base or ("denoised" if made_for else "purified")
        if base == "bare":
            return base, NoPurifierConfig()
        if base == "purified":
            return base, purifier
        if not isinstance(purifier, ReverseConfig):
            raise InvalidInput(
                f"base denoised takes a purifier that reverses its own forward noise; {purifier.label()!r} does not."
            )
        # A chain that takes every step takes every step of the new t* too.
        every = purifier.parameter("steps") == purifier.t_star
        explicit = purifier.model_fields_set - {"t_star", "schedule", *(["steps"] if every else [])}
        fields = {name: getattr(purifier, name) for name in explicit}
        unbounded = (*purifier.unbounded, *(["sigma_eq"] if "sigma" in self.unbounded else []))
        return base, type(purifier).model_validate({**fields, "sigma_eq": self.sigma, "unbounded": unbounded})
