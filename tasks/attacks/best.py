"""The best point that an attack has seen."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Best"]


class Best:
    """The images of highest loss so far.

    Arguments:
        x: Clean images, shape (B, ...).
    """

    def __init__(self, x: Tensor) -> None:
        self.images = x.detach()
        self.loss = torch.full((len(x),), -torch.inf, device=x.device)

    def see(self, images: Tensor, loss: Tensor) -> Tensor:
        """Keep what is better; returns where, shape (B,)."""
        better = loss > self.loss
        self.images = torch.where(better.view(-1, *[1] * (images.dim() - 1)), images.detach(), self.images)
        self.loss = torch.where(better, loss, self.loss)
        return better

    def see_at(self, positions: Tensor, other: Best) -> None:
        """Keep what another run has found of the images at some positions, shape (N,)."""
        images, loss = self.images.clone(), torch.full_like(self.loss, -torch.inf)
        images[positions], loss[positions] = other.images, other.loss
        self.see(images, loss)

    def end_run(self) -> None:
        """Say that the point seen last was the last of its run; means nothing here."""
