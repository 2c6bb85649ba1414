r"""Ascent in a band of frequencies: the adaptive attack on defences that treat frequencies differently.

The perturbation is a band-limited one, :math:`w = P_r w`, with :math:`P_r` the projection on the disc
:math:`\{u^2 + v^2 \le r^2\}` of spatial frequencies (:func:`defense.purifiers.freqpure.disc`), per channel:

.. math:: w \leftarrow s\Big(w + a\,\frac{P_r g}{\|P_r g\|_p}\Big), \qquad
          s(w) = w \min\Big(1, \frac{\varepsilon}{\|w\|_p}\Big), \qquad x' = \mathrm{clamp}(x + w)

It is scaled into the ball and not clamped there, which would spread it over all frequencies; only the range of pixels
clamps it. What a defence as FreqPure lets through whole is the disc of its radius. The construction is ours; that
frequency defences have to be attacked inside of their band is what reviewers of such papers ask for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from defense.purifiers.freqpure import disc
from tasks.attacks.base import Region

__all__ = ["BandRegion", "in_band"]


def in_band(w: Tensor, radius: float) -> Tensor:
    """Return the part of images at frequencies within ``radius``, shape of ``w``."""
    mask = disc(w.shape[-2], w.shape[-1], radius).to(w.device)
    part: Tensor = torch.fft.ifft2(torch.fft.fft2(w) * mask).real
    return part


class BandRegion:
    """Steps that keep a perturbation in a band and in a ball.

    Arguments:
        region: Ball and range.
        radius: r, in frequencies of the image.
    """

    def __init__(self, region: Region, radius: float) -> None:
        self.region, self.radius = region, radius
        self.perturbation = torch.zeros_like(region.x)

    def begin(self, start: Tensor) -> Tensor:
        """Return the image whose perturbation is the band's part of that of ``start``."""
        return self._set(in_band(start - self.region.x, self.radius))

    def ascend(self, x: Tensor, gradient: Tensor, size: float) -> Tensor:
        """Take one step from the last image, which ``x`` is."""
        step = in_band(gradient, self.radius)
        # In two stages, as in :meth:`Region.ascend`.
        step = step / step.flatten(1).abs().amax(1).view(-1, 1, 1, 1).clamp_min(torch.finfo(step.dtype).tiny)
        return self._set(self.perturbation + size * step / self._length(step).clamp_min(1e-12))

    def _length(self, w: Tensor) -> Tensor:
        flat = w.flatten(1)
        length: Tensor = flat.abs().amax(1) if self.region.norm == "linf" else flat.norm(dim=1)
        return length.view(-1, 1, 1, 1)

    def _set(self, w: Tensor) -> Tensor:
        self.perturbation = w * (self.region.eps / self._length(w).clamp_min(1e-12)).clamp_max(1)
        return self.region.project((self.region.x + self.perturbation).clamp(0, 1))
