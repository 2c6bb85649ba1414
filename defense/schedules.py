r"""Noise schedules: the share of the image that is left after t noising steps.

.. math:: z_t = \sqrt{\bar\alpha_t}\, z_0 + \sqrt{1-\bar\alpha_t}\,\epsilon, \qquad \bar\alpha_0 = 1

A ``t_star`` means nothing without its schedule (470 steps leave abar = 0.105 on ``linear-1000`` and 0.962 on
``cosine-4000``), so purifiers take both, and rows carry the triple (t_star, abar, sigma_eq) with the
equivalent noise in pixel units of [0, 1] images,

.. math:: \sigma_{eq} = \tfrac12 \sqrt{(1-\bar\alpha_t)/\bar\alpha_t}.

Schedules:

* ``linear-1000``: beta from 1e-4 to 0.02 in 1000 steps (Ho et al., arXiv 2006.11239, section 4).
* ``vp-continuous``: abar(t) = exp(-t beta_min - t^2 (beta_max - beta_min)/2), beta from 0.1 to 20, t in [0, 1]
  (Song et al., arXiv 2011.13456, appendix B), on a grid of 1000 steps of 1e-3.
* ``cosine-4000``: abar from f(u) = cos^2(((u + .008)/1.008) pi/2), beta at most 0.999
  (Nichol and Dhariwal, arXiv 2102.09672, equation 17).
* ``from-folder``: what a denoiser folder states in its ``scheduler_config.json``. A resolved config names it: as the
  schedule of this list that it is to the last bit, or as ``FORM-STEPS@DIGEST`` with the digest of the abar table
  (``scaled_linear-1000@0c2ab4f1d9e36a75``), and carries the table (``noise_schedule``).
* ``edm``: abar = 1/(1 + sigma^2) with sigma^(1/7) evenly spaced from 0.002 (t = 1) to 80 (t = 1000), in diffusion
  units (Karras et al., arXiv 2206.00364, equation 5 with rho = 7, counted from the clean end). A network trained on
  x = z_0 + sigma noise meets the same image here as z = sqrt(abar) x.
* ``ve``: sigma_eq from 0.01 to 50 pixels in 1000 geometric steps (Song et al., arXiv 2011.13456, appendix C).
* ``sub-vp``: the sub-VP process, x = sqrt(a) z_0 + (1 - a) eps with a that of ``vp-continuous`` (equation 14 there),
  as the level of the same ratio: abar = a / (a + (1 - a)^2).
* ``rectified-flow``: the straight path x = (1 - tau) z_0 + tau eps at tau = t/1000, t up to 999, beyond which nothing
  of the image is left: abar = 1/(1 + (tau/(1 - tau))^2).
* ``flowpure``: sigma_eq = 0.3 t/1000, the levels of Gaussian FlowPure (arXiv 2505.13280) at u = 1 - t/1000.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from defense.errors import InvalidInput, nearest
from defense.spec import digest

__all__ = [
    "FROM_FOLDER",
    "SCHEDULES",
    "Levels",
    "NoiseLevel",
    "Schedule",
    "abar_of_betas",
    "betas_of_abar",
    "cosine_betas",
    "get_schedule",
    "stated_schedule",
    "vp_abar",
]

FROM_FOLDER = "from-folder"
"""Name of the schedule that a denoiser folder states, before the folder is read."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NoiseLevel:
    """A noise level in the units in which papers state it: (t_star, abar, sigma_eq)."""

    t_star: int
    abar: float
    sigma_eq: float


@dataclass(frozen=True)
class Levels:
    """A noise level for each image of a batch.

    Arguments:
        steps: Noising steps of each image, shape (B,).
        time: The same as numbers, float64 of shape (B,). It may carry the gradient of a level that depends on the
            image.
        abar: abar of each image, float64 of shape (B, 1, 1, 1), on the images' device; with the gradient of ``time``.
        followed: Whether somebody may follow that gradient. It decides the order of rounding, so it is said, and not
            read off the tensors: with and without recording of gradients the numbers must be the same.
    """

    steps: tuple[int, ...]
    time: Tensor
    abar: Tensor
    followed: bool = False

    @property
    def shared(self) -> int | None:
        """The level, where all images have the same one and no gradient follows it; None otherwise."""
        one = len(set(self.steps)) == 1 and not self.followed
        return self.steps[0] if one else None


@dataclass(frozen=True)
class Schedule:
    """A discrete grid of noise levels.

    Arguments:
        name: Name in sweep files.
        abar: abar after t = 0..T noising steps, float64 of shape (T + 1,), falling from abar[0] = 1.
    """

    name: str
    abar: Array

    @property
    def steps(self) -> int:
        """T, the number of noising steps."""
        return len(self.abar) - 1

    def level(self, t: int) -> NoiseLevel:
        """Return the noise level after ``t`` steps, 0 <= t <= T.

        Raises:
            InvalidInput: ``t`` is not on the schedule.
        """
        if not 0 <= t <= self.steps:
            raise InvalidInput(f"t_star = {t} is not on schedule {self.name!r}, which has steps 0 to {self.steps}.")
        abar = float(self.abar[t])
        return NoiseLevel(t, abar, math.sqrt((1 - abar) / abar) / 2)

    def levels(self, t: Tensor, *, followed: bool = False) -> Levels:
        r"""Return the level of each image.

        Arguments:
            t: Whole numbers of noising steps, 0 to T, of shape (B,). If they carry a gradient, abar does: that of
                :math:`\log\bar\alpha`, interpolated linearly and differentiated symmetrically at the whole numbers.
            followed: See :class:`Levels`.

        Raises:
            InvalidInput: One is not on the schedule.
        """
        steps = tuple(int(value) for value in t.detach().round().tolist())
        for step in steps:
            self.level(step)
        table = torch.tensor(self.abar, device=t.device)
        where = torch.tensor(steps, device=t.device)
        abar = table[where]
        if followed and t.requires_grad and torch.is_grad_enabled():
            low, high = (where - 1).clamp(min=0), (where + 1).clamp(max=self.steps)
            slope = (table[high].log() - table[low].log()) / (high - low)
            abar = abar * (slope * (t - t.detach()).double()).exp()
        return Levels(steps, t.double(), abar.view(-1, 1, 1, 1), followed)

    def t_for_sigma(self, sigma: float) -> int:
        """Return the smallest t whose sigma_eq is at least ``sigma`` (pixel units of [0, 1] images).

        At least, because a smoothing certificate at ``sigma`` stays valid when the noise is a little larger
        (Carlini et al., arXiv 2206.10550).

        Raises:
            InvalidInput: No step of the schedule is that noisy, or ``sigma`` is not positive.
        """
        top = self.level(self.steps).sigma_eq
        if not 0 < sigma <= top:
            raise InvalidInput(
                f"sigma_eq = {sigma} is not on schedule {self.name!r}, which reaches from above 0 to {top:.4g} "
                "(in units of [0, 1] pixels)."
            )
        # sigma_eq as level() computes it, to the last bit: the sigma_eq of a row leads back to its t_star.
        return int(np.argmax(np.sqrt((1 - self.abar) / self.abar) / 2 >= sigma))


def vp_abar(t: float | Array) -> Array:
    """abar(t) of the continuous VP-SDE, t in [0, 1]."""
    t = np.asarray(t, dtype=np.float64)
    return np.exp(-0.1 * t - 0.5 * (20.0 - 0.1) * t * t)


def abar_of_betas(betas: Array) -> Array:
    """Return the levels abar of t = 0..T steps with these variances, shape (T + 1,)."""
    return np.concatenate([[1.0], np.cumprod(1.0 - betas)])


def betas_of_abar(f: Callable[[Array], Array], steps: int) -> Array:
    """Return the variances of steps between the levels f(t/T)/f(0), at most 0.999.

    Arguments:
        f: Falling function of [0, 1].
        steps: T.
    """
    edges = np.arange(steps + 1) / steps
    return np.minimum(1 - f(edges[1:]) / f(edges[:-1]), 0.999)


def cosine_betas(steps: int) -> Array:
    """Return the variances of the cosine schedule in T steps (Nichol and Dhariwal, arXiv 2102.09672, equation 17)."""

    def f(u: Array) -> Array:
        return np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return betas_of_abar(f, steps)


def _edm(steps: int) -> Array:
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    sigma = (low + np.arange(steps) / (steps - 1) * (high - low)) ** 7
    return np.concatenate([[1.0], 1 / (1 + sigma**2)])


def _ve() -> Array:
    sigma = 2 * np.exp(np.linspace(math.log(0.01), math.log(50), 1000))
    return np.concatenate([[1.0], 1 / (1 + sigma**2)])


def _sub_vp() -> Array:
    a = vp_abar(np.arange(1001) / 1000)
    return a / (a + (1 - a) ** 2)


def _rectified_flow() -> Array:
    tau = np.arange(1000) / 1000
    return (1 - tau) ** 2 / ((1 - tau) ** 2 + tau**2)


SCHEDULES: dict[str, Callable[[], Array]] = {
    "linear-1000": lambda: abar_of_betas(np.linspace(1e-4, 0.02, 1000)),
    "vp-continuous": lambda: vp_abar(np.arange(1001) / 1000),
    "cosine-4000": lambda: abar_of_betas(cosine_betas(4000)),
    "edm": lambda: _edm(1000),
    "ve": _ve,
    "sub-vp": _sub_vp,
    "rectified-flow": _rectified_flow,
    "flowpure": lambda: 1 / (1 + (0.6 * np.arange(1001) / 1000) ** 2),
}


@lru_cache
def get_schedule(name: str) -> Schedule:
    """Return the schedule of that name.

    Raises:
        InvalidInput: Unknown name.
    """
    if name in SCHEDULES:
        return Schedule(name, SCHEDULES[name]())
    if name == FROM_FOLDER:
        raise InvalidInput(
            f"schedule {FROM_FOLDER!r} is known when a diffusers folder has been read, and not before: resolve its "
            "config first (`config.resolved(base)`), or name the schedule. Other formats do not state theirs."
        )
    if "@" in name:
        raise InvalidInput(
            f"schedule {name!r} is that of a denoiser folder, and is known to the config of that denoiser alone: "
            f"take its `noise_schedule`, or write `schedule: {FROM_FOLDER}`."
        )
    raise InvalidInput(f"unknown schedule {name!r}; {nearest(name, SCHEDULES)}")


def stated_schedule(form: str, abar: Array) -> Schedule:
    """A schedule by its table: the named one if it is that to the last bit, else one with the digest in its name.

    Arguments:
        form: What the table was made by, for the name.
        abar: See :class:`Schedule`.
    """
    for name in SCHEDULES:
        if np.array_equal(get_schedule(name).abar, abar):
            return get_schedule(name)
    table = np.ascontiguousarray(abar, dtype="<f8")
    return Schedule(f"{form}-{len(abar) - 1}@{digest(table.tobytes())}", abar)
