"""Attacks and data sets with mistakes that nobody made on purpose; ``test_zoo_rows.py`` has the rule of each."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from helpers_small import ASSETS
from torch import Tensor

from defense.classifiers import Architecture
from defense.classifiers.digits_cnn import DigitsCNN
from defense.randomness import Omega
from tasks.attacks import AttackResult, PGDConfig
from tasks.attacks.base import Region
from tasks.attacks.losses import point_loss
from tasks.attacks.target import Target
from tasks.datasets import DigitsConfig, ImageSet

TEST = DigitsConfig().read()


class Accident(PGDConfig):
    """PGD with one mistake."""

    attack: Literal["planted_accident_rows:Accident"] = "planted_accident_rows:Accident"  # type: ignore[assignment]
    how: str

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        # The budget in units of [-1, 1] images, which are twice as long.
        eps = self.eps / 2 if self.how == "half" else self.eps
        # The budget divided by the standard deviation of the classifier's own input.
        eps = 0.4 * eps if self.how == "in standardised units" else eps
        # Says l_inf, and projects on the ball of l_2.
        region = Region(x, "l2" if self.how == "another norm" else self.norm, eps)
        current, size = region.random_start(omega, 0), 2.5 * eps / self.steps
        found: list[tuple[Tensor, Tensor]] = []
        first: Tensor | None = None
        for _ in range(1 if self.how == "returns in the loop" else self.steps):
            at = target.differentiate(current, point_loss(self.loss))
            assert at.gradient is not None
            found.append((current, at.loss))
            gradient = first = at.gradient if first is None else first
            if self.how != "gradient of the start":
                gradient = at.gradient
            if self.how == "mean over the batch":
                gradient = gradient.mean(0, keepdim=True).expand_as(x)
            current = region.ascend(current, gradient, size)
        found.append((current, target.differentiate(current, point_loss(self.loss)).loss))
        losses = torch.stack([loss for _, loss in found])
        best = losses.argmin(0) if self.how == "keeps the worst" else losses.argmax(0)
        images = torch.stack([images for images, _ in found])[best, torch.arange(len(x))]
        if self.how == "as bytes":
            images = (255 * images).floor() / 255
        return AttackResult(images.float(), losses.gather(0, best[None])[0])


class Data(DigitsConfig):
    """Digits with one mistake."""

    dataset: Literal["planted_accident_rows:Data"] = "planted_accident_rows:Data"  # type: ignore[assignment]
    how: str

    def label(self) -> str:
        return self.how

    def read(self) -> ImageSet:
        images, labels = TEST.images, TEST.labels
        if self.how == "sorted by class":
            order = np.argsort(labels, kind="stable")
            return ImageSet(images[order], labels[order])
        # Each image is there four times, as a lossy codec left it.
        noise = np.random.default_rng(0).uniform(0, 2e-3, (4 * len(images), 1, 8, 8)).astype(np.float32)
        return ImageSet(np.clip(np.repeat(images, 4, axis=0) - noise, 0, 1), np.repeat(labels, 4))


class _Cold(DigitsCNN):
    def classify(self, latent: Tensor) -> Tensor:
        return 1e-6 * super().classify(latent)


COLD = Architecture(
    build=_Cold,
    image_shape=(1, 8, 8),
    classes=10,
    mean=(0.3,),
    std=(0.4,),
    weights=ASSETS / "digits-cnn" / "model.safetensors",
)
