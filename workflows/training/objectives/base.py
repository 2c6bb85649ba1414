"""The base of every objective of a denoiser: typed parameters and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from defense.denoisers import Prediction
from defense.registry import Registry
from defense.schedules import Schedule
from defense.spec import Spec

__all__ = ["OBJECTIVES", "DenoiserLoss", "Denoising", "GuidedLoss"]


@dataclass(frozen=True)
class Denoising:
    """What a loss is computed of.

    Arguments:
        ask: The network: images and noise labels, shape (B,), to its output; it is told the class where it takes one.
        x: Images in [0, 1], shape (B, C, H, W).
        y: Class numbers, shape (B,).
        generator: Source of all randomness beside dropout, on the CPU.
        schedule: The noise schedule.
        guide: The classifier that the objective names: images in [0, 1] to logits, frozen; None without.
    """

    ask: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    y: Tensor
    generator: torch.Generator
    schedule: Schedule
    guide: nn.Module | None

    def normal(self) -> Tensor:
        """Return standard normal noise of the shape of the images."""
        return torch.randn(self.x.shape, generator=self.generator).to(self.x)

    def uniform(self) -> Tensor:
        """Return a number in [0, 1) for each image, float64 on the CPU."""
        return torch.rand(len(self.x), generator=self.generator, dtype=torch.float64)

    def abar(self, t: Tensor) -> Tensor:
        """Return abar of each image's level, float64 of shape (B, 1, 1, 1), on the device of the images."""
        return torch.tensor(self.schedule.abar)[t].view(-1, 1, 1, 1).to(self.x.device)


class DenoiserLoss(Spec, ABC):
    """An objective of a denoiser; ``objective: {objective: NAME, ...}`` in a config.

    Attributes:
        prediction: What the trained network predicts.
        denoises_images: Whether that is of noised images. Of others the card has the mean loss, ``test_loss``.
    """

    named_by: ClassVar[str | None] = "objective"
    prediction: ClassVar[Prediction] = "eps"
    denoises_images: ClassVar[bool] = True
    objective: str

    @classmethod
    def class_named(cls, name: str) -> type[DenoiserLoss]:
        """See :class:`Spec`."""
        return OBJECTIVES.get(name)

    @property
    def guided_by(self) -> str | None:
        """Name of the classifier that the loss needs, which ships with puregrid."""
        return None

    @property
    def needs_schedule(self) -> str | None:
        """The only schedule that the objective is defined on; None for any."""
        return None

    @abstractmethod
    def loss(self, batch: Denoising) -> Tensor:
        """Return the loss of one batch, a scalar."""


class GuidedLoss(DenoiserLoss):
    """An objective whose perturbations are made against a classifier.

    Arguments:
        classifier: A classifier that ships with puregrid.
    """

    classifier: str = Field(description="It is a classifier that ships with puregrid, like digits-cnn.")

    @property
    def guided_by(self) -> str:
        """The classifier."""
        return self.classifier


OBJECTIVES: Registry[type[DenoiserLoss]] = Registry(
    "denoiser objective", "puregrid.denoiser_objectives", subclass_of=DenoiserLoss
)
"""Objectives of a denoiser, one file each; without one it is noise prediction (:mod:`workflows.training.kinds`)."""
