"""The closed-form denoiser of data whose law is known, as a sweep file names it.

Its noise prediction is that of :mod:`defense.oracles`: every pixel independently follows the same 1-D Gaussian
mixture. With it, what a purifier, an attack or a certificate gives can be compared with what it must give.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from defense.denoisers.base import DENOISERS, Denoiser, DenoiserConfig
from defense.denoisers.network import as_tuple
from defense.errors import InvalidInput
from defense.oracles import GaussianMixtureDenoiser
from defense.schedules import Levels, get_schedule

__all__ = ["OracleConfig", "OracleDenoiser"]

_Positive = Annotated[float, Field(gt=0)]
_Size = Annotated[int, Field(ge=1)]


class OracleDenoiser(Denoiser):
    """A :class:`~defense.oracles.GaussianMixtureDenoiser` behind the interface of denoisers.

    Arguments:
        oracle: The closed form.
        image_shape: (C, H, W) of its images, None for any.
    """

    def __init__(self, oracle: GaussianMixtureDenoiser, image_shape: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.oracle = oracle
        self.schedule = oracle.schedule
        self.image_shape = image_shape

    def forward(self, z: Tensor, t: int) -> Tensor:
        """Optimal noise prediction, see :class:`~defense.denoisers.base.Denoiser`."""
        return self.oracle(z, t)

    def at_levels(self, z: Tensor, levels: Levels) -> Tensor:
        """See :class:`~defense.denoisers.base.Denoiser`."""
        return self.oracle.at_levels(z, levels)


@DENOISERS.register("oracle")
class OracleConfig(DenoiserConfig):
    """The exact denoiser of pixels that independently follow one Gaussian mixture; no file.

    Arguments:
        format: ``"oracle"``.
        schedule: Noise schedule.
        weights: Mixture weights, positive, summing to 1.
        means: Component means, diffusion units (images in [-1, 1]).
        stds: Component standard deviations, positive, diffusion units.
        shape: (C, H, W) of the images; by default it takes any.
    """

    format: Literal["oracle"] = "oracle"
    weights: Annotated[tuple[_Positive, ...], BeforeValidator(as_tuple), Field(min_length=1)] = (1.0,)
    means: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (0.0,)
    stds: Annotated[tuple[_Positive, ...], BeforeValidator(as_tuple)] = (0.5,)
    shape: Annotated[tuple[_Size, _Size, _Size] | None, BeforeValidator(as_tuple)] = None

    @model_validator(mode="after")
    def _consistent(self) -> OracleConfig:
        counts = len(self.weights), len(self.means), len(self.stds)
        if len(set(counts)) > 1:
            raise InvalidInput(
                f"weights, means and stds have {counts[0]}, {counts[1]} and {counts[2]} values: a mixture takes one "
                "of each per component."
            )
        if abs(sum(self.weights) - 1) > 1e-9:
            raise InvalidInput(f"weights of a mixture sum to 1, not to {sum(self.weights):.10g}.")
        return self

    @property
    def sha256(self) -> None:
        """There is no file of weights."""
        return None

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """See :class:`~defense.denoisers.base.DenoiserConfig`."""
        return self.shape

    def resolved(self, base: Path) -> OracleConfig:
        """See :class:`~defense.denoisers.base.DenoiserConfig`."""
        get_schedule(self.schedule)
        return self

    def build(self) -> OracleDenoiser:
        """See :class:`~defense.denoisers.base.DenoiserConfig`."""
        oracle = GaussianMixtureDenoiser(get_schedule(self.schedule), self.weights, self.means, self.stds)
        return OracleDenoiser(oracle, self.shape).eval()
