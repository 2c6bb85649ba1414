"""A purifier and a classifier of which every answer has a closed form: ladders are held against it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from defense.models import Models
from defense.purifiers import Purifier, PurifierConfig
from defense.randomness import Omega

LINF: dict[str, Any] = {"norm": "linf", "eps": 0.15}


class Coin(Purifier):
    """Adds the same uniform number to every pixel: what it does to an answer has a closed form."""

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return x + omega.uniform("coin", 0, x, shape=(1, 1, 1))


class CoinConfig(PurifierConfig):
    purifier: Literal["coin"] = "coin"

    def label(self) -> str:
        return "coin"

    def build(self, models: Models | None = None) -> Coin:
        return Coin()


def by_mean(x: Tensor) -> Tensor:
    """Class 0 where the mean pixel is below 1: behind the coin an image of mean m is right with 1 - m."""
    mean = x.flatten(1).mean(1)
    return torch.stack([torch.ones_like(mean), mean], 1)


def flat(*means: float) -> Tensor:
    return torch.tensor(means).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
