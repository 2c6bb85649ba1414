r"""Bit-depth reduction: keep the leading b bits of each pixel.

.. math:: D(x) = \frac{\operatorname{round}\big((2^b - 1)\, x\big)}{2^b - 1}

Xu, Evans, Qi, "Feature squeezing: detecting adversarial examples in deep neural networks", arXiv 1704.01155. Halves
round to the even level, as torch and numpy do. Values outside [0, 1] stay outside.

The derivative is zero almost everywhere, so that the exact gradient says nothing and looks like robustness (Athalye
et al., arXiv 1802.00420). The backward pass is therefore **straight-through**, that of the identity: what an attacker
would use. In the gradient mode ``soft`` it is that of a soft quantiser (:mod:`defense.purifiers.soft`). The forward
pass gives the rounded values themselves.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from defense.models import Models
from defense.purifiers.base import PURIFIERS, FilterConfig, Purifier
from defense.purifiers.soft import soft_levels, with_gradient_of
from defense.randomness import Omega

__all__ = ["BitDepth", "BitDepthConfig"]


class BitDepth(Purifier):
    """Rounds every pixel to one of ``2^bits`` levels.

    Arguments:
        bits: Bits per channel that are kept, 1 to 8.
        soft: Differentiate the soft quantiser instead of the identity.
    """

    def __init__(self, bits: int, *, soft: bool = False) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise ValueError(f"bits = {bits}; 1 to 8 bits of a channel can be kept")
        self.bits = bits
        self.levels = 2**bits - 1
        self.soft = soft

    def softened(self) -> BitDepth:
        """Return the rounding with the gradient of the soft quantiser."""
        return BitDepth(self.bits, soft=True)

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        """Rounded images, same shape and dtype; gradients pass straight through. ``omega`` has no influence."""
        rounded: Tensor = (x.detach() * self.levels).round() / self.levels
        if self.soft:
            return (
                with_gradient_of(rounded, soft_levels(x * self.levels) / self.levels) if x.requires_grad else rounded
            )
        return rounded + (x - x.detach())  # the bracket is exactly zero and has the derivative of x


@PURIFIERS.register("bit-depth")
class BitDepthConfig(FilterConfig):
    """Bit-depth reduction (feature squeezing): every pixel rounded to 2^bits levels.

    Arguments:
        bits: Bits per channel, 1 to 8. Images that are stored with 8 bits are left as they are by 8.
    """

    purifier: Literal["bit-depth"] = "bit-depth"
    bits: int = Field(ge=1, le=8)

    @property
    def differentiable(self) -> bool:
        """False: the backward pass is straight-through."""
        return False

    @property
    def softens(self) -> bool:
        """True: there is a soft quantiser."""
        return True

    def label(self) -> str:
        """``bit-depth 4``."""
        return f"bit-depth {self.bits}"

    def build(self, models: Models | None = None) -> BitDepth:
        """Return the rounding; it holds no network."""
        return BitDepth(self.bits).eval()
