r"""One denoiser for images at different noise levels, in the units :math:`u + \sigma e` of score-based models.

A network of discrete levels knows :math:`\sigma_t = \sqrt{(1-\bar\alpha_t)/\bar\alpha_t}` (diffusion units, twice the
pixel noise ``sigma_eq``), and meets :math:`u + \sigma_t e` as :math:`z = \sqrt{\bar\alpha_t}\,(u + \sigma_t e)`. Its
estimate of the clean image is

.. math:: D(u + \sigma_t e;\ \sigma_t) = u + \sigma_t e - \sigma_t\, \epsilon_\theta(z, t) .

(Karras et al., arXiv 2206.00364, section 3, for networks that predict the noise.)
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from defense.randomness import Omega
from defense.samplers import EpsModel
from defense.schedules import Schedule

__all__ = ["denoised_at", "drawn_levels", "noise_at", "sigma_of"]


def sigma_of(schedule: Schedule, t: Sequence[int], like: Tensor) -> Tensor:
    """Return sigma_t in diffusion units, shape (B, 1, 1, 1), dtype and device of ``like``."""
    abar = schedule.abar[np.asarray(t)]
    sigma = torch.from_numpy(np.sqrt((1 - abar) / abar)).to(like)
    return sigma.view(-1, *[1] * (like.dim() - 1))


def drawn_levels(schedule: Schedule, low: float, high: float, omega: Omega, step: int, like: Tensor) -> list[int]:
    """Draw a level for each image: the smallest t whose sigma_eq is at least a number that is uniform on [low, high].

    Arguments:
        schedule: Noise schedule.
        low: Pixel units of [0, 1] images, above 0.
        high: Likewise; all images have the same level where it equals ``low``, and nothing is drawn.
        omega: Randomness; the key is ``("level", step)``.
        step: Number of the step.
        like: Tensor of shape (B, ...).
    """
    if low == high:
        return [schedule.t_for_sigma(low)] * len(like)
    shares = omega.uniform("level", step, like, (1,)).flatten().tolist()
    return [schedule.t_for_sigma(low + (high - low) * share) for share in shares]


def noise_at(denoiser: EpsModel, z: Tensor, t: Sequence[int]) -> Tensor:
    """Predict the noise in states of different levels, by :meth:`~defense.denoisers.base.Denoiser.at_levels`.

    Arguments:
        denoiser: The denoiser.
        z: States, shape (B, ...), diffusion units.
        t: Level of each.
    """
    return denoiser.at_levels(z, denoiser.schedule.levels(torch.tensor(t, device=z.device)))


def denoised_at(denoiser: EpsModel, noised: Tensor, t: Sequence[int], *, clip: bool = False) -> Tensor:
    """Return D, the predicted clean images.

    Arguments:
        denoiser: The denoiser.
        noised: ``u + sigma e``, shape (B, ...), diffusion units.
        t: Level of each image.
        clip: Clamp to [-1, 1].
    """
    sigma = sigma_of(denoiser.schedule, t, noised)
    clean = noised - sigma * noise_at(denoiser, noised / (1 + sigma.square()).sqrt(), t)
    return clean.clamp(-1, 1) if clip else clean
