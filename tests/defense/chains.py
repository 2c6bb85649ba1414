"""Purifiers of few steps that watch what the gradient engine does, and the deviation by its formula."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from defense import (
    IterativePurifier,
    Omega,
    Purifier,
)
from defense.purifiers import Diffusion, Sequence
from defense.samplers import forward_noise


class Chain(IterativePurifier):
    """Ten steps of a smooth map, for tests to spy on and to spoil."""

    def __init__(self, length: int = 10) -> None:
        super().__init__()
        self._length = length
        self.stepped: list[int] = []

    @property
    def length(self) -> int:
        return self._length

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        return 2 * x - 1

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        self.stepped.append(i)
        return torch.sin(z) + 0.1 * x + 0.01 * omega.normal("reverse", i, z)

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        return (z + 1) / 2


class Held:
    """A tensor that autograd keeps for the backward pass, and the step that it belongs to."""

    def __init__(self, step: int, tensor: Tensor) -> None:
        self.step, self.tensor = step, tensor


class Watched(IterativePurifier):
    """A purifier whose graphs are counted: of how many steps anything is kept at the same time."""

    def __init__(self, inner: IterativePurifier) -> None:
        super().__init__()
        self.inner = inner
        self.alive: weakref.WeakSet[Held] = weakref.WeakSet()
        self.most = 0
        self.stepped: list[int] = []

    @property
    def length(self) -> int:
        return self.inner.length

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        return self.inner.start(x, omega)

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        return self.inner.finish(z, x, omega)

    def origin(self, i: int) -> int | None:
        return self.inner.origin(i)

    def diffused(self, i: int, origin: Tensor | None, x: Tensor, omega: Omega) -> Tensor:
        return self.inner.diffused(i, origin, x, omega)

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        self.stepped.append(i)

        def pack(tensor: Tensor) -> Held:
            held = Held(i, tensor.detach())  # with its history it would hold itself
            self.alive.add(held)
            return held

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            z = self.inner.step(i, z, x, omega, guidance_path=guidance_path)
        self.most = max(self.most, len({held.step for held in self.alive}))
        return z


def deviation_by_hand(purifier: Purifier, x: Tensor, keys: Omega, every: int) -> tuple[Tensor, list[Tensor]]:
    """Purified images and the terms of L_dev, from the formula, in one graph."""
    if isinstance(purifier, Sequence):
        terms = []
        for stage, own in purifier.stages_with(keys):
            x, found = deviation_by_hand(stage, x, own, every)
            terms += found
        return x, terms
    if not isinstance(purifier, Diffusion):
        return purifier(x, keys), []
    terms, z, i = [], purifier.start(x, keys), 0
    noised = 2 * x - 1
    for r, sampler in enumerate(purifier.rounds):
        noised = z if r else noised
        eps = (keys.shared() if purifier.shared_forward else keys).normal("forward", r, x)
        for j in range(len(sampler)):
            z = purifier.step(i, z, x, keys)
            i += 1
            left = len(sampler) - 1 - j
            if left % every == 0:
                forward = forward_noise(noised, float(sampler.schedule.abar[sampler.grid[j + 1]]), eps)
                terms.append((z - forward).square().mean((1, 2, 3)))
    return purifier.finish(z, x, keys), terms
