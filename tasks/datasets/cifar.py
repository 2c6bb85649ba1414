"""CIFAR-10 and CIFAR-100 in torchvision's layout."""

from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from defense.errors import InvalidInput
from defense.files import existing
from defense.packages import installed
from defense.torchvision_cpu import allow_torchvision_import
from tasks.datasets.base import DATA_VARIABLE, DATASETS, DatasetConfig, ImageSet, data_root
from tasks.datasets.class_lists import LISTS, listed

__all__ = ["Cifar10Config", "Cifar100Config"]


class _CifarConfig(DatasetConfig):
    """The common part of CIFAR-10 and CIFAR-100: torchvision's layout under a data root, md5s checked by it."""

    root: str | None = Field(default=None, exclude=True)

    source: ClassVar[str]
    """torchvision's class."""
    folder: ClassVar[str]
    """Where the files lie under the root."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, 32, 32)."""
        return 3, 32, 32

    def resolved(self, base: Path) -> Self:
        """This config with an absolute root and the digest."""
        missing = (
            f"{self.dataset} has no data root: give `root` in the sweep file or set {DATA_VARIABLE} to the folder "
            f"that holds {self.folder}. `puregrid data fetch {self.dataset} --root FOLDER` downloads it there."
        )
        located = self.model_copy(update={"root": data_root(self.root, base, missing)})
        return located.model_copy(update={"digest": located.checked().digest()})

    def read(self) -> ImageSet:
        """Return the official split, in the official order."""
        found = sorted(Path(self.root or "", self.folder).glob("*"))
        files = [existing(file, f"a file of {self.dataset}", kind="either") for file in found]
        seen = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        try:
            pixels, labels = _official(self.source, self.root or "", self.split == "train", seen)
        except (RuntimeError, OSError) as error:
            raise InvalidInput(
                f"{self.source.replace('CIFAR', 'CIFAR-')} is not under {self.root!r}: {self.folder} is missing "
                f"there or damaged (md5). `puregrid data fetch {self.dataset} --root {self.root}` downloads it; "
                "puregrid never does so by itself."
            ) from error
        images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
        images /= np.float32(255)
        return ImageSet(images, np.array(labels, dtype=np.int64))


@lru_cache(maxsize=1)
def _official(
    source: str, root: str, train: bool, files: tuple[tuple[str, int, int], ...]
) -> tuple[npt.NDArray[np.uint8], tuple[int, ...]]:
    """Pixels of 0 to 255, shape (N, H, W, C), and labels; kept while the files have the same sizes and times."""
    allow_torchvision_import()
    with installed(f"data set {source.lower()}"):
        from torchvision import datasets

    data = getattr(datasets, source)(root, train=train, download=False)
    return data.data, tuple(data.targets)


@DATASETS.register("cifar10")
class Cifar10Config(_CifarConfig):
    """CIFAR-10 (Krizhevsky, 2009) in torchvision's layout: ``ROOT/cifar-10-batches-py``.

    Arguments:
        root: Data root; by default the environment variable ``PUREGRID_DATA``.
    """

    dataset: Literal["cifar10"] = "cifar10"

    source = "CIFAR10"
    folder = "cifar-10-batches-py"

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the official order."""
        return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@DATASETS.register("cifar100")
class Cifar100Config(_CifarConfig):
    """CIFAR-100 (Krizhevsky, 2009), its 100 fine classes, in torchvision's layout: ``ROOT/cifar-100-python``.

    Arguments:
        root: Data root; by default the environment variable ``PUREGRID_DATA``.
    """

    dataset: Literal["cifar100"] = "cifar100"

    source = "CIFAR100"
    folder = "cifar-100-python"

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the official order."""
        return tuple(names[0] for names in listed(LISTS / "cifar100.txt"))
