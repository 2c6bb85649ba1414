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

**Exact** is reverse accumulation through the chain :math:`z_{i+1} = F_i(z_i, x)` with segment checkpointing:

.. math:: \bar z_i = \left(\frac{\partial F_i}{\partial z_i}\right)^\top \bar z_{i+1}, \qquad
          \bar x = \sum_i \left(\frac{\partial F_i}{\partial x}\right)^\top \bar z_{i+1}
                   + \left(\frac{\partial z_0}{\partial x}\right)^\top \bar z_0 .

The forward pass keeps one state in every L; the backward pass rebuilds the graph of one segment of L steps at a
time, with the noise replayed from its keys. With :math:`L = \lceil\sqrt n / 8\rceil` both the states kept and the
graph held grow with the square root of the number of steps n, and nothing is computed more than twice. The factor 8
is there because one step's graph of a U-Net is some hundred states large.

**Deviation.** :func:`purify_and_deviate` adds a loss of the states on the way (Kang et al., "DiffAttack", NeurIPS
2023, arXiv 2311.16124, equation 8): their mean squared distance from the forward process,

.. math:: L_{dev} = \frac1m \sum_{i \in S} \mathrm{mean}\,(z_i - z_i^{fwd})^2, \qquad
          z_i^{fwd} = \sqrt{\bar\alpha_i}\, o_i + \sqrt{1-\bar\alpha_i}\, \epsilon,

with :math:`o_i` what the round of state i noised (the input, or the last state of the round before) and
:math:`\epsilon` that round's forward noise, the one that the draw used. The backward pass adds each term's
gradient to :math:`\bar z_i` in the segment where the state is rebuilt anyway. What a term sends to an :math:`o_i` in
an earlier segment waits until the walk gets there, one image a round, so that the memory is that of the chain alone.

The rebuilt state at the end of each segment must equal the kept one bit for bit. A gradient at other states than
those that were visited (other time values, other noise) is the gradient of something else; if it happens, it raises.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from defense.errors import InvalidInput, PuregridError, nearest
from defense.purifiers.base import IterativePurifier, Purifier
from defense.purifiers.sequence import Sequence
from defense.randomness import Omega

__all__ = ["GRADIENT_MODES", "GradientMode", "IrreproducibleState", "purify", "purify_and_deviate"]

ModeName = Literal["blind", "bpda", "surrogate", "exact", "soft", "exact-no-guidance-path", "exact-no-second-moment"]
GRADIENT_MODES: tuple[str, ...] = (
    *("blind", "bpda", "surrogate(K)", "exact", "soft"),
    *("exact-no-guidance-path", "exact-no-second-moment"),
)


class IrreproducibleState(PuregridError):
    """A state rebuilt in the backward pass is not the one of the forward pass."""


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
    if mode.name == "surrogate":
        purifier = purifier.surrogate(mode.steps)
    if mode.name == "soft":
        purifier = purifier.softened()
    if mode.name == "exact-no-second-moment":
        purifier = purifier.without_second_moment()
    return _exact(purifier, x, omega, mode.name != "exact-no-guidance-path", segment)[0]


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
        x: Images in [0, 1], shape (B, C, H, W).
        omega: Randomness of each batch element.
        mode: Gradient mode or its name, one that goes through the chain.
        every: Which states are compared: of each round the last one, and every so many-th before it.
        segment: See :func:`purify`.

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
    if mode.name == "surrogate":
        purifier = purifier.surrogate(mode.steps)
    if mode.name == "soft":
        purifier = purifier.softened()
    if mode.name == "exact-no-second-moment":
        purifier = purifier.without_second_moment()
    count = _compared(purifier, every)
    if not count:
        raise InvalidInput(
            f"{type(purifier).__name__} does not noise its input and reverse that: it has no states of a forward "
            "process from which those of the reverse process could deviate."
        )
    purified, deviation = _exact(purifier, x, omega, mode.name != "exact-no-guidance-path", segment, every)
    return purified, deviation / count


def _compared(purifier: Purifier, every: int) -> int:
    """Return how many states are compared with the forward process."""
    if isinstance(purifier, Sequence):
        return sum(_compared(stage, every) for stage in purifier.stages if isinstance(stage, Purifier))
    return len(_Deviation(purifier, every).origin) if isinstance(purifier, IterativePurifier) else 0


def _exact(
    purifier: Purifier, x: Tensor, omega: Omega, guidance_path: bool, segment: int | None, every: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return purified images, and the sum of the deviations where ``every`` asks for them."""
    if isinstance(purifier, Sequence):
        total = x.new_zeros(len(x))
        for stage, stage_omega in purifier.stages_with(omega):
            x, added = _exact(stage, x, stage_omega, guidance_path, segment, every)
            total = total + added
        return x, total
    if not isinstance(purifier, IterativePurifier):
        return purifier(x, omega), x.new_zeros(len(x))
    deviation = _Deviation(purifier, every)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _walk(purifier, x, omega, guidance_path, purifier.length, deviation)[:2]
    if any(parameter.requires_grad for parameter in purifier.parameters()):
        raise ValueError("the exact gradient is one with respect to images: freeze the purifier's parameters first")
    size = math.ceil(math.sqrt(purifier.length) / 8) if segment is None else segment
    if size < 1:
        raise ValueError(f"a segment has at least 1 step, not {segment}")
    return _Checkpointed.apply(  # type: ignore[no-untyped-call,no-any-return]
        x, purifier, omega, guidance_path, size, deviation
    )


class _Deviation:
    """Terms of L_dev: which states have one, and their values.

    Arguments:
        purifier: The chain.
        every: See :func:`purify_and_deviate`; None for no terms at all.

    Attributes:
        origin: Origin of each state that has a term, by number of the state.
        needed: Origins that are states of the chain.
    """

    def __init__(self, purifier: IterativePurifier, every: int | None) -> None:
        self.purifier = purifier
        self.origin: dict[int, int] = {}
        if every is not None:
            states = [(purifier.origin(i), i) for i in range(1, purifier.length + 1)]
            for origin, group in itertools.groupby(states, key=lambda state: state[0]):
                if origin is not None:
                    self.origin.update({i: origin for _, i in list(group)[::-every]})
        self.needed = {origin for origin in self.origin.values() if origin >= 0}

    def term(self, i: int, z: Tensor, origins: dict[int, Tensor], x: Tensor, omega: Omega) -> Tensor:
        """Return the mean squared distance of state ``i`` from the forward process, shape (B,)."""
        forward = self.purifier.diffused(i, origins.get(self.origin[i]), x, omega)
        return (z - forward).square().flatten(1).mean(1)


def _walk(
    purifier: IterativePurifier, x: Tensor, omega: Omega, guidance_path: bool, size: int, deviation: _Deviation
) -> tuple[Tensor, Tensor, list[Tensor], dict[int, Tensor]]:
    """The chain forward: images, sum of the deviations, the state every ``size`` steps, and the states needed."""
    z = purifier.start(x, omega)
    total, checkpoints, origins = x.new_zeros(len(x)), [z], {}
    for i in range(purifier.length):
        if i in deviation.needed:
            origins[i] = z
        z = purifier.step(i, z, x, omega, guidance_path=guidance_path)
        if i + 1 in deviation.origin:
            total = total + deviation.term(i + 1, z, origins, x, omega)
        if (i + 1) % size == 0 or i + 1 == purifier.length:
            checkpoints.append(z)
    return purifier.finish(z, x, omega), total, checkpoints, origins


class _StraightThrough(torch.autograd.Function):
    """The value of ``purified`` with the gradient of ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, purified: Tensor) -> Tensor:
        return purified.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Checkpointed(torch.autograd.Function):
    """A chain of steps whose backward pass rebuilds one segment at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        purifier: IterativePurifier,
        omega: Omega,
        guidance_path: bool,
        size: int,
        deviation: _Deviation,
    ) -> tuple[Tensor, Tensor]:
        images, total, checkpoints, origins = _walk(purifier, x, omega, guidance_path, size, deviation)
        ctx.save_for_backward(x, *origins.values(), *checkpoints)
        ctx.run = purifier, omega, guidance_path, size, deviation, tuple(origins)
        ctx.autocast = _autocast_state(x.device.type)
        return images, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_deviation: Tensor) -> tuple[Tensor | None, ...]:
        purifier, omega, guidance_path, size, deviation, numbers = ctx.run
        x, *saved = ctx.saved_tensors
        origins, checkpoints = dict(zip(numbers, saved, strict=False)), saved[len(numbers) :]
        x = x.detach().requires_grad_()
        total = torch.zeros_like(x)
        waiting: dict[int, Tensor] = {}  # gradients of origins that the walk has not reached yet

        def back(outputs: list[tuple[Tensor, Tensor]], inputs: list[Tensor]) -> list[Tensor | None]:
            """Gradients with respect to the inputs; that with respect to x is added to the total."""
            live = [(out, flowing) for out, flowing in outputs if out.requires_grad]
            if not live:
                return [None] * len(inputs)
            outs, flows = zip(*live, strict=True)
            gradients = torch.autograd.grad(outs, [x, *inputs], flows, allow_unused=True)
            if gradients[0] is not None:
                total.add_(gradients[0])
            return list(gradients[1:])

        # Only the rebuilding runs under the autocast setting of the forward pass: backward operations take their
        # precision from the forward ones, and under autocast those of full-precision parts would lose theirs.
        with torch.enable_grad():
            state = checkpoints[-1].detach().requires_grad_()
            with ctx.autocast():
                z = purifier.finish(state, x, omega)
            (flowing,) = back([(z, gradient)], [state])
            for j in reversed(range(len(checkpoints) - 1)):
                first, stop = j * size, min((j + 1) * size, purifier.length)
                if flowing is None and not waiting and not any(i <= stop for i in deviation.origin):
                    break
                state = checkpoints[j].detach().requires_grad_()
                # Origins of earlier segments are leaves of this one; its own ones are nodes of its graph.
                near = {i: origins[i].detach().requires_grad_() for i in origins if i < first}
                far = dict(near)
                z, outputs = state, []
                with ctx.autocast():
                    for i in range(first, stop):
                        if i in origins:
                            near[i] = z
                            if i in waiting:
                                outputs.append((z, waiting.pop(i)))
                        z = purifier.step(i, z, x, omega, guidance_path=guidance_path)
                        if i + 1 in deviation.origin:
                            outputs.append((deviation.term(i + 1, z, near, x, omega), of_deviation))
                _assert_same(z, checkpoints[j + 1], f"after step {stop - 1}")
                if flowing is not None:
                    outputs.append((z, flowing))
                flowing, *sent = back(outputs, [state, *far.values()])
                for i, sent_back in zip(far, sent, strict=True):
                    if sent_back is not None:
                        waiting[i] = waiting[i] + sent_back if i in waiting else sent_back
            if flowing is not None:
                with ctx.autocast():
                    z = purifier.start(x, omega)
                _assert_same(z, checkpoints[0], "before step 0")
                back([(z, flowing)], [])
        return total, None, None, None, None, None


def _autocast_state(device: str) -> Any:
    """Return a context that restores the autocast setting of now, which is not that of the backward pass."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled=enabled)


def _assert_same(rebuilt: Tensor, stored: Tensor, where: str) -> None:
    if torch.equal(rebuilt, stored) or torch.allclose(rebuilt, stored, rtol=0, atol=0, equal_nan=True):
        return  # a NaN state shows in its gradient, which is NaN
    difference = float((rebuilt - stored).detach().abs().max())
    raise IrreproducibleState(
        f"the state {where} was rebuilt with a difference of up to {difference:.3g}: the gradient would be that of "
        "another computation. A step must depend on its arguments alone (no global random numbers, no time, no "
        "layer in training mode), and the device must be deterministic (torch.use_deterministic_algorithms)."
    )
