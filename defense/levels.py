"""Coefficients of one noise level, or of one level an image: the same formulas for numbers and for tensors.

Where a whole batch has one level, a coefficient is a Python number. Where each image has its own, it is a float64
tensor of shape (B, 1, 1, 1): near the clean end what float32 leaves of 1 - abar is noise. It takes the images' type
when it meets them, as a number does.
"""

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["factor", "log", "root"]


def root(value: Any) -> Any:
    """Return the square root of a number, or of each element of a tensor, with the derivative 0 where that is 0.

    A variance is 0 after the last step, whatever the level at which the process began.
    """
    if not isinstance(value, Tensor):
        return math.sqrt(value)
    above = value > 0
    return torch.where(above, torch.where(above, value, 1.0).sqrt(), 0.0)


def log(value: Any) -> Any:
    """Return the natural logarithm of a number, or of each element of a tensor."""
    return value.log() if isinstance(value, Tensor) else math.log(value)


def factor(value: Any, like: Tensor) -> Any:
    """Return a coefficient as it multiplies ``like``: a number, or a tensor of its type."""
    return value.to(like.dtype) if isinstance(value, Tensor) else value
