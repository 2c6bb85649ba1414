r"""FlowPure (arXiv 2505.13280): follow a learned velocity to the image, from noise or from the image that came.

**Gaussian FlowPure.** The network v is trained on the straight path from a noised to the clean image,
:math:`x_u = x_1 + s(1-u)\,n` with s = 0.3, in [0, 1] pixels. The input gets the noise of ``t_start``, and N Euler
steps lead to u = 1:

.. math:: x_{t_{start}} = x + (1-t_{start})\,s\,n, \qquad x_{u+\Delta} = x_u + \Delta\, v(u, x_u), \qquad
          \Delta = (1-t_{start})/N .

As :math:`v = -s\,n`, the network is a predictor of the noise at :math:`\sigma_{eq} = s(1-u)` and an Euler step is one
of DDIM: the purifier is that, on the schedule ``flowpure``, whose level t is u = 1 - t/1000, so that ``t_star`` is
:math:`1000\,(1-t_{start})`. The authors' t_start of 1/2 and 1/3 are sigma_eq 0.15 and 0.2. They count points of
time with both ends: the 10 of their defence and the 5 of their attack are 9 and 4 steps.

**FlowPure of an attack** (PGD- and CW-FlowPure). The network is trained on the straight path from an attacked to the
clean image (objective ``flowpure-attacked`` of ``puregrid train``). ``forward: none`` adds no noise, so that the same
steps lead from the image itself, by the authors from t_start = 0, and the purifier is deterministic. Nothing is left
that an attacker would have to average over: it is a layer of the classifier, learned against an attack on the rest.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from defense.errors import InvalidInput
from defense.levels import factor, root
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.reverse import ReverseConfig
from defense.randomness import Omega
from defense.samplers import DDIM, time_grid
from defense.schedules import NoiseLevel, Schedule
from defense.spec import Spelling

__all__ = ["FlowPureConfig"]


class _FromImage(Diffusion):
    """The same steps without noise: the image itself is what the network is asked about at ``t_start``."""

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        """Return the image in the units of the states."""
        z = 2 * x - 1
        state: Tensor = factor(root(self.rounds[0].abar(0)), z) * z
        return state


@PURIFIERS.register("flowpure")
class FlowPureConfig(ReverseConfig):
    """FlowPure: noise to ``t_start``, or none, then Euler steps of the learned velocity.

    Arguments:
        t_star: Level of the start; ``t_start``, from 0 (the whole path) to below 1 (none of it), is another spelling.
        steps: Euler steps.
        forward: ``noise`` of the level first, or ``none``: of a network that was trained on attacked images.
    """

    # Rows from before there was a choice.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"forward": ("noise",)}

    spellings: ClassVar[Mapping[str, Spelling]] = {
        **ReverseConfig.spellings,
        "t_start": Spelling("t_star", "the time at which the flow starts, from 0 to below 1, like 0.5"),
    }
    purifier: Literal["flowpure"] = "flowpure"
    steps: int = Field(default=10, ge=1)
    clip_denoised: bool = False
    forward: Literal["noise", "none"] = "noise"

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

    @property
    def stochastic(self) -> bool:
        """False without noise."""
        return self.forward == "noise"

    @property
    def noise_level(self) -> NoiseLevel | None:
        """None without noise."""
        return super().noise_level if self.forward == "noise" else None

    def label(self) -> str:
        """``flowpure t_start=0.5 in 10 steps``."""
        start = "" if self.forward == "noise" else " from the image"
        return f"flowpure t_start={1 - self.t_star / 1000:g} in {self.steps} steps{start}"

    def build(self, models: Models | None = None) -> Diffusion:
        """Load the network."""
        grid = time_grid(self.t_star, self.steps)
        sampler = DDIM(self.denoiser.noise_schedule, grid, clip=self.clip_denoised)
        kind = Diffusion if self.forward == "noise" else _FromImage
        return kind((models or Models()).load(self.denoiser), [sampler]).eval()
