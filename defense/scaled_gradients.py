r"""Backward passes of draws whose gradient is tiny, on gradients of size about one.

A draw on which a classifier is sure has a tiny gradient: that of a cross-entropy is about :math:`1 - p`, that of a
vote, :math:`\mathrm{softmax}(10 z)`, about its tenth power. Below :math:`2^{-126}` single precision has fewer and
fewer digits, zero at last, and processors take ten to a hundred times as long for such numbers. So each element b
of a batch whose gradient is below :data:`TINY` goes back through ``f`` with it times a power of two, which is taken
away again at the images:

.. math:: \bar x_b = 2^{-k_b} \left(\frac{\partial f}{\partial x_b}\right)^\top (2^{k_b}\, \bar y_b), \qquad
          2^{k_b} \max_i |\bar y_{b,i}| \in [\tfrac12, 1).

A power of two changes no digit, so the bits are those of the backward pass without, where neither leaves the range
of normal numbers. What the loss itself has lost is not brought back. ``f`` must treat the elements of a batch
apart, as networks in evaluation mode do, have no weights that learn and a backward pass that is linear in the
gradient. It is loss scaling (Micikevicius et al., "Mixed precision training", ICLR 2018, arXiv 1710.03740, section
3.2), draw by draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

__all__ = ["TINY", "Outputs", "with_scaled_gradient"]

TINY = 2.0**-40
"""Gradients whose largest entry is below are scaled; on the way back others stay far above 2^-126."""

_MOST = 126
"""The largest k: :math:`2^{\\pm k}` are normal in single precision."""

_WIDE = (torch.float32, torch.float64, torch.bfloat16)
"""Types with the exponents that the powers have."""

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
        """Set the exponents by the largest entry of each element; 0 where that is not tiny, or is 0."""
        self._off = self._off or torch.is_grad_enabled()
        largest = torch.stack([g.detach().reshape(len(g), -1).abs().amax(1).float() for g in gradients]).amax(0)
        tiny = (largest > 0) & (largest < TINY) & (not self._off)
        self.exponents = torch.where(tiny, -torch.frexp(largest).exponent, 0).clamp(0, _MOST)

    def times(self, gradient: Tensor, sign: int) -> Tensor:
        """Return the gradient of each element times its power of two, or divided by it."""
        if self.exponents is None:
            return gradient
        # Made of its bits: a library's power function may be off by one in the last of them.
        power = ((sign * self.exponents + 127).to(torch.int32) << 23).view(torch.float32).to(gradient)
        return gradient * power.view(-1, *[1] * (gradient.dim() - 1))


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
    """Return ``f(x)``, in whose backward pass tiny gradients are of size about one; see the module.

    Nothing is scaled in half precision, whose range is too small for it, and where outputs are not one an image.

    Arguments:
        f: A function of images, which may also be of anything that has no gradient: outputs of shape (B, ...), each
            element of which depends on the same element of ``x`` alone.
        x: Images, shape (B, C, H, W).
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return f(x)
    factor = _Factor()
    outputs = f(cast(Tensor, _Enter.apply(x, factor)))  # type: ignore[no-untyped-call]
    several: tuple[Tensor, ...] = outputs if isinstance(outputs, tuple) else (outputs,)
    if any(len(out) != len(x) or out.dtype not in _WIDE for out in (x, *several)):
        return outputs
    left = _Leave.apply(factor, *several)  # type: ignore[no-untyped-call]
    return cast(Outputs, left if isinstance(outputs, tuple) else left[0])
