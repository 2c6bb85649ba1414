r"""Median filter.

.. math:: D(x)_{c,i,j} = \operatorname{median}\{x_{c,i+u,j+v} : |u|, |v| \le (k - 1)/2\}

per channel, k odd, with the image continued by reflection at its border pixels, which are not repeated (torch's
``reflect``, scipy's ``mirror``). Xu, Evans, Qi, "Feature squeezing: detecting adversarial examples in deep neural
networks", arXiv 1704.01155 (there also with even k, for which the window has no centre).

The output is a pixel of the input, so that the derivative exists almost everywhere: one for the pixel that is the
median, zero for the others. Where several pixels of a window have the median's value, it goes to one of them. The
gradient mode ``soft`` spreads it over the pixels near the median (:mod:`defense.purifiers.soft`).
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from defense.errors import InvalidInput
from defense.models import Models
from defense.purifiers.base import PURIFIERS, FilterConfig, Purifier
from defense.purifiers.soft import soft_median, with_gradient_of
from defense.randomness import Omega

__all__ = ["Median", "MedianConfig"]


class Median(Purifier):
    """Replaces each pixel by the median of its k x k neighbourhood.

    Arguments:
        size: Side k of the window, odd, at least 3.
        soft: Differentiate the soft median instead of the median.
    """

    def __init__(self, size: int, *, soft: bool = False) -> None:
        super().__init__()
        if size < 3 or size % 2 == 0:
            raise ValueError(f"size = {size}; the window of a median filter has an odd side of at least 3")
        self.size = size
        self.soft = soft

    def softened(self) -> Median:
        """Return the filter with the gradient of the soft median."""
        return Median(self.size, soft=True)

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        """Filtered images, same shape and dtype; ``omega`` has no influence.

        Arguments:
            x: Images, shape (B, C, H, W), H and W above (k - 1) / 2.
            omega: Ignored.

        Raises:
            ValueError: Images too small to be continued by reflection.
        """
        pad = self.size // 2
        if min(x.shape[2:]) <= pad:
            raise ValueError(f"images of {tuple(x.shape[2:])} pixels are too small for a median of size {self.size}")
        continued = F.pad(x, (pad, pad, pad, pad), mode="reflect")
        windows = continued.unfold(2, self.size, 1).unfold(3, self.size, 1)
        found = windows.flatten(4).median(dim=4).values
        if self.soft and x.requires_grad:
            return with_gradient_of(found.detach(), soft_median(windows.flatten(4)))
        return found


@PURIFIERS.register("median")
class MedianConfig(FilterConfig):
    """Median filter (feature squeezing).

    Arguments:
        size: Side of the window in pixels, odd, at least 3.
    """

    purifier: Literal["median"] = "median"
    size: int = Field(default=3, ge=3)

    @field_validator("size")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError(
                f"the window of {size} x {size} pixels has no centre; take an odd size such as {size + 1}"
            )
        return size

    def check_images(self, image_shape: tuple[int, int, int]) -> None:
        """See :class:`PurifierConfig`: images are continued by their own pixels, as far as the window."""
        if min(image_shape[1:]) <= self.size // 2:
            raise InvalidInput(
                f"images of {image_shape[1:]} pixels are too small for a median of size {self.size}: give a smaller "
                "one.",
                keys=("size",),
            )

    @property
    def softens(self) -> bool:
        """True: there is a soft median."""
        return True

    def label(self) -> str:
        """``median 3x3``."""
        return f"median {self.size}x{self.size}"

    def build(self, models: Models | None = None) -> Median:
        """Return the filter; it holds no network."""
        return Median(self.size).eval()
