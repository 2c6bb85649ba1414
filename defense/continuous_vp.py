r"""Euler steps of the reverse VP-SDE and its probability flow in continuous time, as DiffPure's public code has them.

Levels are :math:`\bar\alpha(t/1000)` of ``vp-continuous`` whatever the schedule, the last step ends at 1e-5, and
:math:`\Delta = \beta(t)\,(t - s)/1000` with :math:`\beta` at the level that the step leaves, in the formulas of
:mod:`defense.samplers`.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from defense.errors import InvalidInput
from defense.samplers import Sampler, Transition
from defense.schedules import Schedule, vp_abar

__all__ = ["ContinuousVP"]


class ContinuousVP(Sampler):
    r"""Euler steps of the reverse VP-SDE, or of its probability flow, in continuous time.

    Source: the public code of Nie et al. (DiffPure), ``RevVPSDE`` with torchsde's ``euler``. A network that counts
    discrete levels from 0 gets the index :math:`\lfloor 1000 t \rfloor` there, which is the level above that of its
    state: ``shift = 1``. (In float32 that index is now and then one less: 3 times in the 325 steps of t* = 75, 100
    and 150.)

    Arguments:
        schedule: The network's.
        grid: See :class:`Sampler`, in units of 1/1000.
        flow: Follow the probability flow instead of the SDE.
        shift: The network is asked at this many levels above the state's.
        clip: See :class:`Sampler`.

    Raises:
        InvalidInput: The network has no level that high.
    """

    END = 1e-5
    """Time at which the last step ends."""

    def __init__(
        self, schedule: Schedule, grid: Sequence[int], *, flow: bool = False, shift: int = 0, clip: bool = False
    ) -> None:
        super().__init__(schedule, grid, clip=clip)
        if grid[0] + shift > schedule.steps:
            raise InvalidInput(
                f"t_star = {grid[0]} asks the network at level {grid[0] + shift} of {schedule.name!r}, which ends at "
                f"{schedule.steps}: take a smaller t_star, or `time: schedule`."
            )
        self.flow = flow
        self.shift = shift

    def _time(self, t: int) -> float:
        return max(t / 1000, self.END)

    def _abar_of(self, t: int) -> float:
        return float(vp_abar(self._time(t)))

    def asked(self, i: int) -> int:
        """See the class."""
        return self.grid[i] + self.shift

    def transition(self, i: int, z: Tensor, eps: Tensor, v: Tensor | None = None) -> Transition:
        """See :class:`Sampler`."""
        t, s = self._time(self.grid[i]), self._time(self.grid[i + 1])
        delta = (0.1 + 19.9 * t) * (t - s)
        if self.flow:
            return Transition(z + delta / 2 * (z + self.score(i, z, eps)), 0.0, delta / 2)
        return Transition(z + delta * (0.5 * z + self.score(i, z, eps)), math.sqrt(delta), delta)
