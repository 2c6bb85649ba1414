"""Augmentation of a batch: random shifts and mirror images."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["augmented"]


def augmented(x: Tensor, generator: torch.Generator, *, shift: int, flip: bool) -> Tensor:
    """Mirror each image with probability 1/2 and shift it by up to ``shift`` pixels.

    Arguments:
        x: Images, shape (B, C, H, W), on the CPU.
        generator: Source of the draws.
        shift: Largest shift up, down, left and right; pixels that come in are zero.
        flip: Mirror left and right.

    Returns:
        Images of the same shape, contiguous.
    """
    if flip:
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
    if shift:
        padded = F.pad(x, (shift, shift, shift, shift))
        by = torch.randint(2 * shift + 1, (len(x), 2), generator=generator)
        height, width = x.shape[2:]
        rows = by[:, :1] + torch.arange(height)
        columns = by[:, 1:] + torch.arange(width)
        index = torch.arange(len(x)).view(-1, 1, 1)
        x = padded[index, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
    return x.contiguous()
