r"""Ascent in a band of frequencies: the adaptive attack on defences that treat frequencies differently.

The perturbation is a band-limited one, :math:`w = P_r w`, with :math:`P_r` the projection on the disc
:math:`\{u^2 + v^2 \le r^2\}` of spatial frequencies (:func:`defense.purifiers.freqpure.disc`), per channel:

.. math:: w \leftarrow s\Big(w + a\,\frac{P_r g}{\|P_r g\|_p}\Big), \qquad
          s(w) = w \min\Big(1, \frac{\varepsilon}{\|w\|_p}\Big), \qquad x' = \mathrm{clamp}(x + w)

It is scaled into the ball and not clamped there, which would spread it over all frequencies; only the range of pixels
clamps it. Auto-PGD does the same with its own steps, which combine several w (:class:`BandSpace`). What a defence as
FreqPure lets through whole is the disc of its radius. The construction is ours; that frequency defences have to be
attacked inside of their band is what reviewers of such papers ask for.
"""

import torch
from torch import Tensor

from defense.purifiers.freqpure import disc
from tasks.attacks.region import Region

__all__ = ["BandRegion", "BandSpace", "in_band"]


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
        return self._set(_stepped(self.region, self.perturbation, gradient, size, self.radius))

    def _set(self, w: Tensor) -> Tensor:
        self.perturbation = _scaled(self.region, w)
        return self.region.project((self.region.x + self.perturbation).clamp(0, 1))


class BandSpace:
    """The same, for attacks that combine iterates: a point is x + w, whose range of pixels is not clamped.

    Arguments:
        region: Ball and range.
        radius: r, in frequencies of the image.
    """

    def __init__(self, region: Region, radius: float) -> None:
        self.region, self.radius, self.x, self.eps = region, radius, region.x, region.eps

    def begin(self, start: Tensor) -> Tensor:
        """Return the point whose perturbation is the band's part of that of ``start``."""
        return self.project(self.x + in_band(start - self.x, self.radius))

    def ascend(self, x: Tensor, gradient: Tensor, size: float | Tensor, *, strict: bool = True) -> Tensor:
        """Return the point one step further."""
        return self.x + _scaled(self.region, _stepped(self.region, x - self.x, gradient, size, self.radius))

    def project(self, x: Tensor) -> Tensor:
        """Return the point scaled into the ball."""
        return self.x + _scaled(self.region, x - self.x)

    def shown(self, x: Tensor) -> Tensor:
        """Return the image of a point."""
        return self.region.project(x.clamp(0, 1))


def _length(region: Region, w: Tensor) -> Tensor:
    flat = w.flatten(1)
    length: Tensor = flat.abs().amax(1) if region.norm == "linf" else flat.norm(dim=1)
    return length.view(-1, 1, 1, 1)


def _stepped(region: Region, w: Tensor, gradient: Tensor, size: float | Tensor, radius: float) -> Tensor:
    step = in_band(gradient, radius)
    # In two stages, as in :meth:`Region.ascend`.
    step = step / step.flatten(1).abs().amax(1).view(-1, 1, 1, 1).clamp_min(torch.finfo(step.dtype).tiny)
    return w + size * step / _length(region, step).clamp_min(1e-12)


def _scaled(region: Region, w: Tensor) -> Tensor:
    return w * (region.eps / _length(region, w).clamp_min(1e-12)).clamp_max(1)
