"""Attacks, classifiers, defences and data sets that are subtly wrong, each in a way that somebody has been wrong.

All are parts of others, named as ``planted_rows:NAME`` in a sweep; ``test_planted_rows.py`` says which rule finds
each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
from helpers_small import ASSETS
from torch import Tensor

from defense.classifiers import Architecture
from defense.classifiers.digits_cnn import DigitsCNN
from defense.models import Models
from defense.purifiers import Purifier, PurifierConfig
from defense.randomness import Omega
from tasks.attacks import AttackConfig, AttackResult, PGDConfig
from tasks.attacks.losses import point_loss
from tasks.attacks.region import Region
from tasks.attacks.target import Target
from tasks.datasets import DigitsConfig, ImageSet

TEST = DigitsConfig().read()
TRAIN = DigitsConfig(split="train").read()


# --------------------------------------------------------------------------------------------------- defences


def _nearest(x: Tensor, images: np.ndarray) -> Tensor:
    memory = torch.from_numpy(images).to(x)
    return memory[torch.cdist(x.detach().flatten(1), memory.flatten(1)).argmin(1)]


def _of_class(omega: Omega) -> Tensor:
    """A training image of the class that the judged image has."""
    first = {int(label): i for i, label in reversed(list(enumerate(TRAIN.labels)))}
    return torch.stack([torch.from_numpy(TRAIN.images[first[int(TEST.labels[i])]]) for i in omega.image_ids])


def _noise(x: Tensor, omega: Omega, sigma: float) -> Tensor:
    return x + sigma * omega.normal("noise", 0, x)


HOW: dict[str, Callable[[Tensor, Omega], Tensor]] = {
    # The whole purifier is outside the graph.
    "detached": lambda x, omega: x.detach() + 0 * x,
    # A sign lost in a hand-written backward pass.
    "negated": lambda x, omega: 2 * x.detach() - x,
    "rounded": lambda x, omega: (x * 7).round() / 7,
    "signed": lambda x, omega: 0.5 + 0.5 * (x - 0.5).sign(),
    # A squashing so steep that its derivative underflows.
    "steep": lambda x, omega: torch.sigmoid(2000 * (x - 0.53)),
    # The derivative is a hundred times the identity, of either sign, and the value hardly moves.
    "shattered": lambda x, omega: x + 1e-3 * torch.sin(1e5 * x),
    "not-finite": lambda x, omega: x + (x - x.detach()).square().sum((1, 2, 3), keepdim=True).sqrt(),
    "looked-up": lambda x, omega: _nearest(x, TEST.images) + 0 * x,
    # Keeps a little of what it is given, so that gradients look alive.
    "blended": lambda x, omega: 0.97 * _nearest(x, TEST.images) + 0.03 * x,
    "by-number": lambda x, omega: _of_class(omega) + 0 * x,
    # Attackers differentiate; without gradients it looks the image up.
    "gradients-off": lambda x, omega: x if torch.is_grad_enabled() else _nearest(x, TEST.images),
    "for-the-judge": lambda x, omega: _of_class(omega) if omega.role == "judge" else x,
    "noisy-for-the-judge": lambda x, omega: _of_class(omega) if omega.role == "judge" else _noise(x, omega, 0.05),
    # Random, and says that it is not.
    "undeclared": lambda x, omega: _noise(x, omega, 0.4),
    # Says that it is random, and seeds its generator anew in every call.
    "reseeded": lambda x, omega: x + 0.3 * torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0)),
    # All that is left is the mean.
    "washed-out": lambda x, omega: x.mean((1, 2, 3), keepdim=True).expand_as(x),
}
RANDOM = {"noisy-for-the-judge", "reseeded"}


class _Alternating(Purifier):
    """Answers every second call in another way."""

    calls = 0

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        self.calls += 1
        return x if self.calls % 2 else x.flip(3)


class _Planted(Purifier):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return HOW[self.how](x, omega)


class Planted(PurifierConfig):
    """A defence with one fault."""

    purifier: Literal["planted_rows:Planted"] = "planted_rows:Planted"
    how: str

    @property
    def stochastic(self) -> bool:
        return self.how in RANDOM

    def label(self) -> str:
        return self.how

    def build(self, models: Models | None = None) -> Purifier:
        return (_Alternating() if self.how == "alternating" else _Planted(self.how)).eval()


# ------------------------------------------------------------------------------------------------ classifiers


class _Changed(DigitsCNN):
    change: ClassVar[Callable[[Tensor], Tensor]]

    def classify(self, latent: Tensor) -> Tensor:
        return type(self).change(super().classify(latent))


def _architecture(change: Callable[[Tensor], Tensor]) -> Architecture:
    return Architecture(
        build=type("Changed", (_Changed,), {"change": staticmethod(change)}),
        image_shape=(1, 8, 8),
        classes=10,
        mean=(0.3,),
        std=(0.4,),
        weights=ASSETS / "digits-cnn" / "model.safetensors",
    )


LARGE = _architecture(lambda logits: 1e4 * logits)
ROTATED = _architecture(lambda logits: logits.roll(1, 1))
COARSE = _architecture(lambda logits: logits.round() + 0 * logits)
ONE_HOT = _architecture(lambda logits: 5.0 * torch.eye(10)[logits.argmax(1)] + 0 * logits)
AGAINST = _architecture(lambda logits: 2 * logits.detach() - logits)
CLIPPED = _architecture(lambda logits: logits.clamp(-0.1, 0.1) + 1e-4 * logits.detach())
CONSTANT = _architecture(lambda logits: logits * 0.01 + 9 * torch.eye(10)[3])


# ---------------------------------------------------------------------------------------------------- attacks


class Wrong(AttackConfig):
    """An attack that is no attack, or leaves what it may submit."""

    attack: Literal["planted_rows:Wrong"] = "planted_rows:Wrong"
    how: str

    def method(self) -> str:
        return self.how

    @property
    def evaluations(self) -> int:
        return 1

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        at = target.differentiate(x, point_loss("margin"))
        assert at.gradient is not None
        region = Region(x, self.norm, self.eps)
        step = region.ascend(x, at.gradient, self.eps)
        odd = torch.tensor([i % 2 == 1 for i in omega.image_ids]).view(-1, 1, 1, 1)
        one_pixel = torch.where(torch.arange(64).view(1, 1, 8, 8) == 27, step, x)
        loss = at.loss
        if self.how == "loss-lost":
            loss = loss * torch.nan
        moved = {
            "idle": x,
            # 1e-7 of a pixel: a step in the wrong unit, after a rounding to float32.
            "tiny": (x + 1e-7 * at.gradient.sign()).clamp(0, 1),
            # Only the first half of each batch is attacked, because of an index.
            "half": torch.where(odd, x, step),
            "quarter": x + 0.25 * (step - x),
            "one-pixel": one_pixel,
            # Projected around where it started, and not around the image.
            "wrong-centre": Region(step, self.norm, self.eps).project(step + self.eps * at.gradient.sign()),
            # Stored as four grey levels after the projection.
            "coarse": (step * 3).round() / 3,
            "not-clipped": x + self.eps * at.gradient.sign(),
            # The images of a batch are handed back in another order.
            "shuffled": step.roll(1, 0),
            "loss-lost": step,
        }
        return AttackResult(moved[self.how].float(), loss)


class Descending(PGDConfig):
    """PGD that minimises: every step makes the image easier, and the best that it has seen is where it began."""

    attack: Literal["planted_rows:Descending"] = "planted_rows:Descending"  # type: ignore[assignment]

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        region = Region(x, self.norm, self.eps)
        current = best = region.random_start(omega, 0)
        loss = torch.full((len(x),), -torch.inf)
        for _ in range(self.steps):
            at = target.differentiate(current, point_loss(self.loss))
            assert at.gradient is not None
            better = at.loss > loss
            best = torch.where(better.view(-1, 1, 1, 1), current, best)
            loss = torch.where(better, at.loss, loss)
            current = region.ascend(current, -at.gradient, 2.5 * self.eps / self.steps)
        return AttackResult(best, loss)


# -------------------------------------------------------------------------------------------------- data sets


class Data(DigitsConfig):
    """Digits with one fault."""

    dataset: Literal["planted_rows:Data"] = "planted_rows:Data"  # type: ignore[assignment]
    how: str

    def label(self) -> str:
        return self.how

    def read(self) -> ImageSet:
        images, labels = TEST.images, TEST.labels
        if self.how == "shifted-labels":
            return ImageSet(images, (labels + 1) % 10)
        if self.how == "shuffled-labels":
            return ImageSet(images, labels[np.random.default_rng(0).permutation(len(labels))])
        if self.how == "repeated":
            return ImageSet(np.repeat(images, 3, axis=0), np.repeat(labels, 3))
        if self.how == "one-class":
            return ImageSet(images[labels == 4], labels[labels == 4])
        # The images that a network was trained on, called test images.
        return ImageSet(TRAIN.images, TRAIN.labels)
