r"""Fixed-step samplers of the reverse process, on a time grid that is known before they start.

Every sampler is a chain of Gaussian transitions from level t to s < t. With
:math:`\alpha = \bar\alpha_t / \bar\alpha_s`,
:math:`\hat z_0 = (z_t - \sqrt{1-\bar\alpha_t}\,\epsilon_\theta) / \sqrt{\bar\alpha_t}`, the score
:math:`-\epsilon_\theta/\sqrt{1-\bar\alpha_t}` and :math:`\Delta = \log(\bar\alpha_s/\bar\alpha_t)`:

* ancestral (Ho et al., arXiv 2006.11239, equations 6 and 7, for any pair of levels):

  .. math:: z_s = \frac{\sqrt{\bar\alpha_s}(1-\alpha)}{1-\bar\alpha_t} \hat z_0
            + \frac{\sqrt{\alpha}(1-\bar\alpha_s)}{1-\bar\alpha_t} z_t + \sigma n,

  with :math:`\sigma^2` ``small`` :math:`\tilde\beta = (1-\alpha)(1-\bar\alpha_s)/(1-\bar\alpha_t)`, ``large``
  :math:`\beta = 1-\alpha`, or ``learned``
  :math:`\exp(\tfrac{v+1}{2}\log\beta + \tfrac{1-v}{2}\log\tilde\beta)` with v from the network
  (Nichol and Dhariwal, arXiv 2102.09672, equation 15; at the last step, where :math:`\tilde\beta = 0`, that of the
  step before stands for it);
* DDIM (Song et al., arXiv 2010.02502, equation 12), which ``eta = 1`` turns into ancestral ``small``:

  .. math:: z_s = \sqrt{\bar\alpha_s} \hat z_0 + c_1 n + \sqrt{1-\bar\alpha_s-c_1^2}\,\epsilon_\theta,\quad
            c_1 = \eta\,\sqrt{\tfrac{1-\bar\alpha_s}{1-\bar\alpha_t}\left(1-\alpha\right)};

* Euler-Maruyama on the reverse VP-SDE (Song et al., arXiv 2011.13456, equation 6) in the time
  :math:`\int\beta = -\log\bar\alpha`, which makes one formula of all schedules:

  .. math:: z_s = z_t + \Delta\left(\tfrac12 z_t + \text{score}\right) + \sqrt\Delta\, n;

* Euler on the probability-flow ODE (equation 13 there):
  :math:`z_s = z_t + \tfrac\Delta2 (z_t + \text{score})`;

* both in the time of the continuous VP process: :mod:`defense.continuous_vp`.

A grid of two levels, t and 0, is one-shot denoising. No noise enters the last step of ancestral and DDIM; the SDE
has its noise in every step.

``forward_abar`` is the level to which a round noises before the process. It is that of the first level of the grid,
unless :meth:`Sampler.noised_to` says otherwise, as some public code has it.

``gain`` says how far a term added to the score moves the mean: guidance by :math:`-s\nabla G` shifts the mean by
``-gain * s * grad G``. It is :math:`\sigma^2` for ancestral steps (Dhariwal and Nichol, arXiv 2105.05233, algorithm
1), :math:`\Delta` and :math:`\Delta/2` for SDE and ODE, and for DDIM what replacing :math:`\epsilon` by
:math:`\epsilon - \sqrt{1-\bar\alpha_t}\,(-s\nabla G)` amounts to (algorithm 2 there). The code of Ho et al. stores
:math:`\tilde\beta` of the step before in the last place of its ``large`` variances, which is of no effect where the
last step has no noise, but decides its ``gain``: ``last_gain = "posterior"``.
"""

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from defense.errors import InvalidInput
from defense.levels import factor, log, root
from defense.schedules import Levels, Schedule

__all__ = [
    "DDIM",
    "Ancestral",
    "EpsModel",
    "LastGain",
    "ProbabilityFlow",
    "ReverseSDE",
    "Sampler",
    "Transition",
    "Variance",
    "forward_noise",
    "predicted_z0",
    "time_grid",
]

Variance = Literal["small", "large", "learned"]
LastGain = Literal["own", "posterior"]


class EpsModel(Protocol):
    """A denoiser: predicts the noise in ``z`` at level ``t`` of its schedule."""

    schedule: Schedule

    def __call__(self, z: Tensor, t: int) -> Tensor:
        """Return the predicted noise, shape of ``z``."""
        ...

    def at_levels(self, z: Tensor, levels: Levels) -> Tensor:
        """Return it where each image has a level of its own."""
        ...


def time_grid(t_star: int, steps: int | None = None) -> list[int]:
    """Return the levels visited by the reverse process: t_star, ..., 0, as evenly spaced as integers allow.

    Arguments:
        t_star: Level at which the reverse process starts, at least 1.
        steps: Number of reverse steps, 1 to ``t_star``; by default all of them.

    Raises:
        InvalidInput: More steps than levels, or none.
    """
    steps = t_star if steps is None else steps
    if not 1 <= steps <= t_star:
        raise InvalidInput(f"steps = {steps} does not fit t_star = {t_star}: it takes 1 to t_star reverse steps.")
    return [round(t_star * (steps - i) / steps) for i in range(steps + 1)]


def forward_noise(z0: Tensor, abar: float | Tensor, noise: Tensor) -> Tensor:
    """``sqrt(abar) z0 + sqrt(1 - abar) noise``; ``abar`` is one number, or one an image (:mod:`defense.levels`)."""
    noised: Tensor = factor(root(abar), z0) * z0 + factor(root(1 - abar), z0) * noise
    return noised


def predicted_z0(z: Tensor, eps: Tensor, abar: float | Tensor, clip: bool) -> Tensor:
    """Return the clean image that ``eps`` implies at level ``abar``, clamped to [-1, 1] if ``clip``."""
    z0: Tensor = (z - factor(root(1 - abar), z) * eps) / factor(root(abar), z)
    return z0.clamp(-1, 1) if clip else z0


@dataclass(frozen=True)
class Transition:
    """The law of the next state, ``N(mean, std^2)``, before guidance.

    Arguments:
        mean: Shape (B, ...).
        std: Standard deviation of the noise of this step; 0 for none.
        gain: Shift of the mean per unit added to the score.
    """

    mean: Tensor
    std: float | Tensor
    gain: float | Tensor


class Sampler(ABC):
    """A reverse process on a fixed grid.

    Arguments:
        schedule: Noise schedule.
        grid: Falling levels that end with 0, see :func:`time_grid`.
        clip: Clamp the predicted clean image to [-1, 1] at every step.
    """

    learned = False
    """Whether transitions take the network's variance output."""

    _individual = False
    """Whether each image has levels of its own."""

    def __init__(self, schedule: Schedule, grid: Sequence[int], *, clip: bool = False) -> None:
        self.schedule = schedule
        self.clip = clip
        self._lay(grid)
        self.forward_abar: Any = self._levels[0][0]

    def _lay(self, grid: Sequence[int]) -> None:
        if len(grid) < 2 or grid[-1] != 0 or any(t <= s for t, s in itertools.pairwise(grid)):
            raise InvalidInput(f"a time grid falls and ends with 0; {list(grid)} does not.")
        self.schedule.level(grid[0])
        self.grid = tuple(grid)
        self._levels: list[tuple[Any, Any]] = [
            (self._abar_of(t), self._abar_of(s)) for t, s in itertools.pairwise(grid)
        ]

    def _abar_of(self, t: int) -> float:
        return float(self.schedule.abar[t])

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.grid) - 1

    def abar(self, i: int) -> Any:
        """Abar at the level that step ``i`` leaves."""
        return self._levels[i][0]

    def abar_after(self, i: int) -> Any:
        """Abar at the level that step ``i`` reaches."""
        return self._levels[i][1]

    def asked(self, i: int) -> int:
        """Return the level at which the network is asked in step ``i``: the one that the step leaves."""
        return self.grid[i]

    def respaced(self, steps: int) -> Self:
        """Return the same sampler from the same level in fewer steps."""
        return self.on(time_grid(self.grid[0], min(steps, self.grid[0])))

    def on(self, grid: Sequence[int]) -> Self:
        """Return the same sampler on another grid; rounds noise to the level that they did."""
        other = copy.copy(self)
        other._lay(grid)
        return other

    def along(self, grid: Sequence[Levels]) -> Self:
        """Return the same process on a grid of levels that each image has for itself.

        Arguments:
            grid: Falling levels; each image is at level 0 after its last step and takes no further one: who calls
                :meth:`transition` leaves out the images that are there.
        """
        if self.learned or getattr(self, "last_gain", "own") != "own":
            raise InvalidInput(
                "a process whose last variance is that of the step before takes one level for a batch."
            )
        other = copy.copy(self)
        other._levels = [(t.abar, s.abar) for t, s in itertools.pairwise(grid)]
        other._individual = True
        other.forward_abar = grid[0].abar
        return other

    def select(self, places: Sequence[int]) -> Self:
        """Return the process of :meth:`along` for the images at some places."""
        other = copy.copy(self)
        other._levels = [(t[places], s[places]) for t, s in self._levels]
        return other

    def noised_to(self, abar: float) -> Self:
        """Return the same process for rounds that noise to ``abar``, not to the level at which the process starts."""
        other = copy.copy(self)
        other.forward_abar = abar
        return other

    @abstractmethod
    def transition(self, i: int, z: Tensor, eps: Tensor, v: Tensor | None = None) -> Transition:
        """Return the step ``i``, which leaves level ``grid[i]`` for ``grid[i + 1]``.

        Arguments:
            i: Step, 0 to ``len(self) - 1``.
            z: State at level ``grid[i]``, shape (B, ...), diffusion units ([-1, 1] images).
            eps: Predicted noise, shape of ``z``.
            v: The network's variance output in [-1, 1], shape of ``z``, if it has one.
        """

    def score(self, i: int, z: Tensor, eps: Tensor) -> Tensor:
        """Return the score at the level that step ``i`` leaves, of the clamped prediction if ``clip``."""
        abar = self.abar(i)
        score: Tensor
        if self.clip:
            z0 = predicted_z0(z, eps, abar, True)
            score = (factor(root(abar), z) * z0 - z) / factor(1 - abar, z)
        else:
            score = eps / factor(-root(1 - abar), z)
        return score


class Ancestral(Sampler):
    """Ancestral sampling; see the module, and :class:`Sampler` for the other arguments.

    Arguments:
        variance: ``small``, ``large`` or ``learned``.
        last_gain: Gain of the last step with variance ``large``: its ``own`` beta, or the ``posterior`` variance of
            the step before.
    """

    def __init__(
        self,
        schedule: Schedule,
        grid: Sequence[int],
        *,
        variance: Variance = "small",
        clip: bool = False,
        last_gain: LastGain = "own",
    ) -> None:
        super().__init__(schedule, grid, clip=clip)
        self.variance: Variance = variance
        self.learned = variance == "learned"
        self.last_gain: LastGain = last_gain

    def transition(self, i: int, z: Tensor, eps: Tensor, v: Tensor | None = None) -> Transition:
        """See :class:`Sampler`."""
        abar_t, abar_s = self._levels[i]
        alpha = abar_t / abar_s
        beta = 1 - alpha
        z0 = predicted_z0(z, eps, abar_t, self.clip)
        mean = (factor(root(abar_s) * beta, z) * z0 + factor(root(alpha) * (1 - abar_s), z) * z) / factor(
            1 - abar_t, z
        )
        small = beta * (1 - abar_s) / (1 - abar_t)
        variance: float | Tensor
        if self.variance == "learned":
            if v is None:
                raise InvalidInput(
                    "variance learned: this denoiser has no variance output; write `variance: small` or `large`."
                )
            low = small or self._small(i - 1) if i else small or beta
            variance = ((v + 1) / 2 * math.log(beta) + (1 - v) / 2 * math.log(low)).exp()
            return Transition(mean, variance.sqrt() if i < len(self) - 1 else 0.0, variance)
        variance = beta if self.variance == "large" else small
        if self._individual:
            std = torch.where(abar_s < 1, root(variance), 0.0)
            return Transition(mean, factor(std, z), factor(variance, z))
        if i < len(self) - 1:
            return Transition(mean, math.sqrt(variance), variance)
        if self.variance == "large" and self.last_gain == "posterior" and i:  # a single step has none before it
            return Transition(mean, 0.0, self._small(i - 1))
        return Transition(mean, 0.0, variance)

    def _small(self, i: int) -> float:
        abar_t, abar_s = self._levels[i]
        return float((1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t))


class DDIM(Sampler):
    """DDIM; see the module, and :class:`Sampler` for the other arguments.

    Arguments:
        eta: 0 (deterministic) to 1 (ancestral ``small``).
    """

    def __init__(self, schedule: Schedule, grid: Sequence[int], *, eta: float = 0.0, clip: bool = False) -> None:
        super().__init__(schedule, grid, clip=clip)
        if not 0 <= eta <= 1:
            raise InvalidInput(f"eta = {eta} is outside [0, 1]: 0 is deterministic DDIM, 1 is ancestral sampling.")
        self.eta = eta

    def transition(self, i: int, z: Tensor, eps: Tensor, v: Tensor | None = None) -> Transition:
        """See :class:`Sampler`."""
        abar_t, abar_s = self._levels[i]
        z0 = predicted_z0(z, eps, abar_t, self.clip)
        to_z0 = root(1 - abar_t) / root(abar_t)
        if i == len(self) - 1 and not self._individual:
            return Transition(z0, 0.0, math.sqrt(1 - abar_t) * to_z0)
        if self.clip:  # the noise that the clamped image implies, so that z_t is still their mixture
            eps = (z - factor(root(abar_t), z) * z0) / factor(root(1 - abar_t), z)
        c1, c2 = self._shares(i)
        mean = factor(root(abar_s), z) * z0 + factor(c2, z) * eps
        gain = root(1 - abar_t) * (root(abar_s) * to_z0 - c2)
        return Transition(mean, factor(c1, z), factor(gain, z))

    def _shares(self, i: int) -> tuple[Any, Any]:
        """Return the factors of fresh and of predicted noise."""
        abar_t, abar_s = self._levels[i]
        c1 = self.eta * root((1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s))
        rest = 1 - abar_s - c1 * c1
        return c1, root(rest.clamp(min=0)) if self._individual else math.sqrt(max(rest, 0.0))

    def from_denoised(self, i: int, z0: Tensor, eps: Tensor) -> Transition:
        """Return step ``i`` from a clean image that need not be the one that ``eps`` implies.

        Arguments:
            i: See :meth:`transition`.
            z0: Clean image, diffusion units.
            eps: Predicted noise.
        """
        if i == len(self) - 1:
            return Transition(z0, 0.0, 0.0)
        c1, c2 = self._shares(i)
        return Transition(math.sqrt(self.abar_after(i)) * z0 + c2 * eps, c1, 0.0)


class ReverseSDE(Sampler):
    """Euler-Maruyama on the reverse VP-SDE; see the module."""

    def transition(self, i: int, z: Tensor, eps: Tensor, v: Tensor | None = None) -> Transition:
        """See :class:`Sampler`."""
        abar_t, abar_s = self._levels[i]
        delta = log(abar_s / abar_t)
        step = factor(delta, z)
        return Transition(z + step * (0.5 * z + self.score(i, z, eps)), factor(root(delta), z), step)


class ProbabilityFlow(Sampler):
    """Euler on the probability-flow ODE; see the module."""

    def transition(self, i: int, z: Tensor, eps: Tensor, v: Tensor | None = None) -> Transition:
        """See :class:`Sampler`."""
        abar_t, abar_s = self._levels[i]
        half = factor(log(abar_s / abar_t) / 2, z)
        return Transition(z + half * (z + self.score(i, z, eps)), 0.0, half)
