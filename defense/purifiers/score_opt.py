r"""ScoreOpt ("Enhancing adversarial robustness via score-based optimization", NeurIPS 2023, arXiv 2307.04333).

With the denoiser in EDM form, :math:`D(u + \sigma e; \sigma)` (:mod:`defense.denoisers.levels`), and Adam:

* form ``O``: :math:`u_0 = 2x - 1`; in every step
  :math:`\sigma \sim U(s - \delta, s + \delta)`, :math:`e \sim N(0, I)`,

  .. math:: l(u) = \mathrm{mean}\,\|D(u + \sigma e; \sigma) - u\|^2, \qquad D(x) = \mathrm{clamp}((u_N + 1)/2);

  the gradient of l runs through the denoiser **and** through the second u;
* form ``N``: e is drawn once, :math:`v_0 = 2x - 1 + s e`,

  .. math:: l(v) = \mathrm{mean}\,\|(v - D(v; s))/s - e\|^2, \qquad D(x) = (D(v_N; s) + 1)/2 .

Settings of the authors' scripts (their s is 2 ``sigma_eq``, their interval :math:`s \pm 0.1` is ``spread: 0.05``):
static attacks O s = .25, N = 20, lr .01 and N s = .25, N = 5, lr .1; BPDA O s = .5, N = 5, lr .1; PGD with EOT N
s = .5, N = 20, lr .1. Their code draws one sigma for the batch, here one an image; it averages over the batch, which
``b_ref`` reproduces. Their attacks detach the optimiser's result.

Keys of the noise: ``("level", i)``, ``("score", i)``; of form ``N`` ``("forward", 0)``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from defense.denoisers.levels import denoised_at, drawn_levels, sigma_of
from defense.errors import InvalidInput
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.optimised import Optimised, OptimizerName, SpreadConfig, SpreadOptimised, slope
from defense.randomness import Omega
from defense.samplers import EpsModel

__all__ = ["ScoreOptConfig", "ScoreOptN", "ScoreOptO"]


class ScoreOptO(SpreadOptimised):
    """Form ``O``: the image itself is optimised."""

    def gradient(self, i: int, u: Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Return the gradient of l; see the module."""
        t = drawn_levels(self.denoiser.schedule, self.low, self.high, omega, i, u)
        noise = sigma_of(self.denoiser.schedule, t, u) * omega.normal("score", i, u)

        def loss(u: Tensor) -> Tensor:
            apart = denoised_at(self.denoiser, u + noise, t, clip=self.clip) - u
            return apart.square().flatten(1).mean(1) / self.b_ref

        return slope(loss, u)


class ScoreOptN(Optimised):
    """Form ``N``: the noised image is optimised, so that its predicted noise is the noise that was added.

    Arguments:
        t: Level of s. The others are those of :class:`Optimised`.
    """

    def __init__(
        self,
        denoiser: EpsModel,
        t: int,
        iterations: int,
        lr: float,
        optimizer: OptimizerName = "adam",
        *,
        b_ref: int = 1,
        clip: bool = False,
    ) -> None:
        super().__init__(denoiser, iterations, lr, optimizer, b_ref=b_ref, clip=clip)
        self.t = t

    def first(self, x: Tensor, omega: Omega) -> Tensor:
        """v_0."""
        u = 2 * x - 1
        return u + sigma_of(self.denoiser.schedule, [self.t], u) * omega.normal("forward", 0, u)

    def gradient(self, i: int, u: Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Return the gradient of l; see the module."""
        t, e = [self.t] * len(u), omega.normal("forward", 0, u)
        sigma = sigma_of(self.denoiser.schedule, [self.t], u)

        def loss(u: Tensor) -> Tensor:
            apart = (u - denoised_at(self.denoiser, u, t, clip=self.clip)) / sigma - e
            return apart.square().flatten(1).mean(1) / self.b_ref

        return slope(loss, u)

    def images(self, u: Tensor, omega: Omega) -> Tensor:
        """The denoised image at the last state."""
        return (denoised_at(self.denoiser, u, [self.t] * len(u), clip=self.clip) + 1) / 2


@PURIFIERS.register("score-opt")
class ScoreOptConfig(SpreadConfig):
    """ScoreOpt: a few optimiser steps on a score-matching loss of the image.

    Arguments:
        form: ``O`` (the image is optimised) or ``N`` (the noised image is).
        iterations: By default 5 for ``O`` and 20 for ``N``.
        spread: Of form ``O``.
    """

    purifier: Literal["score-opt"] = "score-opt"
    form: Literal["O", "N"] = "O"
    spread: float = Field(ge=0)

    @model_validator(mode="before")
    @classmethod
    def _of_the_form(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        noised = data.get("form", "O") == "N"
        return {"iterations": 20 if noised else 5, "spread": 0.0 if noised else 0.05, **data}

    @model_validator(mode="after")
    def _one_level_of_n(self) -> ScoreOptConfig:
        if self.form == "N" and self.spread:
            raise InvalidInput("spread belongs to form O; form N has one noise level.", keys=("spread",))
        return self

    @property
    def evaluations(self) -> int:
        """One per step, and one for the output of form ``N``."""
        return self.iterations + (self.form == "N")

    def _form(self) -> str:
        return f" {self.form}"

    def build(self, models: Models | None = None) -> Optimised:
        """Load the denoiser."""
        denoiser = (models or Models()).load(self.denoiser)
        if self.form == "N":
            return ScoreOptN(
                denoiser,
                self.t_star,
                self.iterations,
                self.lr,
                self.optimizer,
                b_ref=self.b_ref,
                clip=self.clip_denoised,
            ).eval()
        return self.chain(ScoreOptO, denoiser)
