r"""Diffusion purifiers that choose the noise level of each image by the image.

.. math:: t = t(x, \omega), \qquad z = \sqrt{\bar\alpha_t}\,(2x-1) + \sqrt{1-\bar\alpha_t}\,\epsilon, \qquad
          D(x) = (R_t(z) + 1)/2

with :math:`R_t` a reverse process on a grid of the image's own, from t to 0 in min(K, t) steps. The images of a batch
walk side by side: in step j each leaves the j-th level of its grid, and one that has arrived waits. Where all images
have one level it is :class:`~defense.purifiers.diffusion.Diffusion`, bit for bit.

**The state** is the image and t in one vector, so that :mod:`defense.gradients` walks back through the choice as
through any other step. First come the steps that choose (``preparations`` of them), then the reverse process.

**The gradient of the choice.** t is a whole number, so that its derivative is zero almost everywhere: that is the
exact gradient, and what these defences gain from it is gradient masking. In the gradient mode ``soft`` it has the
gradient of the number before rounding (straight-through), through :math:`\log\bar\alpha`, interpolated, and through
the time that the network is told.

Keys of the noise: ``("forward", 0)``, and ``("reverse", t)`` for the step that leaves level t, as in ``diffpure``.
"""

import copy
from abc import abstractmethod
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from defense.errors import InvalidInput
from defense.guidance import Guidance
from defense.purifiers.base import IterativePurifier
from defense.purifiers.diffusion import moved
from defense.purifiers.reverse import StandardReverseConfig
from defense.purifiers.soft import with_gradient_of
from defense.randomness import Omega
from defense.samplers import EpsModel, Sampler, forward_noise, time_grid
from defense.schedules import Levels, Schedule

__all__ = ["PerImageConfig", "PerImageDiffusion"]


class PerImageDiffusion(IterativePurifier):
    """Noise each image to a level of its own, then reverse.

    Arguments:
        denoiser: Noise predictor with ``at_levels``.
        sampler: What the reverse process is; its grid is replaced by that of each image.
        most: The largest level that can be chosen.
        steps: K, reverse steps of an image at most.
        guidance: Guidance of the reverse steps.
        clamp: Clamp the result to [0, 1].
    """

    def __init__(
        self,
        denoiser: EpsModel,
        sampler: Sampler,
        *,
        most: int,
        steps: int,
        guidance: Guidance | None = None,
        clamp: bool = False,
    ) -> None:
        super().__init__()
        denoiser.schedule.level(most)
        self.denoiser: Any = denoiser
        self.sampler = sampler
        self.most = most
        self.steps = min(steps, most)
        self.guidance = guidance
        self.clamp = clamp
        self.straight_through = False

    @property
    @abstractmethod
    def preparations(self) -> int:
        """Number of steps that choose the level."""

    @abstractmethod
    def prepare(self, i: int, a: Tensor, t: Tensor, x: Tensor, omega: Omega) -> tuple[Tensor, Tensor]:
        """Return what the choice knows after preparation ``i``.

        Arguments:
            i: 0 to ``preparations - 1``.
            a: What it knew before, of the shape of images; zero at first.
            t: Levels of the images, shape (B,), zero at first. After the last preparation they are whole numbers from
                1 to ``most``.
            x: The purifier's input.
            omega: Randomness.
        """

    def noised(self, a: Tensor, abar: float | Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Return the state at the levels that were chosen: by default the input, noised to ``abar``."""
        z0 = 2 * x - 1
        return forward_noise(z0, abar, omega.normal("forward", 0, z0))

    def rounded(self, t: Tensor) -> Tensor:
        """Return whole numbers; with the gradient of ``t`` where that is asked for, without one otherwise."""
        whole = t.detach().round()
        return with_gradient_of(whole, t) if self.straight_through else whole

    @property
    def length(self) -> int:
        """Preparations and reverse steps."""
        return self.preparations + self.steps

    def surrogate(self, steps: int) -> Self:
        """Return the same with at most ``steps`` reverse steps; the choice stays."""
        other = copy.copy(self)
        other.steps = min(steps, self.steps)
        return other

    def softened(self) -> Self:
        """Return the same with the straight-through gradient of the choice."""
        other = copy.copy(self)
        other.straight_through = True
        return other

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        """Return the state in which nothing is known, and no level chosen."""
        return _packed(torch.zeros_like(x), x.new_zeros(len(x)))

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        """One step of the choice, or of the reverse process."""
        a, t = z[:, :-1].view_as(x), z[:, -1] if self.straight_through else z[:, -1].detach()
        if i < self.preparations:
            a, t = self.prepare(i, a, t, x, omega)
            if i == self.preparations - 1:
                schedule = self.denoiser.schedule
                levels = schedule.levels(t, followed=self.straight_through)
                # Of one level the number, not its tensor: the bits of Diffusion on every device.
                abar = levels.abar if levels.shared is None else float(schedule.abar[levels.shared])
                a = self.noised(a, abar, x, omega)
            return _packed(a, t)
        return _packed(self._reversed(i - self.preparations, a, t, x, omega, guidance_path), t)

    def _reversed(self, j: int, z: Tensor, t: Tensor, x: Tensor, omega: Omega, guidance_path: bool) -> Tensor:
        tops = [int(top) for top in t.detach().round().tolist()]
        moving = [place for place, top in enumerate(tops) if j < min(self.steps, top)]
        if not moving:
            return z
        grids = [time_grid(tops[place], min(self.steps, tops[place])) for place in moving]
        everywhere = len(moving) == len(z)
        part = z if everywhere else z[moving]
        seen, keys = (x, omega) if everywhere else (x[moving], omega.select(moving))
        top = t if everywhere else t[moving]
        left, reached = self._levels(top, grids, j), self._levels(top, grids, j + 1)
        level: int | Levels = left
        if len({tuple(grid) for grid in grids}) == 1 and left.shared is not None:
            sampler, place, level = self.sampler.on(grids[0]), j, left.shared
        else:
            sampler, place = self.sampler.along([left, reached]), 0
        after = self._stepped(sampler, place, level, left.steps, part, seen, keys, guidance_path)
        return after if everywhere else z.index_copy(0, torch.tensor(moving, device=z.device), after)

    def _levels(self, top: Tensor, grids: list[list[int]], j: int) -> Levels:
        """The j-th level of each grid, with the gradient of the level at which the grid begins."""
        whole = torch.tensor([grid[j] for grid in grids], device=top.device, dtype=torch.float64)
        if top.requires_grad and torch.is_grad_enabled():
            share = torch.tensor([1 - j / (len(grid) - 1) for grid in grids], device=top.device, dtype=torch.float64)
            whole = with_gradient_of(whole, share * top.double())
        levels: Levels = self.denoiser.schedule.levels(whole, followed=self.straight_through)
        return levels

    def _stepped(
        self,
        sampler: Sampler,
        j: int,
        level: int | Levels,
        keys: tuple[int, ...],
        z: Tensor,
        x: Tensor,
        omega: Omega,
        guidance_path: bool,
    ) -> Tensor:
        z, std = moved(
            self.denoiser, self.guidance, sampler, j, level, z, x, omega, keys, guidance_path=guidance_path
        )
        if isinstance(std, Tensor) or std > 0:
            z = z + std * omega.normal_at("reverse", keys, z)
        return z

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Back to [0, 1] pixels."""
        y = (z[:, :-1].view_as(x) + 1) / 2
        return y.clamp(0, 1) if self.clamp else y

    def with_levels(self, x: Tensor, omega: Omega) -> tuple[Tensor, tuple[int, ...]]:
        """See :class:`~defense.purifiers.base.Purifier`."""
        z = self.start(x, omega)
        for i in range(self.length):
            z = self.step(i, z, x, omega)
        return self.finish(z, x, omega), tuple(int(t) for t in z[:, -1].detach().round().tolist())


def _packed(a: Tensor, t: Tensor) -> Tensor:
    return torch.cat([a.flatten(1), t.to(a.dtype).unsqueeze(1)], dim=1)


class PerImageConfig(StandardReverseConfig):
    """DiffPure from a level of each image's own.

    Arguments:
        steps: Reverse steps of an image at most, by default one a level.
    """

    steps: int = Field(ge=1)
    clip_denoised: bool = False

    @model_validator(mode="after")
    def _one_variance_fits_all(self) -> Self:
        if self.variance == "learned":
            raise InvalidInput("variance learned takes one level for a batch: write `variance: small` or `large`.")
        return self

    @property
    def diffuses(self) -> bool:
        """False: the forward process of an image is known only when its level is chosen."""
        return False

    @property
    def schedule_of_levels(self) -> Schedule:
        """The denoiser's."""
        return self.denoiser.noise_schedule

    def stepped_label(self, name: str, most: int) -> str:
        """Return a label with the number of steps where it is not ``most``, and the form where it is not DDPM."""
        short = name if self.steps == most else f"{name} in {self.steps} steps"
        return short if self.form == "ddpm" else f"{short} {self.form}"
