"""The config of a corruption: its name, its severity, and whose images."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationInfo, model_validator

from defense.errors import InvalidInput, inside
from defense.files import found
from defense.randomness import Omega
from defense.spec import Reading, Spec
from tasks.cifar_c import CIFAR10_C, CIFAR100_C, CifarC
from tasks.corruptions.base import Corrupted, Origin
from tasks.corruptions.generate import CORRUPTIONS, check_images, corrupt, find
from tasks.corruptions.weather import Photographs
from tasks.datasets import DATA_VARIABLE, DatasetConfig, ImageSet

__all__ = ["CorruptionConfig"]

_RELEASES = MappingProxyType({"cifar10": CIFAR10_C, "cifar100": CIFAR100_C})


class CorruptionConfig(Spec):
    """One corruption at one severity.

    Arguments:
        corruption: Its name; see ``puregrid list corruptions``.
        severity: 1 to 5.
        origin: ``generated`` from the images of any data set by the definition of the official script, or
            ``official`` for the published arrays of CIFAR-10-C and CIFAR-100-C. The two are never the same images.
        path: Of official arrays: the tar, the folder unpacked from it, or a folder that holds either; by default the
            environment variable ``PUREGRID_DATA``.
        photographs: Of generated ``frost``: the folder of the photographs that it blends in.
        motion: Of generated ``motion_blur`` and ``snow``: their motion blur is ``truncated`` to 8 bits, as by
            ImageMagick, or ``rounded``, as it was here before there was this field; filled in.
        digest: What the images are made of: md5 of the official file, sha256 of the photographs; filled in.
    """

    named_by: ClassVar[str | None] = "corruption"
    corruption: str
    severity: int
    origin: Origin = "generated"
    path: str | None = Field(default=None, exclude=True)
    photographs: str | None = Field(default=None, exclude=True)
    digest: str | None = None
    motion: Literal["truncated", "rounded"] | None = None

    # Rows from before there was this field.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"motion": (None, "rounded")}

    @model_validator(mode="before")
    @classmethod
    def _motion_as_published(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, dict) or data.get("motion") is not None:
            return data
        named = data.get("corruption")
        moves = isinstance(named, str) and named in CORRUPTIONS and CORRUPTIONS[named].moves
        if not moves or data.get("origin", "generated") != "generated":
            return data
        before = isinstance(info.context, Reading) and info.context.identity
        return {**data, "motion": "rounded" if before else "truncated"}

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.motion is not None and not (
            self.origin == "generated" and find(self.corruption, self.severity).moves
        ):
            raise InvalidInput(f"motion is for generated motion_blur and snow; {self.label()} has none.")
        needs = find(self.corruption, self.severity).photographs and self.origin == "generated"
        if self.photographs is not None and not needs:
            raise InvalidInput(f"photographs are for generated frost; {self.label()} takes none.")
        if needs and self.photographs is None:
            raise InvalidInput(
                "photographs are missing: generated frost blends in five photographs that come with the official "
                "script (frost1.png to frost3.png, frost4.jpg, frost5.jpg of ImageNet-C/create_c in the repository "
                "hendrycks/robustness). Give `photographs: FOLDER`, or leave frost out and say so."
            )
        if self.path is not None and self.origin == "generated":
            raise InvalidInput("path is where official arrays lie: write `origin: official` with it.")
        return self

    def label(self) -> str:
        """``glass_blur 3``, and whether it is official."""
        return f"{self.corruption} {self.severity}{' (official)' if self.origin == 'official' else ''}"

    def resolved(self, base: Path) -> Self:
        """This config with its folders found, and what does not depend on the data set checked and hashed.

        Raises:
            InvalidInput: There is no folder of official arrays, or the photographs are not the published ones.
        """
        if self.origin == "official":
            path = os.environ.get(DATA_VARIABLE) or None if self.path is None else self.path
            if path is None:
                raise InvalidInput(
                    f"path is missing: give the folder of the official arrays, or set {DATA_VARIABLE} to it."
                )
            with inside("path"):
                place = found(path, "the folder of the official arrays", kind="either", base=base)
            return self.model_copy(update={"path": str(place)})
        if self.photographs is not None:
            with inside("photographs"):
                folder = str(found(self.photographs, "the folder of photographs", kind="folder", base=base))
            return self.model_copy(update={"photographs": folder, "digest": Photographs.read(folder).digest})
        return self

    def of(self, dataset: DatasetConfig) -> Self:
        """This config, resolved, for the images of a data set: official arrays are checked and hashed.

        Raises:
            InvalidInput: The data set has no official arrays, or the files are not the published ones.
        """
        if self.origin == "generated":
            return self
        release = self._release(dataset)
        release.read(self.corruption, self.severity, [0])  # which compares the md5
        return self.model_copy(update={"digest": release.release.files[self.corruption]})

    def check_images(self, image_shape: tuple[int, int, int]) -> None:
        """Refuse images that the corruption is not defined for, before any compute.

        Arguments:
            image_shape: (C, H, W).

        Raises:
            InvalidInput: It is not.
        """
        check_images(image_shape)

    def _release(self, dataset: DatasetConfig) -> CifarC:
        if dataset.dataset not in _RELEASES or dataset.split != "test":
            raise InvalidInput(
                f"origin official: there are published arrays of the test images of {' and '.join(_RELEASES)} alone, "
                f"not of {dataset.label()}. Write `origin: generated`."
            )
        return CifarC(self.path or "", _RELEASES[dataset.dataset])

    def apply(self, dataset: DatasetConfig, data: ImageSet, ids: npt.NDArray[np.int64], seed: int) -> Corrupted:
        """Corrupted images of a data set.

        Arguments:
            dataset: The data set.
            data: Its images.
            ids: Image ids.
            seed: Seed of what is random in generated ones; of it and of the image id alone, not of the batch.

        Raises:
            InvalidInput: Official files are not those of this data set.
        """
        if self.origin == "generated":
            frost = None if self.photographs is None else Photographs.read(self.photographs)
            omega = Omega.of("corruption", seed, "corrupt", ids.tolist())
            rounded = self.motion == "rounded"
            return corrupt(data.images[ids], self.corruption, self.severity, omega, frost, rounded_motion=rounded)
        release = self._release(dataset)
        if not np.array_equal(release.labels(ids.tolist()), data.labels[ids]):
            raise InvalidInput(
                f"labels of {release.release.name} at {str(release.path)!r} are not those of {dataset.label()}: the "
                "images are in another order, so that image ids mean nothing."
            )
        return release.read(self.corruption, self.severity, ids.tolist())
