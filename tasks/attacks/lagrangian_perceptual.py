r"""Lagrangian perceptual attack: gradient steps whose length and bound are measured by LPIPS.

Laidlaw, Singla and Feizi, "Perceptual adversarial robustness: defense against unseen threat models", arXiv
2006.12655: the fast form of their Lagrangian attack, with the bisection of their projection at its end. With d the
distance of LPIPS, from :math:`x_0 = x + 0.01\,n` and for t = 1 ... T

.. math:: g = \nabla\left(L(x_{t-1}) - \lambda\,10^{t/T-1} \max(d(x_{t-1}, x) - \varepsilon, 0)\right), \quad
          u = \frac{g}{\|g\|_2}, \quad
          x_t = \mathrm{clamp}\left(x_{t-1} + \varepsilon\,10^{-t/T}\,\frac{h}{d(x_{t-1}, x_{t-1} + h\,u)}\,u\right),

so that a step is as long as LPIPS sees it, and the last point is moved towards the image until :math:`d \le
\varepsilon`. L is the mean over the draws of the margin.

Not as there: d is the calibrated LPIPS of its package (there the norm of all normalised features), so that budgets
are other numbers; and of the image, all iterates inside of the bound and the last point, the one of highest L is
returned. Success is not looked at. Key of the noise: ``("start", 0)``.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from defense.randomness import Omega
from tasks.attacks.base import ATTACKS, AttackResult
from tasks.attacks.best import Best
from tasks.attacks.losses import LossName, check_classes, point_loss
from tasks.attacks.perceptual import PerceptualConfig, network
from tasks.attacks.target import Target

__all__ = ["LagrangianPerceptualConfig"]

_H = 0.1
_NOISE = 0.01
_BISECTIONS = 12


@ATTACKS.register("lagrangian-perceptual")
class LagrangianPerceptualConfig(PerceptualConfig):
    """Lagrangian perceptual attack: gradient steps under a bound of LPIPS.

    Arguments:
        norm: ``lpips``.
        eps: Largest LPIPS to the clean image.
        lpips: The network of LPIPS.
        steps: T.
        penalty: lambda, of the last step; that of the first is a tenth.
        loss: ``margin``, ``ce`` or ``dlr``.

    Raises:
        InvalidInput: No ``lpips``; at run time, images too small for LPIPS.
    """

    attack: Literal["lagrangian-perceptual"] = "lagrangian-perceptual"
    eps: float = Field(default=0.05, gt=0)
    steps: int = Field(default=40, ge=1)
    penalty: float = Field(default=10.0, gt=0)
    loss: LossName = "margin"

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """See :class:`AttackConfig`."""
        check_classes("loss", self.loss, classes)

    def method(self) -> str:
        """``lagrangian-perceptual-40 lpips-vgg``, with the loss where it is not the margin."""
        return f"{self.attack}-{self.steps} {self.norm}-{self.lpips.net}" + (
            f" {self.loss}" if self.loss != "margin" else ""
        )

    @property
    def evaluations(self) -> int:
        """The clean image, one for each step, and the last point."""
        return self.steps + 2

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`. The column ``lpips`` has the distance of each image."""
        distance = _OneByOne(network(self.lpips).to(x.device))
        farthest = torch.zeros(len(x), device=x.device)
        with torch.no_grad():
            distance(x, x)  # refuses images that it cannot take, before the defence has cost anything
        loss, best = point_loss(self.loss), Best(x)
        best.see(x, target.evaluate(x, loss).loss)
        current = (x + _NOISE * omega.normal("start", 0, x)).clamp(0, 1)
        for t in range(1, self.steps + 1):
            at = target.differentiate(current, loss)
            assert at.gradient is not None
            far, slope = _excess(distance, current, x, self.eps)
            better = best.see(current, torch.where(far <= self.eps, at.loss, -torch.inf))
            farthest = torch.where(better, far, farthest)
            direction = _unit(at.gradient - self.penalty * 10 ** (t / self.steps - 1) * slope)
            with torch.no_grad():
                seen = distance(current, current + _H * direction) / _H
            length = self.eps * 10 ** (-t / self.steps) / seen.clamp_min(1e-4)
            current = (current + length.view(-1, 1, 1, 1) * direction).clamp(0, 1)
        last, far = _inside(distance, current, x, self.eps)
        better = best.see(last, target.evaluate(last, loss).loss)
        farthest = torch.where(better, far, farthest)
        return AttackResult(best.images, best.loss, columns={"lpips": farthest})


class _OneByOne(nn.Module):
    """A distance asked for one image at a time.

    The length of a step is a distance, whose last bits are others in other batches, and with them all that follows.
    """

    def __init__(self, distance: nn.Module) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([self.distance(a[k : k + 1], b[k : k + 1]) for k in range(len(a))])


def _excess(distance: nn.Module, images: Tensor, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the distances of images from the clean ones, and the gradient of what they are beyond eps."""
    at = images.detach().requires_grad_()
    far = distance(at, x)
    (slope,) = torch.autograd.grad((far - eps).clamp_min(0).sum(), at)
    return far.detach(), slope


def _unit(gradient: Tensor) -> Tensor:
    """Each image's gradient at l_2 norm 1, 0 where it is 0; in two stages, as squares of small numbers vanish."""
    flat = gradient.flatten(1)
    tiny = torch.finfo(gradient.dtype).tiny
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(tiny)
    unit: Tensor = (flat / flat.norm(dim=1, keepdim=True).clamp_min(tiny)).view_as(gradient)
    return unit


@torch.no_grad()
def _inside(distance: nn.Module, images: Tensor, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the points on the way from the clean images that are at most eps away, and their distances."""
    inside = distance(images, x) <= eps
    low = torch.where(inside, 1.0, 0.0).to(x)
    high = torch.ones_like(low)

    def between(share: Tensor) -> Tensor:
        # The ends themselves, and not what rounding makes of them.
        share = share.view(-1, 1, 1, 1)
        return torch.where(share == 1, images, x + share * (images - x))

    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        near = distance(between(middle), x) <= eps
        low, high = torch.where(near, middle, low), torch.where(near, high, middle)
    points = between(low)
    return points, distance(points, x)
