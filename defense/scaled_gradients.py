r"""Backward passes on gradients of size about one, whatever the size of the loss's gradient.

A draw on which a classifier is sure has a tiny gradient: of a probability p near 1 it is about :math:`1 - p`, and of
one taken to the power of ten (a soft vote) its tenth power. Below :math:`2^{-126}` single precision has fewer and
fewer digits, zero at last, and processors take ten to a hundred times as long for such numbers. So each element b of
a batch goes back through ``f`` with its gradient times a power of two, which is taken away again at the images:

.. math:: \bar x_b = 2^{-k_b} \left(\frac{\partial f}{\partial x_b}\right)^\top (2^{k_b}\, \bar y_b), \qquad
          2^{k_b} \max_i |\bar y_{b,i}| \in [\tfrac12, 1).

A power of two changes no digit, so the bits are those of the backward pass without, where that one does not leave
the range of normal numbers. ``f`` must treat the elements of a batch apart, as networks in evaluation mode do, and
have no weights that learn. It is loss scaling (Micikevicius et al., "Mixed precision training", ICLR 2018, arXiv
1710.03740, section 3.2), draw by draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

__all__ = ["with_scaled_gradient"]

_MOST = 126
"""The largest k: :math:`2^{\\pm k}` are normal in single precision."""

Outputs = TypeVar("Outputs", Tensor, tuple[Tensor, Tensor])


class _Factor:
    """Powers of two of one backward pass, shape (B,): set where it enters, taken away where it leaves.

    A second derivative may go back on other ways than in where they are set, so that whoever asks for a graph of the
    backward pass gets no powers, then and later.
    """

    def __init__(self) -> None:
        self.exponents: Tensor | None = None
        self._off = False

    def choose(self, gradients: tuple[Tensor, ...]) -> None:
        """Set the exponents by the largest entry of each element; 0 where that is 0, infinite or NaN."""
        self._off = self._off or torch.is_grad_enabled()
        largest = torch.stack([g.detach().reshape(len(g), -1).abs().amax(1).float() for g in gradients]).amax(0)
        exponents = -torch.frexp(largest).exponent
        usable = (largest > 0) & (largest < torch.inf) & (not self._off)
        self.exponents = torch.where(usable, exponents, 0).clamp(-_MOST, _MOST)

    def times(self, gradient: Tensor, sign: int) -> Tensor:
        """Return the gradient of each element times its power of two, or divided by it."""
        assert self.exponents is not None
        # Made of its bits: a library's power function may be off by one in the last of them.
        power = ((sign * self.exponents + 127).to(torch.int32) << 23).view(torch.float32)
        return gradient * power.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1))


class _Enter(torch.autograd.Function):
    """The images; on the way back what ``_Leave`` multiplied by is divided out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: _Factor) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.factor.times(gradient, -1), None


class _Leave(torch.autograd.Function):
    """The outputs; on the way back their gradients are multiplied by one power of two an element."""

    @staticmethod
    def forward(ctx: Any, factor: _Factor, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.factor = factor
        return tuple(out.view_as(out) for out in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.factor.choose(gradients)
        return None, *(ctx.factor.times(gradient, 1) for gradient in gradients)


def with_scaled_gradient(f: Callable[[Tensor], Outputs], x: Tensor) -> Outputs:
    """Return ``f(x)``, whose backward pass has gradients of size about one; see the module.

    Arguments:
        f: A function of images, which may also be of anything that has no gradient: outputs of shape (B, ...), each
            element of which depends on the same element of ``x`` alone.
        x: Images, shape (B, C, H, W).
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return f(x)
    factor = _Factor()
    outputs = f(cast(Tensor, _Enter.apply(x, factor)))  # type: ignore[no-untyped-call]
    several = isinstance(outputs, tuple)
    left = _Leave.apply(factor, *(outputs if several else (outputs,)))  # type: ignore[no-untyped-call]
    return cast(Outputs, left if several else left[0])
