"""The interface of a kind of training: its network, its loss, its measures, its files.

The loop (:mod:`workflows.training.loop`) owns the rest: batches, augmentation, the learning rate, averaging,
checkpoints. A new kind is a config class derived from :class:`~workflows.training.config.Training`, an objective
class derived from :class:`Objective`, and a line in :data:`workflows.training.kinds.registry.KINDS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tasks.datasets import ImageSet

__all__ = ["Objective"]


class Objective(ABC):
    """One training's objective. The loop calls, in this order and once a step: ``loss``, ``after_step``.

    Raises:
        InvalidInput: The config does not fit the data; the message begins with the field's name and a colon.
    """

    config: Any  # each kind narrows it to its own config class

    def __init__(self, config: Any, data: ImageSet) -> None:
        self.config = config
        self.data = data

    @abstractmethod
    def network(self) -> nn.Module:
        """Return the network with fresh weights, drawn from torch's global generator, which the loop has seeded."""

    @abstractmethod
    def loss(self, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, step: int) -> Tensor:
        """Return the loss of one batch, a scalar; the loop calls it under autocast if the precision asks for it.

        Arguments:
            net: The network, in training mode; left in training mode.
            x: Augmented images in [0, 1], shape (B, C, H, W), on the training device.
            y: Class numbers, shape (B,), on the training device.
            generator: The only source of randomness beside dropout. It is on the CPU whatever the device, so draw
                there and move: ``torch.randn(x.shape, generator=generator).to(x)``.
            step: Steps done before this one.
        """

    def after_step(self, net: nn.Module, step: int) -> None:  # noqa: B027 - optional
        """Called after the optimiser's step number ``step`` (counted from 0)."""

    def optimiser(self, net: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser, at the peak learning rate; AdamW by default."""
        return torch.optim.AdamW(net.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay)

    def progress(self, net: nn.Module, test: ImageSet) -> dict[str, float]:
        """Cheap figures of an unfinished network in evaluation mode, for curves; draws no random numbers."""
        return {}

    @abstractmethod
    def measure(self, net: nn.Module, test: ImageSet) -> dict[str, Any]:
        """The measures of the finished network for its card (averaged if ``ema``, evaluation mode, on its device)."""

    @abstractmethod
    def save(self, net: nn.Module, out: Path) -> list[Path]:
        """Write the weights (and what is needed to load them) into the folder; returns the files."""

    def state_dict(self) -> dict[str, Tensor]:
        """State beyond network and optimiser that a resumed training needs; CPU tensors only."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027 - optional
        """Restore what :meth:`state_dict` returned."""
