"""A data set of so many images for stores of made-up rows."""

from __future__ import annotations

import os
from typing import Literal

import numpy as np

from tasks.datasets import DatasetConfig, ImageSet

SHAPE = (1, 8, 8)
CLASSES = 10
VARIABLE = "PLAIN_IMAGES"
"""How many images there are."""


class Plain(DatasetConfig):
    """Grey images, no two alike, and labels in turn."""

    dataset: Literal["plain_images:Plain"] = "plain_images:Plain"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return SHAPE

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(map(str, range(CLASSES)))

    def read(self) -> ImageSet:
        number = np.arange(int(os.environ[VARIABLE]))
        bits = (number[:, None] >> np.arange(64)[None]) & 1
        return ImageSet((0.25 + 0.5 * bits).astype(np.float32).reshape(-1, *SHAPE), number % CLASSES)
