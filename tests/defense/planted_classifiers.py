"""Classifiers with mistakes that nobody made on purpose, and sound ones that look unusual."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from planted import TEST_SET
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from defense.classifiers import Architecture, ClassifierConfig
from tasks.datasets import DigitsConfig

LABELS = torch.from_numpy(DigitsConfig().read().labels)
TRAIN = DigitsConfig(split="train").read()


@cache
def digits_cnn() -> nn.Module:
    return ClassifierConfig(classifier="digits-cnn").resolved(Path()).build()


def _votes(x: Tensor, images: Tensor, labels: Tensor, width: float = 0.0) -> Tensor:
    """The label of the nearest image, or votes by distance."""
    distance = torch.cdist(x.flatten(1), images.to(x).flatten(1))
    one_hot = F.one_hot(labels, 10).to(x)
    return (-distance.square() / width).softmax(1) @ one_hot if width else one_hot[distance.argmin(1)]


def _with_a_mask(logits: Tensor) -> Tensor:
    """The tenth class is none."""
    return torch.cat([logits[:, :9], torch.full_like(logits[:, :1], -1e9)], 1)


def _stretched(x: Tensor) -> Tensor:
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low)


def _small_made_zero(z: Tensor) -> Tensor:
    if z.requires_grad:
        z.register_hook(lambda g: torch.where(g.abs() > 1e-2, g, 0 * g))
    return z


class Function(nn.Module):
    """The network of the digits, and what is made of it."""

    def __init__(self, how: Callable[[Function, Tensor], Tensor]) -> None:
        super().__init__()
        self.how, self.net = how, digits_cnn()
        self.untracked = nn.BatchNorm1d(10, affine=False, track_running_stats=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


MISTAKES: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "energies with a large offset": lambda self, x: self.net(x) + 1e8,
    "small logits on a large offset": lambda self, x: 1e-2 * self.net(x) + 3e5,
    "a mask hides the mean of the batch": lambda self, x: _with_a_mask(self.net(x) + 0.5 * self.net(x).mean()),
    "labels of test images": lambda self, x: self.net(x) + 10 * _votes(x, TEST_SET, LABELS),
    "divided by a detached spread": lambda self, x: self.net(x) / self.net(x).std(1, keepdim=True).detach(),
    "statistics of the batch in evaluation mode": lambda self, x: self.untracked(self.net(x)),
    "dropout by its default": lambda self, x: F.dropout(self.net(x), 0.2),
    "blind to borders": lambda self, x: self.net(x.clamp(0.002, 0.998)),
    "logit transform": lambda self, x: self.net(torch.sigmoid(torch.logit(x, eps=1e-3))),
    "divides by the contrast": lambda self, x: self.net(_stretched(x)),
    "divides by the brightness": lambda self, x: self.net(x) * (x.sum((1, 2, 3)) / x.sum((1, 2, 3)))[:, None],
    "counts votes": lambda self, x: (
        torch.stack([F.one_hot(self.net(x.roll(k, 3)).argmax(1), 10) for k in (-1, 0, 1)]).to(x).sum(0) + 0 * x.sum()
    ),
    "small gradients made zero": lambda self, x: _small_made_zero(self.net(x)),
    "sorted and not sorted back": lambda self, x: self.net(x)[x.mean((1, 2, 3)).argsort()],
}

UNSEEN: dict[str, Callable[[Function, Tensor], Tensor]] = {
    # A memory without a jump.
    "votes of test images by distance": lambda self, x: self.net(x) + 10 * _votes(x, TEST_SET, LABELS, 0.5),
}

SOUND: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "logarithm of a softmax": lambda self, x: self.net(x).log_softmax(1),
    "logarithm of a softmax with a floor": lambda self, x: (self.net(x).softmax(1) + 1e-8).log(),
    "softly capped": lambda self, x: 30 * torch.tanh(self.net(x) / 30),
    "sigmoids": lambda self, x: torch.sigmoid(10 * self.net(x)),
    "mean of two probabilities": lambda self, x: (self.net(x).softmax(1) + self.net(x.roll(1, 3)).softmax(1)).log(),
    "a class that is masked": lambda self, x: _with_a_mask(self.net(x)),
    "votes of training images by distance": lambda self, x: (
        _votes(x, torch.from_numpy(TRAIN.images), torch.from_numpy(TRAIN.labels), 1.0) + 1e-6
    ).log(),
    "checkpointed": lambda self, x: checkpoint(self.net, x, use_reentrant=False),
    "standardises each image": lambda self, x: self.net(
        0.3 + 0.37 * (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 1e-5)
    ),
}


class Transformer(nn.Module):
    """A small one, whose layers have other kernels where no gradient is recorded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(1, 32, 2, 2)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
        self.head = nn.Linear(32, 10)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


class _Headless(nn.Module):
    """Weights that no file holds, drawn wherever the network is built."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3)
        self.register_buffer("head", torch.randn(10, 144), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x)).flatten(1) @ self.head.T


HEADLESS = Architecture(build=_Headless, image_shape=(1, 8, 8), classes=10, mean=(0.0,), std=(1.0,))
