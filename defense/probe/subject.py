"""What is probed: a function of images and their randomness, with what it says of itself."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from defense.gradients import purify
from defense.probe.record import Part
from defense.purifiers.base import Purifier
from defense.randomness import Omega

__all__ = ["LARGE", "Claims", "Subject", "largest_difference", "seeded", "settings", "snapshot"]

_SEED = 20

LARGE = 37
"""Images of a batch that is larger than all others of the probe, and no multiple of a chunk."""


@dataclass(frozen=True)
class Claims:
    """What a part says of itself; None where it says nothing.

    Arguments:
        differentiable: Whether its gradient is meant to be that of the function.
        evaluations: Evaluations of its networks for one draw of one image.
        at_most: Whether fewer evaluations may be made: how many decides the image.
        guided: Whether it asks the protected classifier, whose label may decide.
    """

    stochastic: bool | None = None
    differentiable: bool = True
    evaluations: int | None = None
    classes: int | None = None
    at_most: bool = False
    guided: bool = False


@dataclass
class Subject:
    """One part of a defence, and what it is probed with.

    Arguments:
        module: The purifier, or a classifier from images in [0, 1] to logits.
        spec_id: Id under which a purifier draws.
        build: Makes it anew; a copy of a module that has no config.
        count: Runs one purification and returns how often networks were evaluated; None if there is none to count.
        calls: Calls so far.
        settings: Those of torch before them.
    """

    label: str
    part: Part
    module: nn.Module
    images: Tensor
    claims: Claims = field(default_factory=Claims)
    spec_id: str = "probe"
    build: Callable[[], nn.Module] | None = None
    count: Callable[[Tensor, Omega], int | None] | None = None
    calls: int = 0
    settings: tuple[object, ...] = field(default_factory=lambda: settings())

    def omega(self, count: int | None = None, draw: int = 0) -> Omega:
        """Return the randomness of the first ``count`` images, as an attack draws it."""
        ids = range(3, 3 + (len(self.images) if count is None else count))
        return Omega.of(self.spec_id, 0, "attack", ids, draw).within("eot")

    def __call__(self, x: Tensor, omega: Omega) -> Tensor:
        """Return what it makes of images, under one global seed, so that hidden randomness does not confuse.

        A part that writes into the images finds them as they were when it is called again.
        """
        before = None if x.requires_grad else x.clone()
        out = self.given(x, omega)
        if before is not None and not torch.equal(x, before):
            out = out.clone() if isinstance(out, Tensor) else out  # it may be the very images
            x.copy_(before)
        return out

    def given(self, x: Tensor, omega: Omega) -> Tensor:
        """Return the same, and leave the images as the part left them."""
        self.calls += 1
        with seeded():
            out: Tensor = self.module(x, omega) if self.part == "purifier" else self.module(x)
        return out

    def value(self, x: Tensor, omega: Omega) -> Tensor:
        """Return the same without gradients."""
        with torch.no_grad():
            return self(x, omega)

    def in_mode(self, x: Tensor, omega: Omega, mode: str) -> Tensor:
        """Return the output in the graph of ``x``, by a gradient mode; a classifier has one by autograd alone."""
        if not isinstance(self.module, Purifier):
            return self(x, omega)
        self.calls += 1
        with seeded():
            return purify(self.module, x, omega, mode)

    def gradient(
        self, x: Tensor, omega: Omega, weight: Tensor, mode: str = "exact", *, apart: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the output, and the gradient of its inner product with ``weight``; zero where there is none.

        With ``apart`` that of images that were computed, after another call.
        """
        leaf = x.detach().clone().requires_grad_()
        out = self.in_mode(leaf * 1 if apart else leaf, omega, mode)
        if apart:
            self.in_mode((x / 2).requires_grad_(), omega.select(range(len(x))[::-1]), mode)
        if not out.requires_grad:
            return out.detach(), torch.zeros_like(leaf)
        with seeded():
            (gradient,) = torch.autograd.grad((out * weight).sum(), leaf, allow_unused=True)
        return out.detach(), torch.zeros_like(leaf) if gradient is None else gradient

    def weight(self, like: Tensor) -> Tensor:
        """Return a fixed random cotangent for outputs, the same for every image, shape (1, ...)."""
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(1, *like.shape[1:], generator=generator, dtype=torch.float64)
        if self.part == "classifier" and weight.numel() > 1:
            weight -= weight.mean()  # an offset of all logits moves no loss, and may be detached
        return weight.to(like)

    def crowd(self, x: Tensor, omega: Omega) -> tuple[Tensor, Tensor, Omega]:
        """Return which of some images make a large batch, in no order, the batch, and its randomness."""
        chosen = torch.randint(len(x), (LARGE,), generator=torch.Generator().manual_seed(9))
        return chosen, x[chosen], omega.select(chosen.tolist())

    def doubled(self) -> Subject:
        """Return the same in float64: every tensor of a copy, in modules or not, and the images."""
        memo: dict[int, Any] = {}
        module = copy.deepcopy(self.module, memo)
        for held in list(memo.values()):
            if isinstance(held, nn.Module):
                held.double()
            elif isinstance(held, Tensor) and held.dtype == torch.float32:
                held.data = held.data.double()
        return replace(self, module=module, images=self.images.double(), calls=0)


def settings() -> tuple[object, ...]:
    """Return torch's global settings that decide results of others."""
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    return torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision(), *deterministic


@contextmanager
def seeded() -> Iterator[None]:
    """Fix the global generators within the block, and leave them as they were found."""
    saved = np.random.get_state(), random.getstate()
    np.random.seed(_SEED)
    random.seed(_SEED)
    try:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
        with torch.random.fork_rng(devices):
            torch.manual_seed(_SEED)
            yield
    finally:
        np.random.set_state(saved[0])
        random.setstate(saved[1])


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's state, which no call may change."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def largest_difference(a: Tensor, b: Tensor, part: Part = "purifier") -> float:
    """Return the largest difference, of logits relative to their spread; infinite for other shapes or one NaN."""
    if a.shape != b.shape:
        return float("inf")
    if torch.equal(a, b):
        return 0.0
    same = a.isnan() & b.isnan()
    apart = (a.double() - b.double()).abs().masked_fill(same, 0)
    scale = _spread(b.double().nan_to_num()) if part == "classifier" else 1.0
    worst = float(apart.nan_to_num(nan=float("inf"), posinf=float("inf")).max())
    return worst / scale if scale else worst


def _spread(logits: Tensor) -> float:
    """Return how far the largest logit is above the median, whatever the offset of all or a mask on some."""
    spread = float((logits.amax(-1) - logits.median(-1).values).max())
    return spread or float(logits.abs().max())
