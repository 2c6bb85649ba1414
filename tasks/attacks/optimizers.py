"""Adam by hand, for attacks that follow many images at once."""

import torch
from torch import Tensor

__all__ = ["Adam"]


class Adam:
    """Adam with its usual decay rates (Kingma and Ba, arXiv 1412.6980).

    It works element by element, so that no image knows of another; and it returns its steps instead of taking them,
    so that they can be projected, or withheld from some images.
    """

    def __init__(self, like: Tensor, lr: float) -> None:
        self.lr, self.count = lr, 0
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)

    def step(self, gradient: Tensor) -> Tensor:
        """Return the step along a gradient: to be added where it is to rise, subtracted where it is to fall."""
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient.square()
        mean, square = self.mean / (1 - 0.9**self.count), self.square / (1 - 0.999**self.count)
        return self.lr * mean / (square.sqrt() + 1e-8)
