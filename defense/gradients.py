r"""Gradients through a purifier: one engine, seven modes.

An attacker differentiates :math:`\ell(f(D(x;\omega)), y)`. What stands for :math:`\partial D/\partial x` decides what
a robustness figure is worth:

* ``blind``: the purifier is left out, ``D(x) = x``: the attacker does not know of it;
* ``bpda``: forward through D, backward through the identity (Athalye et al., arXiv 1802.00420);
* ``surrogate(k)``: D with k reverse steps per round instead of all, forward and backward (Lee and Kim, ICCV 2023);
* ``exact``: the gradient of what was computed;
* ``soft``: as ``exact``, but what rounds (JPEG, bit depth) and the median have the backward pass of a published
  differentiable approximation, where ``exact`` takes the identity or the one pixel that is the median
  (:mod:`defense.purifiers.soft`); the values are those of D;
* ``exact-no-guidance-path``: as ``exact``, but guidance counts as a constant: its dependence on ``x`` through the
  target and its second-order terms are dropped. That is the defect of published attacks that Kassis et al. (arXiv
  2411.16598) point out; the mode is here to show what it hides;
* ``exact-no-second-moment``: as ``exact``, but the second moment of a purifier that is an optimiser counts as a
  constant, as in the public code of DiffHammer; for all other purifiers it is ``exact``
  (:mod:`defense.purifiers.optimised`).

The exact modes walk the chain with :mod:`defense.chain_gradient`, whose memory is that of a few steps.

**Deviation.** :func:`purify_and_deviate` adds a loss of the states on the way (Kang et al., "DiffAttack", NeurIPS
2023, arXiv 2311.16124, equation 8): their mean squared distance from the forward process,

.. math:: L_{dev} = \frac1m \sum_{i \in S} \mathrm{mean}\,(z_i - z_i^{fwd})^2, \qquad
          z_i^{fwd} = \sqrt{\bar\alpha_i}\, o_i + \sqrt{1-\bar\alpha_i}\, \epsilon,

with :math:`o_i` what the round of state i noised (the input, or the last state of the round before) and
:math:`\epsilon` that round's forward noise, the one that the draw used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from defense.chain_gradient import IrreproducibleState, compared, through_chain
from defense.errors import InvalidInput, nearest
from defense.held_graphs import number_of
from defense.purifiers.base import Purifier
from defense.randomness import Omega

__all__ = ["GRADIENT_MODES", "GradientMode", "IrreproducibleState", "purify", "purify_and_deviate"]

ModeName = Literal["blind", "bpda", "surrogate", "exact", "soft", "exact-no-guidance-path", "exact-no-second-moment"]
GRADIENT_MODES: tuple[str, ...] = (
    *("blind", "bpda", "surrogate(K)", "exact", "soft"),
    *("exact-no-guidance-path", "exact-no-second-moment"),
)


@dataclass(frozen=True)
class GradientMode:
    """A gradient mode.

    Arguments:
        name: One of the seven, see the module.
        steps: Reverse steps of ``surrogate``, 0 for the others.
    """

    name: ModeName
    steps: int = 0

    @classmethod
    def parse(cls, text: str) -> GradientMode:
        """Return the mode of a name such as ``"exact"`` or ``"surrogate(5)"``.

        Raises:
            InvalidInput: There is no such mode.
        """
        match = re.fullmatch(r"surrogate\((\d+)\)", text)
        if match and int(match[1]) >= 1:
            return cls("surrogate", int(match[1]))
        if text in GRADIENT_MODES and text != "surrogate(K)":
            return cls(text)  # type: ignore[arg-type]
        raise InvalidInput(
            f"unknown gradient mode {text!r}; {nearest(text, GRADIENT_MODES)} (K is a number of reverse steps, at "
            "least 1, like surrogate(5))."
        )

    def __str__(self) -> str:
        return f"surrogate({self.steps})" if self.name == "surrogate" else self.name


def purify(
    purifier: Purifier, x: Tensor, omega: Omega, mode: GradientMode | str = "exact", *, segment: int | None = None
) -> Tensor:
    """Purify with a chosen gradient.

    Arguments:
        purifier: The purifier, its parameters frozen.
        x: Images in [0, 1], shape (B, C, H, W).
        omega: Randomness of each batch element.
        mode: Gradient mode or its name.
        segment: Steps whose graph is held at a time in the exact modes; by default ``ceil(sqrt(n) / 8)``.

    Returns:
        Purified images, shape (B, C, H, W). They are ``x`` in ``blind``, those of the shorter chain in
        ``surrogate(k)``, and ``purifier(x, omega)`` in all other modes.

    Raises:
        IrreproducibleState: In the backward pass, see the module.
    """
    mode = GradientMode.parse(mode) if isinstance(mode, str) else mode
    if mode.name == "blind":
        return x
    if mode.name == "bpda":
        with torch.no_grad():
            purified = purifier(x, omega)
        # Not x + (purified - x): that would round.
        return _StraightThrough.apply(x, purified)  # type: ignore[no-untyped-call,no-any-return]
    identity = (number_of(purifier), str(mode))
    return through_chain(_differentiated(purifier, mode), x, omega, _guides(mode), segment, identity=identity)[0]


def purify_and_deviate(
    purifier: Purifier,
    x: Tensor,
    omega: Omega,
    mode: GradientMode | str = "exact",
    *,
    every: int = 3,
    segment: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Purify, and measure how far the states are from those of the forward process; see the module.

    Arguments:
        purifier: The purifier; one that noises its input, or a sequence with such a stage.
        x: See :func:`purify`.
        omega: See there.
        mode: Gradient mode or its name, one that goes through the chain.
        every: Which states are compared: of each round the last one, and every so many-th before it.
        segment: See there.

    Returns:
        Purified images, as :func:`purify` gives them, and L_dev in diffusion units squared, shape (B,), with the
        gradients of both.

    Raises:
        InvalidInput: The purifier has no forward process, or the mode does not go through the chain.
    """
    mode = GradientMode.parse(mode) if isinstance(mode, str) else mode
    if mode.name in ("blind", "bpda"):
        raise InvalidInput(
            f"gradient {mode} does not go through the states of a purification, so their deviation has no gradient "
            "there: use exact or surrogate(K)."
        )
    identity = (number_of(purifier), str(mode))
    purifier = _differentiated(purifier, mode)
    count = compared(purifier, every)
    if not count:
        raise InvalidInput(
            f"{type(purifier).__name__} does not noise its input and reverse that: it has no states of a forward "
            "process from which those of the reverse process could deviate."
        )
    purified, deviation = through_chain(purifier, x, omega, _guides(mode), segment, every, identity)
    return purified, deviation / count


def _differentiated(purifier: Purifier, mode: GradientMode) -> Purifier:
    """Return the chain through which a mode differentiates."""
    if mode.name == "surrogate":
        return purifier.surrogate(mode.steps)
    if mode.name == "soft":
        return purifier.softened()
    return purifier.without_second_moment() if mode.name == "exact-no-second-moment" else purifier


def _guides(mode: GradientMode) -> bool:
    return mode.name != "exact-no-guidance-path"


class _StraightThrough(torch.autograd.Function):
    """The value of ``purified`` with the gradient of ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, purified: Tensor) -> Tensor:
        return purified.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
