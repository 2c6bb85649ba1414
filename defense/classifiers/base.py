"""The base of every classifier, and its config."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from defense.checkpoints import SHA256, assert_sha256, load_weights
from defense.classifiers.examine import examine, logits_of
from defense.code import Code
from defense.errors import InvalidInput, inside
from defense.files import path_of
from defense.reading import reading
from defense.registry import Registry
from defense.spec import Spec
from defense.weight_files import read_sets
from defense.weight_matching import WeightsFile, WrongArchitecture, fits

__all__ = ["CLASSIFIERS", "Architecture", "ClassifierConfig", "FeatureNet", "Normalised", "register_cifar"]


class FeatureNet(nn.Module, ABC):
    """A network whose last layer is linear: ``forward(x) = classify(latent(x))``.

    What lies before that layer is the latent of guided purifiers and of feature-space measures.
    """

    @abstractmethod
    def latent(self, x: Tensor) -> Tensor:
        """Features before the last linear layer, shape (B, D), of normalised images, shape (B, C, H, W)."""

    @abstractmethod
    def classify(self, latent: Tensor) -> Tensor:
        """The last linear layer: features, shape (B, D), to logits, shape (B, classes)."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, classes), of normalised images, shape (B, C, H, W)."""
        return self.classify(self.latent(x))


class Normalised(nn.Module):
    """``net((x - mean) / std)``: the normalisation is part of the classifier, never of the data.

    Arguments:
        net: Maps normalised images to logits.
        mean: Mean per channel, in units of [0, 1] pixels.
        std: Standard deviation per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, classes), of images in [0, 1], shape (B, C, H, W)."""
        logits = logits_of(self.net((x - self.mean) / self.std))
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    def latent(self, x: Tensor) -> Tensor:
        """Features before the last linear layer, shape (B, D), of images in [0, 1], shape (B, C, H, W).

        Raises:
            InvalidInput: The network does not say what its features are.
        """
        find = getattr(self.net, "latent", None)
        if not callable(find):
            raise InvalidInput(
                f"classifier network {type(self.net).__name__} has no `latent`: what needs features cannot use it. "
                "Give it a method `latent(x)` that returns the features before its last linear layer, shape (B, D), "
                "or name another classifier."
            )
        features: Tensor = find((x - self.mean) / self.std)
        return features


@dataclass(frozen=True)
class Architecture:
    """A kind of network that weights can be loaded into.

    Arguments:
        build: Returns the network with random weights.
        image_shape: (C, H, W) of its images.
        classes: Number of classes.
        mean: Default normalisation of its public checkpoints.
        std: Likewise.
        weights: Weights that ship with puregrid, if any.
        load: Returns the network with the weights of a file, if there is more to it than :func:`load_weights`.
        rename: Gives the network's name for a name in its public checkpoints, where they differ.
        source: Where its weights can be had, for messages.
        class_names: Names of its classes in the order of its logits; empty if it does not know them.
    """

    build: Callable[[], nn.Module]
    image_shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Path | None = None
    load: Callable[[str | Path], nn.Module] | None = None
    source: str = ""
    rename: Callable[[str], str] = str
    class_names: tuple[str, ...] = ()

    def loaded(self, path: str | Path) -> nn.Module:
        """Return the network with the weights of a file.

        Raises:
            InvalidInput: The file cannot be read, or is not of this architecture.
        """
        with reading(path, "classifier weights"):
            return self.load(path) if self.load is not None else load_weights(self.build(), path, self.rename)


class Classifiers(Registry[Architecture]):
    """The architectures that a sweep file can name, whole families of other packages (``timm:NAME``) among them."""

    def __init__(self) -> None:
        super().__init__("classifier", "puregrid.classifiers", instance_of=Architecture)
        self._families: dict[str, Callable[[str], Architecture]] = {}

    def family(self, prefix: str) -> Callable[[Callable[[str], Architecture]], Callable[[str], Architecture]]:
        """Decorator for what finds ``PREFIX:REST``; it is called with REST, once for each."""

        def add(find: Callable[[str], Architecture]) -> Callable[[str], Architecture]:
            self._families[prefix] = lru_cache(maxsize=None)(find)
            return find

        return add

    def built_in(self) -> Iterator[tuple[str, Architecture]]:
        """Architectures of puregrid itself, with their names."""
        return iter(self._entries.items())

    def get(self, name: str) -> Architecture:
        """Return the architecture of that name.

        Raises:
            InvalidInput: As :meth:`Registry.get`; or a family does not know it, or its package is not installed.
        """
        prefix, _, rest = name.partition(":")
        return self._families[prefix](rest) if prefix in self._families else super().get(name)

    def code_of(self, name: str) -> Code | None:
        """See :class:`Registry`; None of the families, whose code is in puregrid."""
        return None if name.partition(":")[0] in self._families else super().code_of(name)


CLASSIFIERS = Classifiers()


Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, in units of [0, 1] pixels."""

NOT_NORMALISED: Statistics = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def register_cifar(
    name: str,
    network: Callable[..., nn.Module],
    *,
    cifar10: Statistics = NOT_NORMALISED,
    cifar100: Statistics = NOT_NORMALISED,
    rename: Callable[[str], str] = str,
) -> None:
    """Register a network for 32x32 images as NAME with 10 classes, and as NAME-cifar100 with 100.

    Arguments:
        name: Its name.
        network: Makes the network; takes ``classes``.
        cifar10: Normalisation that its public CIFAR-10 checkpoints were trained with.
        cifar100: Likewise.
        rename: Gives the network's name for a name in its public checkpoints, where they differ.
    """
    for suffix, classes, (mean, std) in (("", 10, cifar10), ("-cifar100", 100, cifar100)):
        build = partial(network, classes=classes)
        CLASSIFIERS.register(f"{name}{suffix}")(
            Architecture(
                build=build,
                image_shape=(3, 32, 32),
                classes=classes,
                mean=mean,
                std=std,
                rename=rename,
            )
        )


class ClassifierConfig(Spec):
    """The config of a classifier.

    Arguments:
        classifier: Name of an architecture.
        name: How tables call it, by default the architecture's name.
        weights: Path of the checkpoint; may be left out where puregrid ships one.
        sha256: sha256 of the checkpoint, at least its first 8 hex digits; filled in from the file.
        weights_key: Which weights of the checkpoint, if it holds several that fit (``state_dict``, ``ema``, ...): the
            place in the file, the prefix of the names, or both.
        mean: Normalisation, if it is not the architecture's default.
        std: Likewise.
    """

    named_by: ClassVar[str | None] = "classifier"
    # Ids from before there was a choice are still the same.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"weights_key": (None,)}
    classifier: str
    name: str | None = Field(default=None, exclude=True)
    weights: str | None = Field(default=None, exclude=True)
    sha256: str | None = SHA256
    weights_key: str | None = Field(default=None, min_length=1)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def class_named(cls, name: str) -> type[ClassifierConfig]:
        """Return the class of an entry: one of its own for classifiers that are made of a denoiser."""
        return ENTRIES.get(name, ClassifierConfig)

    @property
    def architecture(self) -> Architecture:
        """The architecture of that name."""
        return CLASSIFIERS.get(self.classifier)

    def code(self) -> Code | None:
        """Return the code of the architecture where it is not puregrid's; see :class:`Spec`."""
        return super().code() or CLASSIFIERS.code_of(self.classifier)

    def label(self) -> str:
        """Name in tables."""
        return self.name or self.classifier

    def resolved(self, base: Path) -> Self:
        """This config with its checkpoint found, hashed and checked, and its normalisation filled in.

        Raises:
            InvalidInput: Unknown architecture, no weights, a missing file or one with another hash.
        """
        architecture = self.architecture
        if self.weights is not None:
            with inside("weights"):
                path = path_of(self.weights, "classifier weights", base=base)
        elif architecture.weights is not None:
            path = architecture.weights
        else:
            source = f" {architecture.source}" if architecture.source else ""
            raise InvalidInput(
                f"classifier {self.classifier!r} needs `weights`, the path of its checkpoint: puregrid ships none."
                f"{source}"
            )
        mean, std = self.mean or architecture.mean, self.std or architecture.std
        if len(mean) != architecture.image_shape[0] or len(std) != len(mean) or min(std) <= 0:
            raise InvalidInput(
                f"classifier {self.classifier!r} takes images of {architecture.image_shape[0]} channels: give as "
                "many values of `mean` and of `std`, the latter above 0."
            )
        return self.model_copy(
            update={
                "weights": str(path),
                "sha256": assert_sha256(path, self.sha256, what="classifier weights"),
                "mean": mean,
                "std": std,
            }
        )

    def build(self) -> nn.Module:
        """Load the network: images in [0, 1] to logits, evaluation mode, no parameter gradients.

        Raises:
            InvalidInput: The file has changed, cannot be read, is of another architecture, or holds a normalisation
                other than ``mean`` and ``std``; or what was loaded is no function of an image
                (:func:`~defense.classifiers.examine.examine`).
        """
        if self.weights is None or self.sha256 is None or self.mean is None or self.std is None:
            raise ValueError("resolve the config before building")
        assert_sha256(self.weights, self.sha256, what="classifier weights")
        file = WeightsFile(self.weights, key=self.weights_key, normalisation=(self.mean, self.std))
        try:
            net = self.architecture.loaded(file)
        except WrongArchitecture as error:
            names = _architectures_that_fit(self.weights)
            meant = f" The file fits {' and '.join(map(repr, names))}." if names else ""
            raise InvalidInput(f"{error.message}{meant}") from error
        if self.weights_key is not None and not file.used:
            raise InvalidInput(
                f"weights_key {self.weights_key!r} has no effect on classifier {self.classifier!r}, which reads its "
                "checkpoints by itself. Leave it out, and save only the weights to load."
            )
        if any(value.is_floating_point() and value.dtype != torch.float32 for value in net.state_dict().values()):
            net = net.float()  # images are float32; half precision loses nothing by it
        classifier = Normalised(net, self.mean, self.std).eval().requires_grad_(False)
        examine(
            classifier,
            name=self.label(),
            image_shape=self.architecture.image_shape,
            classes=self.architecture.classes,
        )
        return classifier


ENTRIES: dict[str, type[ClassifierConfig]] = {}
"""Classifiers whose entries have fields of their own, by name (:mod:`defense.classifiers.diffusion`)."""


@cache
def _tensors_of(architecture: Architecture) -> dict[str, Tensor]:
    """Return the names and shapes of a network's tensors, without their memory."""
    with torch.device("meta"):
        return architecture.build().state_dict()


def _architectures_that_fit(path: str) -> list[str]:
    """Up to three built-in architectures whose tensors are those of a file."""
    sets = read_sets(path)
    names: list[str] = []
    for name, architecture in CLASSIFIERS.built_in():
        if fits(_tensors_of(architecture), sets, rename=architecture.rename):
            names.append(name)
    return names[:3]
