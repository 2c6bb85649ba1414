"""What a data set is: its images, identified by content, and the config that reads them."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from defense.errors import InvalidInput, inside
from defense.files import found
from defense.registry import Registry
from defense.spec import Spec
from tasks.image_checks import check_selection, checked_images

__all__ = ["DATASETS", "DATA_VARIABLE", "DatasetConfig", "ImageSet", "data_root"]

DATA_VARIABLE = "PUREGRID_DATA"
"""Environment variable that names the data root where a sweep file gives none."""


@dataclass(frozen=True)
class ImageSet:
    """Images with labels; the image id is the position.

    Arguments:
        images: float32 in [0, 1], shape (N, C, H, W).
        labels: Class numbers, int64, shape (N,).
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """sha256 of the content: shape, pixels, labels."""
        content = hashlib.sha256(repr(self.images.shape).encode())
        content.update(np.ascontiguousarray(self.images, dtype="<f4").tobytes())
        content.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        return content.hexdigest()

    def fingerprints(self, ids: Sequence[int] | None = None) -> npt.NDArray[np.uint64]:
        """Return 64 bits of a hash (blake2b) of each image's pixels, by which equal images are found.

        Arguments:
            ids: Which images, by default all.
        """
        rows = range(len(self)) if ids is None else ids
        pixels = (np.ascontiguousarray(self.images[row], dtype="<f4").tobytes() for row in rows)
        hashes = b"".join(hashlib.blake2b(one, digest_size=8).digest() for one in pixels)
        return np.frombuffer(hashes, dtype="<u8")


class DatasetConfig(Spec, ABC):
    """The config of a data set. Its digest is filled in from the content.

    Arguments:
        dataset: Its name.
        split: Which part of it.
        digest: sha256 of its content.
        accept: What is usually a mistake and is meant here: ``duplicates``, images that repeat others; ``one-class``,
            images of a single class.
    """

    named_by: ClassVar[str | None] = "dataset"
    dataset: str
    split: Literal["test", "train"] = "test"
    digest: str | None = None
    accept: tuple[Literal["duplicates", "one-class"], ...] = Field(default=(), exclude=True)

    @classmethod
    def class_named(cls, name: str) -> type[DatasetConfig]:
        """See :class:`Spec`."""
        return DATASETS.get(name)

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""

    @abstractmethod
    def read(self) -> ImageSet:
        """Read the images, without looking at the digest.

        Raises:
            InvalidInput: They are not where they should be.
        """

    def label(self) -> str:
        """Name in tables."""
        return self.dataset if self.split == "test" else f"{self.dataset} ({self.split})"

    def resolved(self, base: Path) -> Self:
        """This config with absolute paths and its digest."""
        return self.model_copy(update={"digest": self.checked().digest()})

    def notices(self) -> tuple[str, ...]:
        """Notices for readers of the plan, such as files that are left out."""
        return ()

    def checked(self) -> ImageSet:
        """Read the images, and look at what :meth:`read` returned before it is believed.

        Raises:
            InvalidInput: They are not where they should be; or type, shape, range or labels are not what a data set
                promises (:func:`tasks.image_checks.checked_images`).
        """
        data = self.read()
        if not isinstance(data, ImageSet):
            raise InvalidInput(
                f"data set {self.label()!r} returns {type(data).__name__} where a tasks.datasets.ImageSet of images "
                "and labels is needed."
            )
        images, labels = checked_images(
            data.images,
            data.labels,
            name=self.label(),
            shape=self.image_shape,
            classes=len(self.class_names),
        )
        return ImageSet(images, labels)

    def check_selected(self, ids: Sequence[int]) -> None:
        """Look at the images that a sweep selects: see :func:`tasks.image_checks.check_selection`."""
        data, chosen = self.load(), list(ids)
        check_selection(data.images[chosen], data.labels[chosen], name=self.label(), accept=self.accept)

    def load(self) -> ImageSet:
        """Read the images, checked, and compare them with those that the digest names.

        Raises:
            InvalidInput: As :meth:`checked`; or the content has changed since the sweep was planned.
        """
        images = self.checked()
        if self.digest is not None and images.digest() != self.digest:
            raise InvalidInput(
                f"data set {self.label()!r} has digest {images.digest()}, but the sweep was planned with "
                f"{self.digest}: the files here are not the ones that the driver saw."
            )
        return images


DATASETS: Registry[type[DatasetConfig]] = Registry("dataset", "puregrid.datasets", subclass_of=DatasetConfig)


def data_root(root: str | None, base: Path, missing: str) -> str:
    """Return the absolute path of a data root.

    Arguments:
        root: As given; None for that of the environment.
        base: What a relative path is relative to.
        missing: The message where there is none.

    Raises:
        InvalidInput: There is none, or it is no folder.
    """
    root = os.environ.get(DATA_VARIABLE) or None if root is None else root
    if root is None:
        raise InvalidInput(missing)
    with inside("root"):
        return str(found(root, "the data root", kind="folder", base=base))
