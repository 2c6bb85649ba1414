r"""Gaussian FlowPure ("FlowPure", arXiv 2505.13280): noise, then follow a learned velocity to the image.

The network v is trained on the straight path from a noised to the clean image, :math:`x_u = x_1 + s(1-u)\,n` with
s = 0.3, in [0, 1] pixels. The input gets the noise of ``t_start``, and N Euler steps lead to u = 1:

.. math:: x_{t_{start}} = x + (1-t_{start})\,s\,n, \qquad x_{u+\Delta} = x_u + \Delta\, v(u, x_u), \qquad
          \Delta = (1-t_{start})/N .

As :math:`v = -s\,n`, the network is a predictor of the noise at :math:`\sigma_{eq} = s(1-u)` and an Euler step is one
of
DDIM: the purifier is that, on the schedule ``flowpure``, whose level t is u = 1 - t/1000, so that ``t_star`` is
:math:`1000\,(1-t_{start})`. The authors' t_start of 1/2 and 1/3 are sigma_eq 0.15 and 0.2, with 10 steps; their
attack runs 5.

The variants of the paper that learn the way back from attacked images (PGD- and CW-FlowPure) are
deterministic, and not this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from defense.errors import InvalidInput
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.reverse import ReverseConfig
from defense.samplers import DDIM, time_grid
from defense.schedules import Schedule
from defense.spec import Spelling

__all__ = ["FlowPureConfig"]


@PURIFIERS.register("flowpure")
class FlowPureConfig(ReverseConfig):
    """Gaussian FlowPure: noise to ``t_start``, Euler steps of the learned velocity.

    Arguments:
        t_star: Noise level; ``t_start``, from 0 (all noise) to below 1 (none), is another spelling of it.
        steps: Euler steps.
    """

    spellings: ClassVar[Mapping[str, Spelling]] = {
        **ReverseConfig.spellings,
        "t_start": Spelling("t_star", "the time at which the flow starts, from 0 to below 1, like 0.5"),
    }
    purifier: Literal["flowpure"] = "flowpure"
    steps: int = Field(default=10, ge=1)
    clip_denoised: bool = False

    @model_validator(mode="after")
    def _is_a_flow(self) -> Self:
        if self.denoiser.schedule != "flowpure":
            raise InvalidInput(
                f"denoiser is on schedule {self.denoiser.schedule!r}: flowpure takes one on `schedule: flowpure` "
                "(`prediction: flowpure`); with another network this is `diffpure` with `form: ddim`.",
                keys=("denoiser",),
            )
        return self

    @classmethod
    def _schedule(cls, data: dict[str, Any]) -> Schedule:
        if "t_start" in data:
            start = data.pop("t_start")
            if isinstance(start, bool) or not isinstance(start, int | float) or not 0 <= start < 1:
                raise InvalidInput(f"t_start = {start!r}: the flow starts at a time from 0 to below 1, like 0.5.")
            if data.get("t_star") is not None or data.get("sigma_eq") is not None:
                raise InvalidInput("t_start is the noise level: leave `t_star` and `sigma_eq` out.")
            data["t_star"] = round(1000 * (1 - start))
            data["schedule"] = "flowpure"
        return super()._schedule(data)

    @property
    def evaluations(self) -> int:
        """One a step."""
        return self.steps

    def label(self) -> str:
        """``flowpure t_start=0.5 in 10 steps``."""
        return f"flowpure t_start={1 - self.t_star / 1000:g} in {self.steps} steps"

    def build(self, models: Models | None = None) -> Diffusion:
        """Load the network."""
        grid = time_grid(self.t_star, self.steps)
        sampler = DDIM(self.denoiser.noise_schedule, grid, clip=self.clip_denoised)
        return Diffusion((models or Models()).load(self.denoiser), [sampler]).eval()
