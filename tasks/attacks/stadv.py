r"""StAdv: a small displacement of every pixel instead of a change of its value.

Xiao et al., "Spatially transformed adversarial examples", arXiv 1801.02612; constants as in the evaluation of
DiffPure (Nie et al., arXiv 2205.07460).

A flow field :math:`f = (\Delta u, \Delta v)` says for each pixel where its value is taken from, by bilinear sampling:

.. math:: x'_{ij} = x\left(i + \tfrac H2 \Delta v_{ij},\ j + \tfrac W2 \Delta u_{ij}\right), \qquad
          \max_f\ L(x') - \tau \sum_p \sum_{q \in N(p)} \sqrt{\|f_p - f_q\|_2^2 + \delta}, \quad
          \|f\|_\infty \le \varepsilon

with L the mean over the draws of the margin, whose kappa is infinite: it never stops to count. N(p) are the four
neighbours, so every pair counts twice; :math:`\delta = 10^{-10}`; by default :math:`\tau = 0.0025 / \varepsilon`.
The steps are Adam's, after each of which the flow is clamped. Of all iterates, the image itself among them, the one
of highest L is returned: all of them are inside the bound, and smoothness only guides the search.

Flow and eps are in units of the grid on which the image spans [-1, 1]: an image of W pixels is 2 wide, so that eps =
0.05 are 0.025 W pixels, 0.2 on an image of 8, 0.8 on one of 32, 5.6 on one of 224.

Not as in the implementation that the DiffPure evaluation uses: the image goes on beyond its border with its last
pixel, where there it is black, so that a flow moves intensities and makes none; the flow is exactly 0 at the start;
and there the last iterate is returned.

The flow bounds no distance of pixel values. Its figures stand apart from those of l_p balls; the rows have the l_inf
and l_2 norms that came of it.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from defense.randomness import Omega
from defense.spec import Spelling
from tasks.attacks.base import ATTACKS, AttackConfig, AttackResult
from tasks.attacks.best import Best
from tasks.attacks.losses import LossName, check_classes, point_loss
from tasks.attacks.region import Norm
from tasks.attacks.target import Target

__all__ = ["StAdvConfig", "roughness", "warp"]

_DELTA = 1e-10


@ATTACKS.register("stadv")
class StAdvConfig(AttackConfig):
    """StAdv: a bounded flow field moves the pixels.

    Arguments:
        norm: ``flow``.
        eps: l_inf bound of the flow, in units of the grid [-1, 1]: W/2 eps pixels, see the module.
        steps: Adam steps.
        learning_rate: Adam's, in units of the flow.
        smoothness: tau, the weight of the flow's roughness; by default 0.0025 / eps.
        loss: ``margin``, ``ce`` or ``dlr``.
    """

    spellings: ClassVar[Mapping[str, Spelling]] = {}
    norms: ClassVar[tuple[Norm, ...]] = ("flow",)
    bounded: ClassVar[bool] = False
    attack: Literal["stadv"] = "stadv"
    norm: Norm = "flow"
    eps: float = Field(default=0.05, gt=0, le=2)
    steps: int = Field(default=100, ge=1)
    learning_rate: float = Field(default=0.01, gt=0)
    smoothness: float | None = Field(default=None, ge=0)
    loss: LossName = "margin"

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """See :class:`AttackConfig`."""
        check_classes("loss", self.loss, classes)

    def method(self) -> str:
        """``stadv-100 flow``, with the loss where it is not the margin."""
        return f"stadv-{self.steps} {self.norm}" + (f" {self.loss}" if self.loss != "margin" else "")

    @property
    def evaluations(self) -> int:
        """One per iterate, the image itself included."""
        return self.steps + 1

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`. Nothing is drawn; the column ``flow`` has the l_inf norm of each flow."""
        tau = 0.0025 / self.eps if self.smoothness is None else self.smoothness
        loss = point_loss(self.loss)
        bound = _at_most(self.eps)
        flow = torch.zeros(len(x), 2, *x.shape[2:], device=x.device, requires_grad=True)
        # Adam works element by element, so that no image's steps depend on its batch.
        adam = torch.optim.Adam([flow], lr=self.learning_rate)
        best, largest = Best(x), torch.zeros(len(x), device=x.device)
        for _ in range(self.steps):
            moved = warp(x, flow)
            at = target.differentiate(moved.detach().clamp(0, 1), loss)
            assert at.gradient is not None
            largest = _of_the_better(best.see(moved.detach().clamp(0, 1), at.loss), flow, largest)
            (flow.grad,) = torch.autograd.grad(
                [moved, tau * roughness(flow).sum()], flow, [-at.gradient, torch.ones((), device=x.device)]
            )
            adam.step()
            with torch.no_grad():
                flow.clamp_(-bound, bound)
        with torch.no_grad():
            images = warp(x, flow).clamp(0, 1)
        largest = _of_the_better(best.see(images, target.evaluate(images, loss).loss), flow, largest)
        return AttackResult(best.images, best.loss, columns={"flow": largest})


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Return images sampled bilinearly where a flow points to; beyond the border lies its nearest pixel.

    Where the flow is 0 the pixel is unchanged to the last bit, which a sampler in [-1, 1] coordinates does not do.

    Arguments:
        x: Images, shape (B, C, H, W).
        flow: Displacements in units of the grid [-1, 1], shape (B, 2, H, W): to the right, and downwards.

    Returns:
        Images, shape (B, C, H, W); up to rounding within the range of ``x``.
    """
    height, width = x.shape[2:]
    column = torch.arange(width, device=x.device, dtype=x.dtype) + flow[:, 0] * (width / 2)
    row = torch.arange(height, device=x.device, dtype=x.dtype).view(-1, 1) + flow[:, 1] * (height / 2)
    column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
    left, top = column.detach().floor(), row.detach().floor()
    right_share, lower_share = (column - left).unsqueeze(1), (row - top).unsqueeze(1)
    flat = x.flatten(2)

    def at(i: Tensor, j: Tensor) -> Tensor:
        index = i.clamp(max=height - 1).long() * width + j.clamp(max=width - 1).long()
        return flat.gather(2, index.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)).view_as(x)

    upper = at(top, left) * (1 - right_share) + at(top, left + 1) * right_share
    lower = at(top + 1, left) * (1 - right_share) + at(top + 1, left + 1) * right_share
    return upper * (1 - lower_share) + lower * lower_share


def roughness(flow: Tensor) -> Tensor:
    """Return the sum over neighbours in the module, of flows of shape (B, 2, H, W), shape (B,)."""

    def of(difference: Tensor) -> Tensor:
        return (difference.square().sum(1) + _DELTA).sqrt().flatten(1).sum(1)

    return 2 * (of(flow.diff(dim=2)) + of(flow.diff(dim=3)))


def _at_most(eps: float) -> float:
    """Return the largest float32 up to eps."""
    nearest = np.float32(eps)
    return float(nearest if float(nearest) <= eps else np.nextafter(nearest, np.float32(0)))


def _of_the_better(better: Tensor, flow: Tensor, largest: Tensor) -> Tensor:
    return torch.where(better, flow.detach().abs().flatten(1).amax(1), largest)
