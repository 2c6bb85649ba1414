"""More purifiers that are broken on purpose: backward passes that fit the probe's questions, and exemptions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

import torch
from planted import Backward, Chain, nearest
from torch import Tensor
from torch.nn.functional import avg_pool2d

from defense.models import Models
from defense.purifiers import Purifier, PurifierConfig
from defense.randomness import Omega

_STARTED = time.perf_counter()


class Faulty(Purifier):
    """A chain in front of which, or behind which, something is wrong."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.backwards, self.most = fault, 0, 0
        self.chain = Chain()
        self.eval()

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        y = self.chain(x, omega)
        faults: dict[str, Callable[[], Tensor]] = {
            "clipped backward": lambda: Backward.apply(y, lambda g: g.clamp(-0.1, 0.1)),
            "small gradients underflow": lambda: Backward.apply(y, lambda g: g * (g.abs() > 1e-3)),
            "only what is positive goes back": lambda: Backward.apply(y, torch.relu),
            "normalised backward": lambda: Backward.apply(y, lambda g: g / g.abs().amax().clamp_min(1e-12)),
            "half of the pixels go back": lambda: Backward.apply(y, lambda g: g * _board(g)),
            "blurred backward": lambda: Backward.apply(y, lambda g: avg_pool2d(g, 3, 1, 1)),
            "mirrored backward": lambda: Backward.apply(y, lambda g: g.flip(3)),
            "tired backward": lambda: Backward.apply(y, self._tired),
            "large batches": lambda: y + 0.1 * (len(x) > 24),
            "large batches detached": lambda: y if len(x) <= 24 else 0.5 * y + 0.5 * y.detach(),
            "clean images exempt": lambda: torch.where(nearest(x)[1] == 0, x, y),
            "clean images in a bypass": lambda: torch.where(nearest(x)[1] < 1e-3, x, y),
            "detached off the test images": lambda: torch.where(nearest(x)[1] < 1e-3, y, 0.9 * y.detach() + 0.1 * y),
            "detached at the range": lambda: torch.where(_at_range(x), 0.9 * y.detach() + 0.1 * y, y),
            "noise by content": lambda: y + 0.1 * _by_content(x),
            "abstains when noisy": lambda: torch.where(_roughness(x) > 0.12, 0 * y + 0.5, y),
            "in another thread": lambda: y + 0.1 * (threading.current_thread() is not threading.main_thread()),
            "slower and slower": lambda: y + 1e-3 * (time.perf_counter() - _STARTED),
            "largest batch so far": lambda: y + 0.01 * self._largest(len(x)),
            "three draws in all": lambda: self.chain(x, omega.part(0, len(x))) + 0.02 * (max(omega.draws) % 3),
            "eight bits": lambda: (255 * y).round() / 255,
            "a leaf is detached": lambda: 0.5 * y + 0.5 * (y.detach() if x.is_leaf else y),
        }
        return faults[self.fault]()

    def _tired(self, gradient: Tensor) -> Tensor:
        self.backwards += 1
        return gradient * (self.backwards <= 12)

    def _largest(self, size: int) -> int:
        self.most = max(self.most, size)
        return self.most


def _board(x: Tensor) -> Tensor:
    rows, columns = torch.arange(x.shape[2]), torch.arange(x.shape[3])
    return ((rows[:, None] + columns) % 2).to(x)


def _at_range(x: Tensor) -> Tensor:
    edge = ((x <= 0) | (x >= 1)).flatten(1).double().mean(1)
    return (edge > 0.7).view(-1, 1, 1, 1)


def _roughness(x: Tensor) -> Tensor:
    return (x - avg_pool2d(x, 3, 1, 1)).abs().mean((1, 2, 3), keepdim=True)


def _by_content(x: Tensor) -> Tensor:
    seeds = (1e6 * x.detach().double().flatten(1).sum(1)).long().tolist()
    drawn = [torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn).to(x)


class BackwardConfig(PurifierConfig):
    """A purifier with one of these faults."""

    purifier: Literal["planted_backward:BackwardConfig"] = "planted_backward:BackwardConfig"
    fault: str

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def evaluations(self) -> int:
        return 3

    def label(self) -> str:
        return self.fault

    def build(self, models: Models | None = None) -> Purifier:
        return Faulty(self.fault)
