"""The base config of all diffusion purifiers: a denoiser, t* on its schedule, and a reverse process."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from defense.bounds import BOUNDS, beyond
from defense.denoisers import DenoiserConfig
from defense.errors import InvalidInput
from defense.purifiers.base import PurifierConfig
from defense.samplers import DDIM, Ancestral, ProbabilityFlow, ReverseSDE, Sampler, Variance, time_grid
from defense.schedules import FROM_FOLDER, NoiseLevel, Schedule, get_schedule
from defense.spec import Spelling

__all__ = ["ReverseConfig", "SoftGuidedConfig", "StandardReverseConfig"]


class ReverseConfig(PurifierConfig):
    """A denoiser and t* on its schedule.

    The noise level is given as ``t_star`` **with** ``schedule``, or as ``sigma_eq`` (pixel units of [0, 1] images),
    which is turned into the smallest t_star with at least that much noise, so that both spellings are one spec.

    Arguments:
        denoiser: The denoiser.
        schedule: Its noise schedule.
        t_star: Number of noising steps.
        clip_denoised: Clamp the predicted clean image to [-1, 1] at every step, as the DDPM code does; it also keeps
            the output in [0, 1], but it zeroes the gradient of saturated pixels. Off where the authors' code has it
            off (``diffpure``, ``gradual-noise``).
    """

    spellings: ClassVar[Mapping[str, Spelling]] = {
        "sigma_eq": Spelling("t_star", "a noise level in units of [0, 1] pixels, like 0.25")
    }
    default_level: ClassVar[float | Literal["noise"] | None] = None
    """``sigma_eq`` where no noise level is given, or ``noise`` for all steps of the schedule."""
    denoiser: SerializeAsAny[DenoiserConfig] = Field(description="It is a name from the section `denoisers`.")
    schedule: str = Field(
        description="It is the noise schedule that the network was trained on: see `puregrid list schedules`."
    )
    t_star: int = Field(ge=1, description="t_star is a whole number of noising steps, like 100.")
    clip_denoised: bool = True

    @model_validator(mode="before")
    @classmethod
    def _as_t_star(cls, data: Any) -> Any:
        """Turn sigma_eq into t_star, and fill in the defaults that depend on it."""
        if not isinstance(data, dict) or not isinstance(data.get("denoiser"), DenoiserConfig):
            return data
        data = dict(data)
        cls._check_denoiser(data["denoiser"])
        schedule = cls._schedule(data)
        data["schedule"] = schedule.name
        cls._fill_t_star(data, schedule)
        return data

    @classmethod
    def _check_denoiser(cls, denoiser: DenoiserConfig) -> None:
        """Refuse a denoiser that cannot be asked without a class."""
        if not denoiser.unconditional:
            raise InvalidInput(
                f"denoiser is told one of {denoiser.classes} classes, and a purifier does not know the class. Take "
                "an unconditional network, or one that was trained with labels left out (`_null_class` in its "
                "config.json).",
                keys=("denoiser",),
            )

    @classmethod
    def _schedule(cls, data: dict[str, Any]) -> Schedule:
        denoiser: DenoiserConfig = data["denoiser"]
        trained_on = denoiser.schedule
        if data.get("t_star") is not None and data.get("schedule") is None:
            raise InvalidInput(
                "t_star is given without `schedule`: the same t_star is another noise level on another schedule "
                f"(t_star = 470 is sigma_eq 1.456 on linear-1000 and 0.099 on cosine-4000). Write `schedule: "
                f"{trained_on}`, which this denoiser was trained on, or give `sigma_eq` instead."
            )
        named = trained_on if data.get("schedule") is None else data["schedule"]
        if not isinstance(named, str):
            raise InvalidInput(f"schedule is the name of a noise schedule, not {named!r}.")
        if named in (trained_on, FROM_FOLDER):
            return denoiser.noise_schedule
        schedule = get_schedule(named)
        if schedule.name != trained_on:
            raise InvalidInput(
                f"schedule {schedule.name!r} is not the one that the denoiser was trained on ({trained_on!r}); give "
                "t_star on that one, or `sigma_eq`."
            )
        return schedule

    @classmethod
    def _fill_t_star(cls, data: dict[str, Any], schedule: Schedule) -> None:
        """Turn sigma_eq into t_star, check it, and fill in the number of steps."""
        level = cls.default_level
        if level is not None and data.get("t_star") is None and data.get("sigma_eq") is None:
            data |= {"t_star": schedule.steps} if level == "noise" else {"sigma_eq": level}
        if (data.get("t_star") is None) == (data.get("sigma_eq") is None):
            raise InvalidInput(
                f"{cls.model_fields['purifier'].default} takes one noise level: either `t_star` with `schedule`, or "
                "`sigma_eq`."
            )
        sigma = data.pop("sigma_eq", None)
        if sigma is not None:
            if isinstance(sigma, bool) or not isinstance(sigma, int | float):
                raise InvalidInput(f"sigma_eq is a number in units of [0, 1] pixels, not {sigma!r}.")
            if sigma > BOUNDS["sigma_eq"].most and "sigma_eq" not in (data.get("unbounded") or ()):
                raise beyond("sigma_eq", sigma, BOUNDS["sigma_eq"], can_lift=True)
            data["t_star"] = schedule.t_for_sigma(sigma)
        t_star = data["t_star"]
        if isinstance(t_star, int) and not isinstance(t_star, bool):
            schedule.level(t_star)
            if "steps" not in cls.model_fields:
                return
            default = cls.model_fields["steps"].default
            if data.get("steps") is None:
                data["steps"] = min(default, t_star) if isinstance(default, int) else t_star
            elif isinstance(data["steps"], int) and t_star >= 1:
                time_grid(t_star, data["steps"])

    @property
    def noise_level(self) -> NoiseLevel | None:
        """See :class:`PurifierConfig`."""
        return self.denoiser.noise_schedule.level(self.t_star)

    @property
    def diffuses(self) -> bool:
        """True, unless a form adds no forward noise."""
        return self.noise_level is not None

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """The denoiser's."""
        return self.denoiser.image_shape

    def model_key(self) -> str:
        """Return the denoiser's id: all values of t* share one network."""
        return self.denoiser.id


class SoftGuidedConfig(ReverseConfig):
    """A reverse process that is guided by something without a derivative, whose states are no noised images.

    The mode ``soft`` has something smooth in its place.

    Arguments:
        steps: Reverse steps.
    """

    steps: int = Field(ge=1)
    clip_denoised: bool = False

    @property
    def guided(self) -> bool:
        """True."""
        return True

    @property
    def softens(self) -> bool:
        """True."""
        return True

    @property
    def diffuses(self) -> bool:
        """False."""
        return False

    @property
    def evaluations(self) -> int:
        """One a step."""
        return self.steps


class StandardReverseConfig(ReverseConfig):
    """A reverse process by one of the samplers of :mod:`defense.samplers`.

    Arguments:
        steps: Number of reverse steps, evenly spaced, by default ``t_star``.
        form: ``ddpm`` (ancestral), ``ddim``, ``sde`` (Euler-Maruyama) or ``ode`` (probability flow).
        variance: Of ancestral steps: ``small``, ``large``, or ``learned`` by the network.
        eta: Of DDIM: 0 deterministic, 1 ancestral.
    """

    steps: int = Field(ge=1)
    form: Literal["ddpm", "ddim", "sde", "ode"] = "ddpm"
    variance: Variance = "small"
    eta: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _variance_of_ddpm(cls, data: Any) -> Any:
        """A purifier's default variance is one of its ancestral steps; other forms have none."""
        if isinstance(data, dict) and data.get("form", "ddpm") != "ddpm" and "variance" not in data:
            return {**data, "variance": "small"}
        return data

    @model_validator(mode="after")
    def _form_fits(self) -> Self:
        """Parameters of other forms are refused: they would be silently without effect."""
        if self.form != "ddpm" and self.variance != "small":
            raise InvalidInput(f"variance belongs to form ddpm; form {self.form} has no choice of it.")
        if self.form != "ddim" and self.eta != 0:
            raise InvalidInput(f"eta belongs to form ddim; form {self.form} has none.")
        if self.variance == "learned" and not getattr(self.denoiser, "learned_variance", False):
            raise InvalidInput(
                "variance learned needs a denoiser with a variance output; this one has none: write "
                "`variance: small` or `large`."
            )
        return self

    @property
    def evaluations(self) -> int:
        """One per reverse step."""
        return self.steps

    def label(self) -> str:
        """``diffpure t*=100``, with the number of steps where it is not t*, and the form where it is not DDPM."""
        return f"{self.purifier} {self.t_star_label()}"

    def t_star_label(self) -> str:
        """``t*=100 in 20 steps sde``."""
        short = f"t*={self.t_star}"
        if self.steps != self.t_star:
            short += f" in {self.steps} steps"
        return short if self.form == "ddpm" else f"{short} {self.form}"

    def sampler(self, t_star: int | None = None, steps: int | None = None) -> Sampler:
        """Return the sampler, from ``t_star`` in ``steps``; by default this config's."""
        t_star = self.t_star if t_star is None else t_star
        schedule, grid = self.denoiser.noise_schedule, time_grid(t_star, self.steps if steps is None else steps)
        if self.form == "ddpm":
            return Ancestral(schedule, grid, variance=self.variance, clip=self.clip_denoised)
        if self.form == "ddim":
            return DDIM(schedule, grid, eta=self.eta, clip=self.clip_denoised)
        kind = ReverseSDE if self.form == "sde" else ProbabilityFlow
        return kind(schedule, grid, clip=self.clip_denoised)
