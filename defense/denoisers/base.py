"""The base of every denoiser: a network with a schedule, called as ``eps = denoiser(z, t)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from defense.errors import InvalidInput, nearest
from defense.registry import Registry
from defense.schedules import Levels, Schedule, get_schedule
from defense.spec import Reading, Spec

__all__ = ["DENOISERS", "Denoiser", "DenoiserConfig"]


class Denoiser(nn.Module, ABC):
    """Predicts the noise in a noised image.

    Attributes:
        schedule: The noise schedule that the network was trained on.
        image_shape: (C, H, W) of its images; None if it takes any.
        classes: Number of classes that it can be told; None for a network that knows of none.
    """

    schedule: Schedule
    image_shape: tuple[int, int, int] | None
    classes: int | None = None

    @abstractmethod
    def forward(self, z: Tensor, t: int) -> Tensor:
        """Predicted noise, of a class-conditional network without a class.

        Arguments:
            z: Noised images in diffusion units, shape (B, C, H, W).
            t: Number of noising steps, 1 to ``schedule.steps``, the same for the batch. A network that counts
                its time steps from 0 gets t - 1.

        Returns:
            Noise prediction, shape (B, C, H, W).
        """

    def at_levels(self, z: Tensor, levels: Levels) -> Tensor:
        """Return the predicted noise where each image has a level of its own.

        By default the images of each level are asked together, one call a level; networks do it in one call.

        Arguments:
            z: See :meth:`forward`.
            levels: The level of each image.

        Returns:
            Noise prediction, shape (B, C, H, W). Where all images share one level it is ``forward``'s, bit for bit.
        """
        shared = levels.shared
        if shared is not None:
            return cast(Tensor, self(z, shared))
        parts: list[Tensor] = []
        places: list[int] = []
        for t in sorted(set(levels.steps)):
            where = [i for i, step in enumerate(levels.steps) if step == t]
            parts.append(self(z[where], t))
            places += where
        return torch.cat(parts)[torch.tensor(places, device=z.device).argsort()]

    def conditional(self, z: Tensor, t: int, labels: Tensor) -> Tensor:
        """Return the noise that is predicted for images of given classes.

        Arguments:
            z: See :meth:`forward`.
            t: See :meth:`forward`.
            labels: Class of each image, int64 of shape (B,), 0 to ``classes - 1``.

        Raises:
            InvalidInput: The network knows of no classes.
        """
        raise InvalidInput(
            f"denoiser {type(self).__name__} is not class-conditional: what needs the noise for each class takes a "
            "network that was trained with labels (a diffusers folder with `num_class_embeds`, `class_cond: true`)."
        )

    def with_variance(self, z: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        r"""Return the predicted noise, and the network's variance output if it has one.

        Returns:
            Noise prediction, and v of the same shape with values meant to lie in [-1, 1]: the variance of a reverse
            step is :math:`\exp(\tfrac{v+1}2 \log\beta + \tfrac{1-v}2 \log\tilde\beta)` (Nichol and Dhariwal,
            arXiv 2102.09672, equation 15, where v counts from 0 to 1). None without such an output.
        """
        return self(z, t), None


class DenoiserConfig(Spec, ABC):
    """The config of a denoiser. Weights are identified by hash, found by path."""

    named_by: ClassVar[str | None] = "format"
    format: str = "diffusers"
    schedule: str = Field(
        description="It is the noise schedule that the network was trained on: see `puregrid list schedules`."
    )

    @classmethod
    def class_named(cls, name: str) -> type[DenoiserConfig]:
        """See :class:`Spec`."""
        return DENOISERS.get(name)

    @classmethod
    def from_name(cls, name: str, reading: Reading) -> DenoiserConfig:
        """Return a denoiser that the section ``denoisers`` has given a name; a bare format would be no network."""
        named = reading.names.get("denoisers", {})
        if name not in named:
            nobody = "there is no section `denoisers`, which gives each denoiser a name."
            hint = nearest(name, named) if named else nobody
            raise InvalidInput(f"unknown denoiser {name!r}; {hint}")
        return cast(DenoiserConfig, named[name])

    @abstractmethod
    def resolved(self, base: Path) -> Self:
        """This config with absolute paths and with the hashes of its files filled in and checked.

        Raises:
            InvalidInput: A file is missing, or is not the one that the hash names.
        """

    @property
    def noise_schedule(self) -> Schedule:
        """The schedule that the network was trained on; needs a resolved config where its files state it.

        Raises:
            InvalidInput: There is none of that name.
        """
        return get_schedule(self.schedule)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of its images, None where the files do not state it; needs a resolved config."""
        return None

    @property
    def learned_variance(self) -> bool:
        """Whether the network has a variance output, which `variance: learned` takes; needs a resolved config."""
        return False

    @property
    def classes(self) -> int | None:
        """Number of classes that the network can be told, None if it knows of none; needs a resolved config."""
        return None

    @property
    def unconditional(self) -> bool:
        """Whether the network can be asked without a class, as purifiers do; needs a resolved config."""
        return True

    @abstractmethod
    def build(self) -> Denoiser:
        """Load the network, in evaluation mode, without parameter gradients."""


DENOISERS: Registry[type[DenoiserConfig]] = Registry(
    "denoiser format", "puregrid.denoisers", subclass_of=DenoiserConfig
)
"""Checkpoint formats by the name that ``format:`` takes in a sweep file."""
