r"""Differentiable approximations of what has no useful derivative, for gradients only.

A purifier that rounds keeps its value; in the gradient mode ``soft`` (:mod:`defense.gradients`) its backward pass is
that of one of these:

* :func:`soft_round`, the cubic of Shin and Song ("JPEG-resistant adversarial images", NIPS 2017 workshop on machine
  learning and computer security):

  .. math:: r(x) = [x] + (x - [x])^3, \qquad r'(x) = 3\,(x - [x])^2,

  with :math:`[x]` the nearest whole number. It is flat at whole numbers and steep where the rounding jumps;
* :func:`soft_levels`, the quantiser of Gong et al. ("Differentiable soft quantization", ICCV 2019, arXiv 1908.05033).
  Between the levels i and i + 1, with m their middle,

  .. math:: q(x) = i + \tfrac12\left(1 + s \tanh(k\,(x - m))\right), \qquad
            s = \frac1{1-\alpha}, \quad k = \log\left(\tfrac2\alpha - 1\right),

  which joins the levels continuously and goes to the staircase with :math:`\alpha\to 0`;
* :func:`soft_median`, the weighted mean of Geisler et al. ("Robustness of graph neural networks at scale", NeurIPS
  2021, arXiv 2110.14038), here of numbers:

  .. math:: \mu = \sum_i w_i x_i, \qquad w = \mathrm{softmax}\left(-\tfrac{|x_i - \bar x|}{T}\right),

  with :math:`\bar x` the median. It spreads the gradient over all pixels that are near the median.
"""

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["soft_levels", "soft_median", "soft_round", "with_gradient_of"]


def soft_round(x: Tensor) -> Tensor:
    """Round by the cubic of Shin and Song."""
    nearest = x.detach().round()
    return nearest + (x - nearest) ** 3


def soft_levels(x: Tensor, alpha: float = 0.2) -> Tensor:
    """Round by the quantiser of Gong et al.

    Arguments:
        x: Values in units of the distance between levels, which are the whole numbers.
        alpha: Above 0 and below 1; 0.2 makes the slope 1.37 in the middle between levels and 0.49 at them.
    """
    below = x.detach().floor()
    k = math.log(2 / alpha - 1)
    return below + 0.5 * (1 + torch.tanh(k * (x - below - 0.5)) / (1 - alpha))


def soft_median(x: Tensor, temperature: float = 0.05) -> Tensor:
    """Median along the last axis by the weighted mean of Geisler et al.

    Arguments:
        x: Values, shape (..., N).
        temperature: T, in units of the values.
    """
    middle = x.median(dim=-1, keepdim=True).values
    weights = torch.softmax(-(x - middle).abs() / temperature, dim=-1)
    return (weights * x).sum(-1)


def with_gradient_of(value: Tensor, approximation: Tensor) -> Tensor:
    """Return ``value``, to the last bit, with the gradient of ``approximation``, of the same shape."""
    return _Instead.apply(value, approximation)  # type: ignore[no-untyped-call,no-any-return]


class _Instead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, approximation: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient
