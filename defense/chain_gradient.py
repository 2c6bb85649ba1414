r"""The exact gradient of a chain of steps, in the memory of a few of them.

Reverse accumulation through :math:`z_{i+1} = F_i(z_i, x)` with segment checkpointing:

.. math:: \bar z_i = \left(\frac{\partial F_i}{\partial z_i}\right)^\top \bar z_{i+1}, \qquad
          \bar x = \sum_i \left(\frac{\partial F_i}{\partial x}\right)^\top \bar z_{i+1}
                   + \left(\frac{\partial z_0}{\partial x}\right)^\top \bar z_0 .

The forward pass keeps one state in every L; the backward pass rebuilds the graph of one segment of L steps at a
time, with the noise replayed from its keys. With :math:`L = \lceil\sqrt n / 8\rceil` both the states kept and the
graph held grow with the square root of the number of steps n, and nothing is computed more than twice. The factor 8
is there because one step's graph of a U-Net is some hundred states large. Where there is memory for more
(:mod:`defense.held_graphs`), from the second gradient of a kind on, the graphs of the first segments stay from the
forward pass and are not rebuilt.

The rebuilt state at the end of each segment must equal the kept one bit for bit. A gradient at other states than
those that were visited (other time values, other noise) is the gradient of something else; if it happens, it raises.

**Deviation.** Terms of states on the way (:func:`defense.gradients.purify_and_deviate`) are added in the segment
whose graph has the state. What a term sends to an origin in an earlier segment waits until the walk gets there, one
image a round, so that the memory is that of the chain alone.
"""

import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from defense.errors import PuregridError
from defense.held_graphs import HeldGraphs, held_graphs, number_of
from defense.purifiers.base import IterativePurifier, Purifier
from defense.purifiers.sequence import Sequence
from defense.randomness import Omega

__all__ = ["IrreproducibleState", "compared", "through_chain"]


class IrreproducibleState(PuregridError):
    """A state rebuilt in the backward pass is not the one of the forward pass."""


def through_chain(
    purifier: Purifier,
    x: Tensor,
    omega: Omega,
    guidance_path: bool,
    segment: int | None,
    every: int | None = None,
    identity: tuple[Hashable, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Return purified images with their exact gradient, and the sum of the deviations.

    Arguments:
        purifier: The purifier; its parameters are frozen.
        x: Images in [0, 1], shape (B, C, H, W).
        omega: Randomness of each batch element.
        guidance_path: Whether guidance depends on what it is made of; without, it counts as a constant.
        segment: Steps whose graph is rebuilt at a time; by default ``ceil(sqrt(n) / 8)``.
        every: See :func:`defense.gradients.purify_and_deviate`; None for no deviations, whose sum is 0.
        identity: Which chain this is, since some purifiers are made anew for each call; by default the object's own.

    Returns:
        Shapes (B, C, H, W) and (B,).

    Raises:
        IrreproducibleState: In the backward pass, see the module.
    """
    identity = identity or (number_of(purifier),)
    if isinstance(purifier, Sequence):
        total = x.new_zeros(len(x))
        for k, (stage, stage_omega) in enumerate(purifier.stages_with(omega)):
            x, added = through_chain(stage, x, stage_omega, guidance_path, segment, every, (*identity, k))
            total = total + added
        return x, total
    if not isinstance(purifier, IterativePurifier):
        return purifier(x, omega), x.new_zeros(len(x))
    deviation = _Deviation(purifier, every)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _Walk(_Chain(purifier, omega, guidance_path, purifier.length, deviation, identity), x).answer()
    if any(parameter.requires_grad for parameter in purifier.parameters()):
        raise ValueError("the exact gradient is one with respect to images: freeze the purifier's parameters first")
    size = math.ceil(math.sqrt(purifier.length) / 8) if segment is None else segment
    if size < 1:
        raise ValueError(f"a segment has at least 1 step, not {segment}")
    chain = _Chain(purifier, omega, guidance_path, size, deviation, identity)
    return _Checkpointed.apply(x, chain)  # type: ignore[no-untyped-call,no-any-return]


def compared(purifier: Purifier, every: int) -> int:
    """Return how many states are compared with the forward process."""
    if isinstance(purifier, Sequence):
        return sum(compared(stage, every) for stage in purifier.stages if isinstance(stage, Purifier))
    return len(_Deviation(purifier, every).origin) if isinstance(purifier, IterativePurifier) else 0


class _Deviation:
    """Terms of L_dev: which states have one, and their values.

    Arguments:
        purifier: The chain.
        every: See :func:`defense.gradients.purify_and_deviate`; None for no terms at all.

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


@dataclass(eq=False)
class _Segment:
    """Some steps with their graph: from ``state`` and origins ``far`` before it, which are leaves, to ``z``.

    ``origins`` are all origins so far, those of its own steps as nodes of its graph; ``terms`` its deviations.
    """

    state: Tensor
    far: dict[int, Tensor]
    z: Tensor
    origins: dict[int, Tensor]
    terms: list[Tensor]


@dataclass(frozen=True, eq=False)
class _Chain:
    """What is walked: a purifier with its randomness, ``size`` steps at a time."""

    purifier: IterativePurifier
    omega: Omega
    guidance_path: bool
    size: int
    deviation: _Deviation
    identity: tuple[Hashable, ...]

    def __len__(self) -> int:
        return math.ceil(self.purifier.length / self.size)

    def steps(self, j: int) -> range:
        """Return the steps of segment ``j``."""
        return range(j * self.size, min((j + 1) * self.size, self.purifier.length))

    def walked(
        self, j: int, z: Tensor, x: Tensor, origins: dict[int, Tensor]
    ) -> tuple[Tensor, dict[int, Tensor], list[Tensor]]:
        """Return the state after segment ``j``, all origins until there, and the deviations of its states."""
        origins, terms = dict(origins), []
        for i in self.steps(j):
            if i in self.deviation.needed:
                origins[i] = z
            z = self.purifier.step(i, z, x, self.omega, guidance_path=self.guidance_path)
            if i + 1 in self.deviation.origin:
                terms.append(self.deviation.term(i + 1, z, origins, x, self.omega))
        return z, origins, terms

    def segment(self, j: int, state: Tensor, x: Tensor, origins: dict[int, Tensor]) -> _Segment:
        """Return segment ``j`` with its graph.

        Arguments:
            j: Its number.
            state: The state before it.
            x: The images, a leaf.
            origins: Origins in earlier segments, as values; it has them as leaves.
        """
        state = state.detach().requires_grad_()
        far = {i: origin.detach().requires_grad_() for i, origin in origins.items() if i < j * self.size}
        return _Segment(state, far, *self.walked(j, state, x, far))

    def kind(self, j: int, x: Tensor) -> tuple[Hashable, ...]:
        """Return what decides the size of the graph of segment ``j``."""
        device = x.device.type
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        steps = len(self.steps(j)), sum(i + 1 in self.deviation.origin for i in self.steps(j))
        return *self.identity, j, steps, self.guidance_path, tuple(x.shape), x.dtype, device, autocast

    def weights(self) -> frozenset[int]:
        """Return the addresses of the purifier's weights."""
        tensors = itertools.chain(self.purifier.parameters(), self.purifier.buffers())
        return frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)


class _Walk:
    """The chain forward.

    Arguments:
        chain: The chain.
        x: The images.
        graphs: Who holds graphs; None for nobody. Gradients that go back to ``leaf`` are then those of x.

    Attributes:
        checkpoints: The state before the first segment, and after each.
        origins: The states that are origins of deviations.
        held: Segments with their graph, by number.
    """

    def __init__(self, chain: _Chain, x: Tensor, graphs: HeldGraphs | None = None) -> None:
        self._chain, self._x, self._graphs = chain, x, graphs
        self._total = x.new_zeros(len(x))
        self.leaf = x.detach().requires_grad_()
        self.checkpoints = [chain.purifier.start(x, chain.omega)]
        self.origins: dict[int, Tensor] = {}
        self.held: dict[int, _Segment] = {}
        for j in range(len(chain)):
            z, self.origins, terms = self._segment(j)
            for term in terms:
                self._total = self._total + term
            self.checkpoints.append(z)

    def answer(self) -> tuple[Tensor, Tensor]:
        """Return images, shape (B, C, H, W), and sums of deviations, shape (B,)."""
        return self._chain.purifier.finish(self.checkpoints[-1], self._x, self._chain.omega), self._total

    def _segment(self, j: int) -> tuple[Tensor, dict[int, Tensor], list[Tensor]]:
        """Walk segment ``j``, and hold its graph if there is room for it."""
        kind = self._chain.kind(j, self._x)
        if self._graphs is None or not self._graphs.may_hold(kind):
            return self._chain.walked(j, self.checkpoints[-1], self._x, self.origins)
        with torch.enable_grad():
            segment = self.held[j] = self._chain.segment(j, self.checkpoints[-1], self.leaf, self.origins)
        self._graphs.hold(kind, segment)
        origins = {i: origin.detach() for i, origin in segment.origins.items()}
        return segment.z.detach(), origins, [term.detach() for term in segment.terms]


class _Checkpointed(torch.autograd.Function):
    """A chain of steps whose backward pass rebuilds one segment at a time, but for those that are held."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chain: _Chain) -> tuple[Tensor, Tensor]:
        graphs = held_graphs()
        walk = _Walk(chain, x, graphs)
        ctx.save_for_backward(x, *walk.origins.values(), *walk.checkpoints)
        ctx.run = chain, walk.leaf, tuple(walk.origins), walk.held, graphs
        ctx.autocast = _autocast_state(x.device.type)
        return walk.answer()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_deviation: Tensor) -> tuple[Tensor, None]:
        chain, x, numbers, held, graphs = ctx.run
        purifier, omega, deviation = chain.purifier, chain.omega, chain.deviation
        _, *saved = ctx.saved_tensors  # the images among them, so that changes in place raise
        origins, checkpoints = dict(zip(numbers, saved, strict=False)), saved[len(numbers) :]
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
            for j in reversed(range(len(chain))):
                steps = chain.steps(j)
                if flowing is None and not waiting and not any(i <= steps.stop for i in deviation.origin):
                    break
                # A held graph is used once; whoever goes back again has it rebuilt.
                segment = held.pop(j, None)
                if segment is None:
                    with ctx.autocast():
                        segment = chain.segment(j, checkpoints[j], x, origins)
                        if graphs is not None:
                            graphs.learn(chain.kind(j, x), [segment.z, *segment.terms], chain.weights)
                    _assert_same(segment.z, checkpoints[j + 1], f"after step {steps[-1]}")
                outputs = [(segment.origins[i], waiting.pop(i)) for i in steps if i in waiting]
                outputs += [(term, of_deviation) for term in segment.terms]
                if flowing is not None:
                    outputs.append((segment.z, flowing))
                flowing, *sent = back(outputs, [segment.state, *segment.far.values()])
                for i, sent_back in zip(segment.far, sent, strict=True):
                    if sent_back is not None:
                        waiting[i] = waiting[i] + sent_back if i in waiting else sent_back
            if flowing is not None:
                with ctx.autocast():
                    z = purifier.start(x, omega)
                _assert_same(z, checkpoints[0], "before step 0")
                back([(z, flowing)], [])
        return total, None


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
