"""Purifiers and classifiers that look unusual, and are sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from planted_classifiers import Function
from planted_shortcuts import blur, mild
from torch import Tensor

from defense.models import Models
from defense.purifiers import Purifier, PurifierConfig
from defense.randomness import Omega


def _guided(x: Tensor) -> Tensor:
    wants = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        leaf = x if x.requires_grad else x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(torch.tanh(blur(leaf)).square().sum(), leaf, create_graph=wants)
    return x - 0.1 * gradient


def _in_range(x: Tensor) -> Tensor:
    if float(x.min()) < 0 or float(x.max()) > 1:
        raise ValueError("images in [0, 1], please")
    return x


def _diffused(x: Tensor) -> Tensor:
    for _ in range(100):
        x = x - 0.02 * (x - blur(x))
    return x


def _inpainted(x: Tensor, omega: Omega) -> Tensor:
    mask = (omega.uniform("mask", 0, x) < 0.5).to(x)
    return mask * x + (1 - mask) * blur(mask * x) / (blur(mask) + 1e-2)


SOUND: dict[str, tuple[bool, Callable[[Tensor, Omega], Tensor]]] = {
    "image by image": (False, lambda x, omega: torch.cat([mild(image[None]) for image in x])),
    "in double": (False, lambda x, omega: mild(x.double()).to(x.dtype)),
    "rows and columns exchanged in memory": (False, lambda x, omega: mild(x.mT.contiguous()).mT),
    "by view": (False, lambda x, omega: (0.9 * x.view(len(x), -1) + 0.05).view(x.shape)),
    "very random": (True, lambda x, omega: 0.5 * x + omega.normal("noise", 0, x)),
    "steep": (False, lambda x, omega: torch.sigmoid(20 * (mild(x) - 0.5))),
    "a hundred steps": (False, lambda x, omega: _diffused(x)),
    "vectorised guidance": (
        False,
        lambda x, omega: x - 0.1 * torch.func.vmap(torch.func.grad(lambda z: torch.tanh(z).square().sum()))(x),
    ),
    "guidance without a graph if none is wanted": (False, lambda x, omega: _guided(x)),
    "in chunks": (False, lambda x, omega: torch.cat([mild(part) for part in x.split(3)])),
    "random mask": (True, _inpainted),
    "range asserted": (False, lambda x, omega: mild(_in_range(x))),
    "clipped noise": (True, lambda x, omega: (x + 0.3 * omega.normal("noise", 0, x)).clamp(0, 1)),
}
"""Sound purifiers by name: whether it is random, and how."""

SOUND_CLASSIFIERS: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "largest subtracted, detached": lambda self, x: self.net(x) - self.net(x).amax(1, keepdim=True).detach(),
    "logarithm of clipped probabilities": lambda self, x: self.net(x).softmax(1).clamp(1e-3, 1).log(),
    "range asserted": lambda self, x: self.net(_in_range(x)),
    "by view": lambda self, x: self.net(x.view(len(x), 1, 8, 8)),
    "linear": lambda self, x: x.flatten(1) @ torch.linspace(-1, 1, 640).sin().view(64, 10).to(x),
    "of length ten": lambda self, x: 10 * F.normalize(self.net(x), dim=1),
    "image by image": lambda self, x: torch.cat([self.net(image[None]) for image in x]),
    "an offset": lambda self, x: self.net(mild(x)) + 7,
}


class SoundPart(Purifier):
    """A sound purifier."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.eval()

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return SOUND[self.how][1](x, omega)


class SoundPartConfig(PurifierConfig):
    """A sound purifier."""

    purifier: Literal["sound_parts:SoundPartConfig"] = "sound_parts:SoundPartConfig"
    how: str

    @property
    def stochastic(self) -> bool:
        return SOUND[self.how][0]

    @property
    def evaluations(self) -> int:
        return 0

    def label(self) -> str:
        return self.how

    def build(self, models: Models | None = None) -> Purifier:
        return SoundPart(self.how)
