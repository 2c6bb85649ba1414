r"""Gradual noise (Lee and Kim, "Robust evaluation of diffusion-based adversarial purification", ICCV 2023).

.. math:: y_0 = x, \qquad y_r = D_{t_r}(y_{r-1}), \qquad D(x) = y_m

with :math:`D_t` DiffPure at t* = t, small t* first: for CIFAR-10 the values 30, 30, 30, 30, 50, 50, 125, 125
(the last two 200 for ImageNet, 80 for SVHN), each reversed in full, and a vote of ten draws. The authors' code does
not clamp the predicted clean image (``clip_denoised``).
"""

from typing import Any, Literal

from pydantic import Field

from defense.errors import InvalidInput
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.reverse import StandardReverseConfig
from defense.schedules import Schedule

__all__ = ["GradualNoiseConfig"]


@PURIFIERS.register("gradual-noise")
class GradualNoiseConfig(StandardReverseConfig):
    """Rounds of DiffPure of growing t*.

    Arguments:
        depths: t_star of each round.
        steps: Reverse steps of a round at most; by default each round takes t* steps.
    """

    purifier: Literal["gradual-noise"] = "gradual-noise"
    depths: tuple[int, ...] = (30, 30, 30, 30, 50, 50, 125, 125)
    steps: int = Field(ge=1)
    clip_denoised: bool = False

    @classmethod
    def _schedule(cls, data: dict[str, Any]) -> Schedule:
        depths, t_star = data.get("depths"), data.get("t_star")
        ints = isinstance(depths, tuple | list) and all(type(t) is int for t in depths)
        derived = ints and t_star == max(depths or (), default=None)
        # Its identity holds the t_star that it derived itself.
        if (t_star is not None and not derived) or data.get("sigma_eq") is not None:
            raise InvalidInput("`depths` replaces t_star: gradual-noise has one t* per round. Remove t_star.")
        if data.get("schedule") is None:
            raise InvalidInput(
                f"`depths` is given without `schedule`; write `schedule: {data['denoiser'].schedule}`, which this "
                "denoiser was trained on."
            )
        return super()._schedule(data)

    @classmethod
    def _fill_t_star(cls, data: dict[str, Any], schedule: Schedule) -> None:
        depths = data.get("depths", cls.model_fields["depths"].default)
        if not isinstance(depths, tuple | list) or not depths or not all(type(t) is int and t >= 1 for t in depths):
            raise InvalidInput(f"depths is a list of whole numbers of noising steps, at least 1, not {depths!r}.")
        data["depths"] = tuple(depths)
        data["t_star"] = max(depths)
        schedule.level(max(depths))
        data.setdefault("steps", max(depths))

    def _rounds(self) -> list[tuple[int, int]]:
        return [(t_star, min(self.steps, t_star)) for t_star in self.depths]

    @property
    def evaluations(self) -> int:
        """Reverse steps of all rounds."""
        return sum(steps for _, steps in self._rounds())

    def t_star_label(self) -> str:
        """``t*=30,30,...``."""
        runs = ",".join(map(str, self.depths))
        return f"t*={runs}" if self.steps >= max(self.depths) else f"t*={runs} in {self.steps} steps"

    def build(self, models: Models | None = None) -> Diffusion:
        """Load the denoiser."""
        rounds = [self.sampler(t_star, steps) for t_star, steps in self._rounds()]
        return Diffusion((models or Models()).load(self.denoiser), rounds).eval()
