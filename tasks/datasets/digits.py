"""scikit-learn's handwritten digits."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from defense.packages import installed
from tasks.datasets.base import DATASETS, DatasetConfig, ImageSet

__all__ = ["DigitsConfig"]


@DATASETS.register("digits")
class DigitsConfig(DatasetConfig):
    """scikit-learn's handwritten digits: 1,797 real 8x8 images with 16 grey levels, inside scikit-learn.

    The split is fixed: every third image (0, 3, 6, ...) is a test image, 599 in all; the others are for training.
    """

    dataset: Literal["digits"] = "digits"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(1, 8, 8)."""
        return 1, 8, 8

    @property
    def class_names(self) -> tuple[str, ...]:
        """The ten digits."""
        return tuple("0123456789")

    def read(self) -> ImageSet:
        """Return the split, in scikit-learn's order."""
        images, labels = _digits()
        test = np.arange(len(labels)) % 3 == 0
        chosen = test if self.split == "test" else ~test
        return ImageSet(images[chosen], labels[chosen])


@lru_cache(maxsize=1)
def _digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """All images, shape (1797, 1, 8, 8), and labels.

    scikit-learn's file is read as ``load_digits`` reads it, but without importing scikit-learn, which would import
    pandas and ``scipy.stats``: more than a second in each worker and before each plan.
    """
    package = find_spec("sklearn")
    file = Path("" if package is None else package.origin or "").parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        table = np.loadtxt(file, delimiter=",")
        images, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    else:  # it is missing, or keeps the file elsewhere by now
        with installed("data set digits"):
            from sklearn.datasets import load_digits

        bunch = load_digits()
        images, labels = bunch.images, bunch.target
    return (images / 16).astype(np.float32)[:, None], labels.astype(np.int64)
