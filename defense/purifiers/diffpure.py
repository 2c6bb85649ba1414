r"""DiffPure (Nie et al., "Diffusion models for adversarial purification", ICML 2022).

.. math:: z = \sqrt{\bar\alpha_{t^*}}\,(2x-1) + \sqrt{1-\bar\alpha_{t^*}}\,\epsilon, \qquad
          D(x) = (R(z) + 1) / 2

with R a reverse process from t* to 0, over all t* steps or a respaced subset of them:

* ``ddpm``: the ancestral process; ``ddim``: its deterministic relative;
* ``sde``: Euler-Maruyama on the reverse VP-SDE, the form of the paper's CIFAR-10 results (there with steps of 1e-3:
  t* steps of ``vp-continuous``);
* ``ode``: Euler on the probability-flow ODE;
* ``heun``, ``dpm++``: the same ODE by solvers of second order (:mod:`defense.purifiers.solvers`), in far fewer steps;
* ``ldsde``: no diffusion to t*, but Langevin dynamics that stay near the input, as in the authors' code,

  .. math:: dz = -\tfrac{\lambda}{2}\left(-\mathrm{score}(z, t_s) + \frac{z - z_x}{\sigma^2}\right)d\tau
            + \sqrt\lambda\,\eta\,dw, \qquad z(0) = z_x = 2x - 1,

  with :math:`\sigma^2` = 1e-3, :math:`\lambda` = 1e-2, :math:`\eta` = 5, Euler steps :math:`d\tau` = 1e-2, the
  score at t_s = 10 of 1000 steps; here ``t_star`` is that level, and ``steps`` of them are made, by default 100.

``forward: none`` leaves the forward noise out: the reverse process starts at t* from the image itself.

The authors' code clamps nothing (``clip_denoised`` is off by default), and its ``sde`` and ``ode`` mix discrete and
continuous time: they noise by the discrete ``linear-1000``, and integrate the continuous VP process
(:mod:`defense.continuous_vp`), with a network of discrete levels asked one level above. This is ``time: continuous``,
their default on ``linear-1000`` and ``vp-continuous``; ``time: schedule``, the only choice on others, has all of it
on the denoiser's schedule.

The forward noise has the key ``("forward", 0)`` and the noise of the step that leaves level t the key
``("reverse", t)``; ``ldsde`` counts its steps from 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from defense.continuous_vp import ContinuousVP
from defense.errors import InvalidInput
from defense.models import Models
from defense.purifiers.base import PURIFIERS, IterativePurifier
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.reverse import StandardReverseConfig
from defense.purifiers.solvers import Solved
from defense.randomness import Omega
from defense.samplers import Ancestral, EpsModel, Sampler, Variance, time_grid
from defense.schedules import NoiseLevel, Schedule, get_schedule

__all__ = ["DiffPure", "DiffPureConfig", "LangevinPurifier"]


class DiffPure(Diffusion):
    """Diffuse to t*, then reverse by ancestral sampling; for other forms build :class:`DiffPureConfig`.

    Arguments:
        denoiser: Noise predictor; an analytic one from :mod:`defense.oracles` will do.
        t_star: Number of noising steps on the denoiser's schedule.
        steps: Number of reverse steps, by default ``t_star``.
        variance: Variance of the reverse steps.
        clip_denoised: Clamp the predicted clean image to [-1, 1] at every step.
    """

    def __init__(
        self,
        denoiser: EpsModel,
        t_star: int,
        *,
        steps: int | None = None,
        variance: Variance = "small",
        clip_denoised: bool = False,
    ) -> None:
        denoiser.schedule.level(t_star)
        sampler = Ancestral(denoiser.schedule, time_grid(t_star, steps), variance=variance, clip=clip_denoised)
        super().__init__(denoiser, [sampler])


class LangevinPurifier(IterativePurifier):
    """The ``ldsde`` form, see the module.

    Arguments:
        denoiser: Noise predictor.
        t_score: Level at which its score is taken.
        steps: Number of Euler steps.
        dt: Their length.
        sigma2: Variance of the pull to the input, diffusion units.
        lam: The rate lambda.
        eta: Noise factor.
    """

    def __init__(
        self,
        denoiser: EpsModel,
        t_score: int = 10,
        steps: int = 100,
        *,
        dt: float = 1e-2,
        sigma2: float = 1e-3,
        lam: float = 1e-2,
        eta: float = 5.0,
    ) -> None:
        super().__init__()
        self.denoiser: Any = denoiser
        self.t_score = t_score
        self.steps = steps
        self.dt, self.sigma2, self.lam, self.eta = dt, sigma2, lam, eta
        self._abar = denoiser.schedule.level(t_score).abar

    @property
    def length(self) -> int:
        """Euler steps."""
        return self.steps

    def surrogate(self, steps: int) -> LangevinPurifier:
        """Return the same time in at most ``steps`` steps, each at most four times as long: longer ones diverge."""
        fewer = max(min(steps, self.steps), math.ceil(self.steps / 4))
        return LangevinPurifier(
            self.denoiser,
            self.t_score,
            fewer,
            dt=self.dt * self.steps / fewer,
            sigma2=self.sigma2,
            lam=self.lam,
            eta=self.eta,
        )

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        """Return the input, in diffusion units."""
        return 2 * x - 1

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        """One Euler step; the pull to the input is no guidance, its gradient is always followed."""
        score: Tensor = self.denoiser(z, self.t_score) / -math.sqrt(1 - self._abar)
        drift = -0.5 * self.lam * ((z - (2 * x - 1)) / self.sigma2 - score)
        noise = math.sqrt(self.lam * self.dt) * self.eta
        return z + self.dt * drift + noise * omega.normal("reverse", i, z)

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Back to [0, 1] pixels."""
        return (z + 1) / 2


_TIMED = ("sde", "ode")
"""Forms that have a time."""

_SHIFT = {"linear-1000": 1, "vp-continuous": 0}
"""Discretisations of the VP process, and how many levels above the state's the authors' code asks their networks."""


@PURIFIERS.register("diffpure")
class DiffPureConfig(StandardReverseConfig):
    """DiffPure: noise to t*, reverse without guidance; forms ddpm, ddim, sde, ode, ldsde, heun, dpm++.

    Arguments:
        form: ``ddpm`` (ancestral), ``ddim``, ``sde`` (Euler-Maruyama), ``ode`` (probability flow by Euler), ``heun``
            or ``dpm++`` (probability flow by second-order solvers), or ``ldsde`` (guided Langevin).
        clip_denoised: Clamp the predicted clean image to [-1, 1] at every step; the authors' code does not.
        forward: ``noise`` to t* first, or ``none``: the reverse process starts at t* from the image itself.
        time: Of ``sde`` and ``ode``: ``continuous``, the authors' VP process, by default on the schedules that
            discretise it, or ``schedule``, that of the denoiser.
    """

    purifier: Literal["diffpure"] = "diffpure"
    form: Literal["ddpm", "ddim", "sde", "ode", "ldsde", "heun", "dpm++"] = "ddpm"  # type: ignore[assignment]
    steps: int = Field(ge=1)
    clip_denoised: bool = False
    time: Literal["continuous", "schedule"] = "schedule"
    forward: Literal["noise", "none"] = "noise"

    # Rows from before there were these fields.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"time": ("schedule",), "forward": ("noise",)}

    @model_validator(mode="before")
    @classmethod
    def _time_as_published(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "time" in data:
            return data
        if data.get("form", cls.model_fields["form"].default) not in _TIMED:
            return data
        trained_on = getattr(data.get("denoiser"), "schedule", None)
        return {**data, "time": "continuous" if trained_on in _SHIFT else "schedule"}

    @model_validator(mode="after")
    def _forward_fits(self) -> Self:
        if self.forward == "none" and self.form == "ldsde":
            raise InvalidInput("form ldsde adds no forward noise anyway: leave `forward` out.", keys=("forward",))
        return self

    @model_validator(mode="after")
    def _time_fits(self) -> Self:
        if self.time == "schedule":
            return self
        if self.form not in _TIMED:
            raise InvalidInput(f"time continuous belongs to the forms sde and ode; form {self.form} has steps only.")
        if self.schedule not in _SHIFT:
            raise InvalidInput(
                f"time continuous is that of the VP process, which {self.schedule!r} does not discretise: write "
                f"`time: schedule`, or take a denoiser on {' or '.join(_SHIFT)}."
            )
        self.sampler()
        return self

    def sampler(self, t_star: int | None = None, steps: int | None = None) -> Sampler:
        """See :class:`StandardReverseConfig`; in continuous time where that is asked for."""
        sampler = super().sampler(t_star, steps)
        if self.forward == "none":
            return self._in_time(sampler).noised_to(1.0)
        return self._in_time(sampler)

    def _in_time(self, sampler: Sampler) -> Sampler:
        if self.time == "schedule":
            return sampler
        continuous = ContinuousVP(
            sampler.schedule,
            sampler.grid,
            flow=self.form == "ode",
            shift=_SHIFT[self.schedule],
            clip=self.clip_denoised,
        )
        return continuous.noised_to(float(get_schedule("linear-1000").abar[sampler.grid[0]]))

    @classmethod
    def _fill_t_star(cls, data: dict[str, Any], schedule: Schedule) -> None:
        if data.get("form") != "ldsde":
            return super()._fill_t_star(data, schedule)
        if data.get("t_star") is None:
            raise InvalidInput("t_star is missing: form ldsde takes the score at one level, in the paper's code 10.")
        if data.get("sigma_eq") is not None:
            raise InvalidInput("sigma_eq has no meaning in form ldsde, which adds no forward noise: give `t_star`.")
        if type(data["t_star"]) is int:
            schedule.level(data["t_star"])
        if data.get("steps") is None:
            data["steps"] = 100
        return None

    @property
    def evaluations(self) -> int:
        """One per reverse step; of ``heun`` two, but for the last one."""
        return 2 * self.steps - 1 if self.form == "heun" else self.steps

    @property
    def diffuses(self) -> bool:
        """False for ``dpm++``, whose states are more than an image."""
        return self.form != "dpm++" and super().diffuses

    @property
    def noise_level(self) -> NoiseLevel | None:
        """None where no forward noise is added: of ``ldsde``, and of ``forward: none``."""
        return None if self.form == "ldsde" or self.forward == "none" else super().noise_level

    def build(self, models: Models | None = None) -> IterativePurifier:
        """Load the denoiser and put DiffPure around it."""
        denoiser = (models or Models()).load(self.denoiser)
        if self.form == "ldsde":
            return LangevinPurifier(denoiser, self.t_star, self.steps).eval()
        if self.form == "heun" or self.form == "dpm++":
            return Solved(denoiser, self.t_star, self.steps, solver=self.form, clip=self.clip_denoised).eval()
        return Diffusion(denoiser, [self.sampler()]).eval()
