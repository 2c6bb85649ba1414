"""Sound purifiers of kinds that puregrid does not ship, on which a probe has nothing to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from planted import Chain
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from defense.models import Models
from defense.purifiers import Purifier, PurifierConfig
from defense.randomness import Omega
from tasks.datasets import DigitsConfig

TRAIN = torch.from_numpy(DigitsConfig(split="train").read().images).flatten(1)


def _number(x: Tensor, omega: Omega, purpose: str) -> Tensor:
    """One uniform number an image, shape (B, 1, 1, 1)."""
    return omega.uniform(purpose, 0, x.flatten(1)[:, :1]).view(-1, 1, 1, 1)


def _blur(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _resize_and_pad(self: Sound, x: Tensor, omega: Omega) -> Tensor:
    size, left, top = (_number(x, omega, purpose).flatten().tolist() for purpose in ("size", "left", "top"))
    out = []
    for k in range(len(x)):
        n = min(6 + int(3 * size[k]), 8)
        small = F.interpolate(x[k : k + 1], size=n, mode="bilinear", align_corners=False)
        a, b = int(left[k] * (9 - n)), int(top[k] * (9 - n))
        out.append(F.pad(small, (a, 8 - n - a, b, 8 - n - b)))
    return torch.cat(out)


def _median_of_noised(self: Sound, x: Tensor, omega: Omega) -> Tensor:
    return torch.stack([x + 0.2 * omega.within(str(k)).normal("noise", 0, x) for k in range(9)]).median(0).values


def _autoencoder(self: Sound, x: Tensor, omega: Omega) -> Tensor:
    """A linear encoder to sixteen numbers with noise, and a decoder that ends in a sigmoid."""
    mean, axes = self.mean.to(x), self.axes.to(x)
    code = (x.flatten(1) - mean) @ axes.T
    return torch.sigmoid(6 * ((code + 0.2 * omega.normal("code", 0, code)) @ axes + mean - 0.5)).view_as(x)


def _random_blur(self: Sound, x: Tensor, omega: Omega) -> Tensor:
    sigma = 0.3 + _number(x, omega, "sigma").view(-1, 1)
    line = torch.exp(-torch.arange(-3, 4).to(x).square()[None] / (2 * sigma.square()))
    line = line / line.sum(1, keepdim=True)
    padded = F.pad(x, (3, 3, 3, 3), mode="replicate").transpose(0, 1)
    return F.conv2d(padded, (line[:, :, None] * line[:, None, :])[:, None], groups=len(x)).transpose(0, 1)


def _deflected(self: Sound, x: Tensor, omega: Omega) -> Tensor:
    out = x.clone()
    for k, generator in enumerate(omega.generators("deflect", 0)):
        for _ in range(10):
            a, b, c, d = generator.integers(0, 8, 4)
            out[k, :, a, b] = x[k, :, c, d]
    return out


def _non_local_means(self: Sound, x: Tensor, omega: Omega) -> Tensor:
    patches = F.unfold(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3).transpose(1, 2)
    weights = (-torch.cdist(patches, patches).square() / 0.3).softmax(2)
    return (weights @ x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


def _shrunken(self: Sound, x: Tensor, omega: Omega) -> Tensor:
    low = F.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    high = x - low
    return low + high.sign() * F.relu(high.abs() - 0.1)


def _largest_pixels(self: Sound, x: Tensor, omega: Omega) -> Tensor:
    """Twenty pixels above the twenty-first: it jumps at no place, and sorts equal ones."""
    flat = x.flatten(1)
    return F.relu(flat - flat.topk(21, 1).values[:, -1:]).view_as(x)


SOUND: dict[str, tuple[bool, int, Callable[[Sound, Tensor, Omega], Tensor]]] = {
    "random resize and pad": (True, 0, _resize_and_pad),
    "median of noised": (True, 0, _median_of_noised),
    "noisy autoencoder": (True, 0, _autoencoder),
    "one of two by a coin": (
        True,
        0,
        lambda self, x, omega: torch.where(_number(x, omega, "coin") < 0.5, _blur(x), x.clamp(0.1, 0.9)),
    ),
    "blur of random width": (True, 0, _random_blur),
    "pixel deflection": (True, 0, _deflected),
    "non-local means": (False, 0, _non_local_means),
    "soft shrinkage": (False, 0, _shrunken),
    "largest pixels": (False, 0, _largest_pixels),
    # It jumps, a little, and at digits themselves, whose pixels are often equal.
    "largest pixels, cut off": (
        False,
        0,
        lambda self, x, omega: x * (x >= x.flatten(1).topk(20, 1).values[:, -1].view(-1, 1, 1, 1)),
    ),
    "random mirror": (
        True,
        0,
        lambda self, x, omega: torch.where(_number(x, omega, "mirror") < 0.5, x.flip(3), x),
    ),
    "checkpointed": (
        True,
        3,
        lambda self, x, omega: checkpoint(lambda z: self.chain(z, omega), x, use_reentrant=False),
    ),
    "calls forward itself": (False, 1, lambda self, x, omega: x + 0.3 * torch.tanh(self.net.forward(x))),
    "less contrast": (False, 0, lambda self, x, omega: 0.5 + 0.7 * (x - 0.5)),
    "root": (False, 0, lambda self, x, omega: (x + 1e-6) ** 0.8),
}
"""By name: whether it is random, its evaluations, and how."""


class Sound(Purifier):
    """A sound purifier."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        if how == "calls forward itself":
            self.net = Chain().net
        elif how == "checkpointed":
            self.chain = Chain()
        self.mean = TRAIN.mean(0)
        self.axes = torch.linalg.svd(TRAIN - self.mean, full_matrices=False)[2][:16]

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return SOUND[self.how][2](self, x, omega)


class SoundConfig(PurifierConfig):
    """A sound purifier."""

    purifier: Literal["sound_purifiers:SoundConfig"] = "sound_purifiers:SoundConfig"
    how: str

    @property
    def stochastic(self) -> bool:
        return SOUND[self.how][0]

    @property
    def evaluations(self) -> int:
        return SOUND[self.how][1]

    def label(self) -> str:
        return self.how

    def build(self, models: Models | None = None) -> Purifier:
        return Sound(self.how).eval()
