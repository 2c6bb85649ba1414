r"""JPEG compression and decompression.

.. math:: D(x) = \tfrac{1}{255}\, \mathrm{JPEG}^{-1}_q\big(\mathrm{JPEG}_q(\operatorname{round}(255\, x))\big)

Das et al., "Keeping the bad guys out: protecting and vaccinating deep learning with JPEG compression", arXiv
1705.02900; Guo et al., "Countering adversarial images using input transformations", arXiv 1711.00117 (quality 75).

The codec is Pillow's (libjpeg) on the CPU, one image at a time, at Pillow's defaults but for the quality: baseline,
4:2:0 chroma subsampling for colour, none for grey. Images of the store are never rounded to 8 bits, but a JPEG codec
takes nothing else: values are clamped to [0, 1] and rounded to the nearest of 256 levels first. So quality 100 is not
the identity either.

The derivative is zero almost everywhere, so that the exact gradient says nothing and looks like robustness (Athalye
et al., arXiv 1802.00420). The backward pass is therefore **straight-through**, that of the identity: what an attacker
would use. In the gradient mode ``soft`` it is that of a differentiable JPEG (:mod:`defense.purifiers.soft_jpeg`). The
forward pass gives the decoded values themselves.
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from defense.errors import InvalidInput
from defense.models import Models
from defense.packages import installed
from defense.purifiers.base import PURIFIERS, FilterConfig, Purifier
from defense.purifiers.soft import with_gradient_of
from defense.purifiers.soft_jpeg import soft_jpeg
from defense.randomness import Omega

__all__ = ["JPEG", "JPEGConfig"]


def _round_trip(pixels: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    """Encode and decode one image, shape (C, H, W), C = 1 or 3."""
    with installed("purifier jpeg"):
        from PIL import Image  # here, so that importing the library does not import an image library

    grey = len(pixels) == 1
    image = Image.fromarray(pixels[0] if grey else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=quality)
    with Image.open(file) as decoded:
        values = np.asarray(decoded, dtype=np.uint8)
    return values[None] if grey else values.transpose(2, 0, 1)


class JPEG(Purifier):
    """Compresses each image and decompresses it.

    Arguments:
        quality: Quality of the encoder as libjpeg counts it, 1 (worst) to 100. It scales the quantisation tables;
            50 means the tables of the standard.
        soft: Differentiate the differentiable JPEG instead of the identity.
    """

    def __init__(self, quality: int, *, soft: bool = False) -> None:
        super().__init__()
        if not 1 <= quality <= 100:
            raise ValueError(f"quality = {quality}; JPEG qualities go from 1 to 100")
        self.quality = quality
        self.soft = soft

    def softened(self) -> JPEG:
        """Return the codec with the gradient of the differentiable JPEG."""
        return JPEG(self.quality, soft=True)

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        """Decoded images in [0, 1] on 256 levels, same shape, dtype and device; ``omega`` has no influence.

        Arguments:
            x: Images, shape (B, C, H, W), C = 1 or 3; clamped to [0, 1].
            omega: Ignored.

        Raises:
            ValueError: Images of another number of channels.
        """
        if x.shape[1] not in (1, 3):
            raise ValueError(f"images of {x.shape[1]} channels; the JPEG codec takes 1 (grey) or 3 (RGB)")
        levels = (x.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()
        coded = np.empty_like(levels)
        for out, image in zip(coded, levels, strict=True):
            out[:] = _round_trip(image, self.quality)
        decoded = torch.from_numpy(coded).to(x) / 255
        if self.soft:
            return with_gradient_of(decoded, soft_jpeg(x, self.quality)) if x.requires_grad else decoded
        return decoded + (x - x.detach())  # the bracket is exactly zero and has the derivative of x


@PURIFIERS.register("jpeg")
class JPEGConfig(FilterConfig):
    """JPEG compression and decompression.

    Arguments:
        quality: 1 to 100; 75 is that of Guo et al.
    """

    purifier: Literal["jpeg"] = "jpeg"
    quality: int = Field(default=75, ge=1, le=100)

    @property
    def differentiable(self) -> bool:
        """False: the backward pass is straight-through."""
        return False

    @property
    def softens(self) -> bool:
        """True: there is a differentiable JPEG."""
        return True

    def check_images(self, image_shape: tuple[int, int, int]) -> None:
        """See :class:`PurifierConfig`: the codec takes grey and RGB images."""
        if image_shape[0] not in (1, 3):
            raise InvalidInput(
                f"images of {image_shape[0]} channels; the JPEG codec takes 1 (grey) or 3 (RGB). Use another one."
            )

    def label(self) -> str:
        """``jpeg q=75``."""
        return f"jpeg q={self.quality}"

    def build(self, models: Models | None = None) -> JPEG:
        """Return the codec; it holds no network."""
        return JPEG(self.quality).eval()
