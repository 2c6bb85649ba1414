r"""Guidance of a reverse process: a potential whose gradient shifts the mean of every step.

.. math:: z_s \sim N\left(\mu_\theta(z_t, t) - s_t\,\Sigma_t \nabla_{z_t} G(z_t, x),\ \Sigma_t\right)

(Dhariwal and Nichol, arXiv 2105.05233, algorithm 1, with :math:`\log p` replaced by :math:`-s_t G`; for other
samplers than the ancestral one :math:`\Sigma_t` is the sampler's ``gain``.) The gradient is taken at :math:`z_t`.

**Per sample.** A potential has one value for each image and no reduction runs over the batch: an image is guided
the same whatever else is in its batch. Published code that averages over the batch divides the guidance by the batch
size; where that is reproduced, the batch size is a declared constant (``gdmp``).

**What it depends on.** A potential may look at the purifier's input ``x``, as the target of a distance or through a
classifier. That dependence is part of the defence, and of its exact gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from defense.errors import InvalidInput
from defense.packages import installed
from defense.randomness import Omega
from defense.samplers import forward_noise
from defense.schedules import Levels, Schedule
from defense.torchvision_cpu import allow_torchvision_import

__all__ = ["Distance", "DistanceName", "Guidance", "Moment", "distance", "logits"]

DistanceName = Literal["mse", "ssim", "lpips"]
Distance = Callable[[Tensor, Tensor], Tensor]
"""Two batches in diffusion units, shape (B, C, H, W), to one value each, shape (B,)."""


@dataclass
class Moment:
    """One step of the reverse process, on which a potential is evaluated.

    Arguments:
        z: State, shape (B, C, H, W), diffusion units; the gradient is taken with respect to it.
        t: Its level, or the level of each image.
        x: The purifier's input, [0, 1] pixels.
        omega: Randomness.
        key: Number of the step among all steps of the purifier, or that of each image, for noise of its own.
        schedule: The denoiser's schedule.
        predict: Returns the clean image that the denoiser predicts from ``z``, diffusion units, within the graph.
    """

    z: Tensor
    t: int | Levels
    x: Tensor
    omega: Omega
    key: int | Sequence[int]
    schedule: Schedule
    predict: Callable[[], Tensor]
    _denoised: Tensor | None = field(default=None, repr=False)

    @property
    def abar(self) -> float | Tensor:
        """The level's abar, or that of each image's level."""
        return self.t.abar if isinstance(self.t, Levels) else float(self.schedule.abar[self.t])

    @property
    def denoised(self) -> Tensor:
        """Predicted clean image in [0, 1] pixels; its gradient runs through the denoiser."""
        if self._denoised is None:
            self._denoised = (self.predict() + 1) / 2
        return self._denoised

    def diffused_input(self) -> Tensor:
        """Return the purifier's input noised to the level of ``z``, with noise of its own in every step."""
        z0 = 2 * self.x - 1
        return forward_noise(z0, self.abar, self.noise(z0))

    def noise(self, like: Tensor, purpose: str = "guidance", shape: Sequence[int] | None = None) -> Tensor:
        """Return normal noise of the step's own, see :meth:`~defense.randomness.Omega.normal`."""
        keys = (self.key,) * len(like) if isinstance(self.key, int) else self.key
        return self.omega.normal_at(purpose, keys, like, shape)


class Guidance(nn.Module, ABC):
    """A potential and its scale."""

    needs_denoised = False
    """Whether the potential looks at :attr:`Moment.denoised`, so that its gradient runs through the denoiser."""

    @abstractmethod
    def scale(self, t: int, schedule: Schedule) -> float:
        """s_t, in the units of the paper."""

    def scales(self, levels: Levels, schedule: Schedule) -> Tensor:
        """s_t of each image's level, float64 of shape (B, 1, 1, 1); a constant in gradients."""
        values = [self.scale(t, schedule) for t in levels.steps]
        return torch.tensor(values, dtype=torch.float64, device=levels.abar.device).view(-1, 1, 1, 1)

    def target_logits(self, classifier: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """See :meth:`defense.purifiers.Purifier.target_logits`."""
        return classifier(x)

    @abstractmethod
    def forward(self, moment: Moment) -> Tensor:
        """The potential G of each image, shape (B,)."""


def distance(name: DistanceName, lpips: nn.Module | None = None) -> Distance:
    r"""Return a distance of two images, one value for each pair.

    * ``mse``: :math:`\|a-b\|_2^2`, summed over the pixels of an image (not averaged);
    * ``ssim``: 1 - SSIM (Wang et al. 2004) with a Gaussian window of 11 pixels and sigma 1.5, in images below 22
      pixels of 5 pixels and sigma 0.5;
    * ``lpips``: LPIPS (Zhang et al., arXiv 1801.03924).

    Arguments:
        name: Which one.
        lpips: The network, for ``lpips``.
    """
    if name == "mse":
        return lambda a, b: (a - b).square().flatten(1).sum(1)
    if name == "ssim":
        return lambda a, b: _in_full_precision(_one_minus_ssim, a, b)
    if lpips is None:
        raise InvalidInput("distance lpips needs the weights of its network: give `lpips`.")
    return lambda a, b: _in_full_precision(lpips, a, b).flatten()


def _one_minus_ssim(a: Tensor, b: Tensor) -> Tensor:
    allow_torchvision_import()
    with installed("distance ssim"):
        from torchmetrics.functional.image import structural_similarity_index_measure

    if a.shape[2:].numel() == 0 or min(a.shape[2:]) < 5:
        raise InvalidInput(f"SSIM takes images of at least 5x5 pixels, not {tuple(a.shape[2:])}.")
    sigma = 1.5 if min(a.shape[2:]) >= 22 else 0.5
    value = structural_similarity_index_measure(
        a, b, gaussian_kernel=True, sigma=sigma, kernel_size=11, data_range=2.0, reduction="none"
    )
    assert isinstance(value, Tensor)
    return 1 - value


def logits(net: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return a guiding classifier's logits on images in [0, 1], never in reduced precision."""
    return _in_full_precision(net, images)


def _in_full_precision(call: Callable[..., Tensor], *images: Tensor) -> Tensor:
    device = images[0].device.type
    if not torch.is_autocast_enabled(device):
        return call(*images)
    with torch.autocast(device, enabled=False):
        return call(*(image.float() for image in images))
