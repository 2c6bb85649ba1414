r"""Low-frequency attack: learned blurs of the image under a bound of perceptual distance.

Kassis, Hengartner and Yu, "Unlocking the potential of adaptive attacks on diffusion-based purification", arXiv
2411.16598, whose constants are the defaults. Purification removes what is added to pixels; it leaves a change of
what the image shows at low frequencies.

.. math:: x' = F_m(\cdots F_1(\tfrac12 \tanh(\operatorname{artanh}((2x - 1)(1 - 10^{-6})) + \delta) + \tfrac12)
          \cdots), \qquad
          \min_{\delta, w}\ -L(x') + c\, \max(\mathrm{LPIPS}(x', x) - \varepsilon, 0)

with L the mean over the draws of the margin. Each :math:`F_l` is a guided filter of k x k pixels with weights of its
own at every pixel p, the same in all channels, guided by the clean image:

.. math:: F_l(z)_p = \frac{\sum_q s_{pq}\, g_{pq}\, z_q}{\sum_q s_{pq}\, g_{pq}}, \qquad
          s_p = \mathrm{softmax}(w_p), \qquad g_{pq} = \exp\left(-\frac{\|x_p - x_q\|_1^2}{2\sigma^2}\right)

where the neighbours' logits w are even in both coordinates and begin as those of a Gaussian of 0.2 pixels, at least
:math:`\log 10^{-5}`: at first a filter takes at most :math:`10^{-5}` from each neighbour. The image is reflected at
its border. Both kinds of parameter take Adam steps with learning rates of their own, the gradient of an image's
tensor scaled down to a norm of 1 before, without which the factor c would stall Adam for good once LPIPS has been
above eps.

Of all iterates whose LPIPS is at most eps, the clean image among them, the one of highest L is returned.

Not as in the authors' implementation: gradients are scaled for each image, not for the batch, so that an image's
result does not depend on others; there is no further term on the distance to the median-filtered image; and the
attack goes on after a success.

LPIPS bounds no distance of pixel values. Its figures stand apart from those of l_p balls; the rows have the l_inf
and l_2 norms that came of it.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks.base import ATTACKS, AttackResult
from tasks.attacks.best import Best
from tasks.attacks.losses import LossName, check_classes, point_loss
from tasks.attacks.perceptual import PerceptualConfig, network
from tasks.attacks.target import Target

__all__ = ["GuidedFilter", "LowFrequencyConfig"]

_INSIDE = 1 - 1e-6
_SIGMA_SPACE, _LEAST = 0.2, 1e-5


@ATTACKS.register("low-frequency")
class LowFrequencyConfig(PerceptualConfig):
    """Low-frequency attack: learned guided filters under a bound of LPIPS.

    Arguments:
        norm: ``lpips``.
        eps: Largest LPIPS to the clean image.
        lpips: The network of LPIPS. The authors take ``net: vgg``.
        steps: Adam steps.
        kernels: Sides of the filters in pixels, odd, the first applied first.
        sigma: Width of the guidance kernel, units of [0, 1] pixels summed over channels.
        learning_rate: Adam's, of delta.
        filter_learning_rate: Adam's, of the filters' logits.
        penalty: c.
        loss: ``margin``, ``ce`` or ``dlr``.

    Raises:
        InvalidInput: No ``lpips``, kernels that are not odd; at run time, images too small for LPIPS or a kernel.
    """

    attack: Literal["low-frequency"] = "low-frequency"
    eps: float = Field(default=0.05, gt=0)
    steps: int = Field(default=100, ge=1)
    kernels: tuple[int, ...] = (5, 7, 5, 3)
    sigma: float = Field(default=0.1, gt=0)
    learning_rate: float = Field(default=0.008, gt=0)
    filter_learning_rate: float = Field(default=0.05, gt=0)
    penalty: float = Field(default=1e8, gt=0)
    loss: LossName = "margin"

    @model_validator(mode="after")
    def _odd(self) -> Self:
        if any(side < 1 or side % 2 == 0 for side in self.kernels):
            raise InvalidInput(f"kernels have odd sides, so that they have a middle, not {list(self.kernels)}.")
        return self

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """See :class:`AttackConfig`."""
        check_classes("loss", self.loss, classes)
        self._check_kernels(image_shape[1:])

    def _check_kernels(self, size: Sequence[int]) -> None:
        """Reflection at the border takes no kernel that reaches beyond the whole image."""
        if max(self.kernels, default=1) // 2 >= min(size):
            raise InvalidInput(
                f"kernels {list(self.kernels)} do not fit images of {tuple(size)} pixels.", keys=("kernels",)
            )

    def method(self) -> str:
        """``low-frequency-100 lpips-vgg``, with the loss where it is not the margin."""
        return f"{self.attack}-{self.steps} {self.norm}-{self.lpips.net}" + (
            f" {self.loss}" if self.loss != "margin" else ""
        )

    @property
    def evaluations(self) -> int:
        """The clean image, and one per iterate, the start included."""
        return self.steps + 2

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`. Nothing is drawn; the column ``lpips`` has the distance of each image."""
        distance = network(self.lpips).to(x.device)
        farthest = torch.zeros(len(x), device=x.device)
        with torch.no_grad():
            distance(x, x)  # refuses images that it cannot take, before the defence has cost anything
        self._check_kernels(x.shape[2:])
        loss = point_loss(self.loss)
        filters = [GuidedFilter(x, side, self.sigma) for side in self.kernels]
        inside = ((2 * x - 1) * _INSIDE).atanh()
        delta = torch.zeros_like(x, requires_grad=True)
        parameters = [delta, *(guided_filter.logits for guided_filter in filters)]
        # Adam works element by element, so that no image's steps depend on its batch.
        adam = torch.optim.Adam(
            [
                {"params": [delta], "lr": self.learning_rate},
                {"params": parameters[1:], "lr": self.filter_learning_rate},
            ],
            lr=self.learning_rate,
        )
        best = Best(x)
        best.see(x, target.evaluate(x, loss).loss)
        for step in range(self.steps + 1):
            adversarial = (torch.tanh(inside + delta) + 1) / 2
            for guided_filter in filters:
                adversarial = guided_filter(adversarial)
            images = adversarial.clamp(0, 1)
            if step == self.steps:
                with torch.no_grad():
                    far, value = distance(images, x), target.evaluate(images.detach(), loss).loss
            else:
                at = target.differentiate(images, loss)
                assert at.gradient is not None
                measured = distance(images, x)
                far, value = measured.detach(), at.loss
                excess = self.penalty * (measured - self.eps).clamp_min(0).sum()
                gradients = torch.autograd.grad([images, excess], parameters, [-at.gradient, torch.ones_like(excess)])
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = _at_most_one(gradient)
                adam.step()
            better = best.see(images, torch.where(far <= self.eps, value, -torch.inf))
            farthest = torch.where(better, far, farthest)
        return AttackResult(best.images, best.loss, columns={"lpips": farthest})


class GuidedFilter(nn.Module):
    """One filter of the module, with weights of its own for every pixel.

    Arguments:
        guide: Clean images, shape (B, C, H, W).
        side: k, odd.
        sigma: Width of the guidance kernel.

    Attributes:
        logits: w of one quadrant and the axes, shape (B, r + 1, r + 1, H, W) with r = (k - 1) / 2; the last place of
            both is the middle.
    """

    def __init__(self, guide: Tensor, side: int, sigma: float) -> None:
        super().__init__()
        self.side = side
        away = torch.arange(side // 2, -1, -1, device=guide.device, dtype=guide.dtype)
        gauss = torch.exp(-away.square() / (2 * _SIGMA_SPACE**2))
        gauss = gauss / (2 * gauss.sum() - 1)  # the middle is there once, the others on both sides
        first = torch.outer(gauss, gauss).clamp(_LEAST, 1 - _LEAST).log()
        count, _, height, width = guide.shape
        self.logits = nn.Parameter(first.view(1, *first.shape, 1, 1).repeat(count, 1, 1, height, width))
        middle = guide.unsqueeze(2)
        self.likeness = torch.exp(-(self._patches(guide) - middle).abs().sum(1).square() / (2 * sigma**2))
        radius = side // 2
        place = radius - (torch.arange(side, device=guide.device) - radius).abs()
        self.quadrant = (place.view(-1, 1) * (radius + 1) + place).flatten()

    def forward(self, z: Tensor) -> Tensor:
        """Filtered images, shape (B, C, H, W)."""
        # The softmax's own sum cancels in the ratio; it is here for the range of the exponential alone.
        share = self.logits.flatten(1, 2)[:, self.quadrant].softmax(1) * self.likeness
        filtered: Tensor = (self._patches(z) * (share / share.sum(1, keepdim=True)).unsqueeze(1)).sum(2)
        return filtered

    def _patches(self, z: Tensor) -> Tensor:
        """Return the neighbours of every pixel, shape (B, C, k^2, H, W)."""
        radius = self.side // 2
        padded = F.pad(z, (radius,) * 4, mode="reflect")
        return F.unfold(padded, self.side).view(*z.shape[:2], self.side**2, *z.shape[2:])


def _at_most_one(gradient: Tensor) -> Tensor:
    """Scaled down, image by image, to an l_2 norm of at most 1."""
    scale = gradient.flatten(1).abs().amax(1).clamp_min(1).view(-1, *[1] * (gradient.dim() - 1))
    gradient = gradient / scale  # the norm of 1e8 times a gradient overflows when squared
    norm = gradient.flatten(1).norm(dim=1).view_as(scale)
    scaled: Tensor = gradient / norm.clamp_min(1 / scale)
    return scaled
