"""Parts of somebody else's for tests of the preflight: a data set of any shape, few classes, and what raises."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from defense.classifiers import Architecture
from defense.errors import InvalidInput
from defense.models import Models
from defense.purifiers import Purifier, PurifierConfig
from defense.randomness import Omega
from tasks.attacks.base import AttackConfig, AttackResult
from tasks.attacks.target import Target
from tasks.datasets import DatasetConfig, ImageSet

WEIGHTS = Path(__file__).parents[2] / "defense" / "assets" / "digits-cnn" / "model.safetensors"


class ShapesConfig(DatasetConfig):
    """Twelve images of noise."""

    dataset: Literal["preflight_parts:ShapesConfig"] = "preflight_parts:ShapesConfig"
    channels: int = 1
    side: int = 8
    count: int = 2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.channels, self.side, self.side

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(f"class {number}" for number in range(self.count))

    def read(self) -> ImageSet:
        pixels = np.random.default_rng(0).random((12, *self.image_shape), dtype=np.float32)
        return ImageSet(pixels, np.arange(12) % self.count)


class Linear(nn.Module):
    """Random, but always the same."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        pixels = shape[0] * shape[1] * shape[2]
        self.register_buffer("matrix", torch.randn(pixels, classes, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix


class RaisesOnDark(Linear):
    """Passes every examination with random images; data sets are another matter."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1 and float(x.mean()) < 0.4:
            raise ZeroDivisionError("too dark for me")
        return super().forward(x)


def architecture(shape: tuple[int, int, int], classes: int, network: type[Linear] = Linear) -> Architecture:
    return Architecture(
        build=lambda: network(shape, classes),
        image_shape=shape,
        classes=classes,
        mean=(0.0,) * shape[0],
        std=(1.0,) * shape[0],
        weights=WEIGHTS,
        load=lambda path: network(shape, classes),
    )


two = architecture((1, 8, 8), 2)
three = architecture((1, 8, 8), 3)
four = architecture((4, 8, 8), 4)
small = architecture((1, 4, 4), 2)
dark = architecture((1, 8, 8), 10, RaisesOnDark)


class Bad(Purifier):
    """Goes wrong in one of many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        if self.how == "raises":
            raise KeyError("nobody home")
        if self.how == "raises on later images" and min(omega.image_ids) > 3:
            raise InvalidInput("image ids above 3 are not for me.")
        if self.how == "shape":
            return x[:, :, 1:]
        if self.how == "nan":
            return x * torch.nan
        if self.how == "no gradient":
            return x.detach().clone()
        if self.how == "gradient":
            return Raising.apply(x)  # type: ignore[no-any-return]
        return x


class Raising(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        raise NotImplementedError("no way back")


class BadConfig(PurifierConfig):
    purifier: Literal["preflight_parts:BadConfig"] = "preflight_parts:BadConfig"
    how: str = "raises"

    def label(self) -> str:
        return f"bad {self.how}"

    def build(self, models: Models | None = None) -> Bad:
        if self.how == "build":
            raise OSError("where are my weights")
        return Bad(self.how)


class BadAttackConfig(AttackConfig):
    attack: Literal["preflight_parts:BadAttackConfig"] = "preflight_parts:BadAttackConfig"
    how: str = "raises"

    @property
    def evaluations(self) -> int:
        return 5

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        if self.how == "raises":
            raise RuntimeError("attack is the best defence")
        for _ in range(20):
            with torch.no_grad():
                logits = target.logits(x)
        if self.how == "late":
            raise IndexError("at the very end")
        if self.how == "shape":
            return AttackResult(x[:, :, 1:], logits[:, 0, 0])
        return AttackResult(x, logits[:, 0, 0])
