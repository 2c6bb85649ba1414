"""Flat images, and what a corruption makes of images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from defense.randomness import Omega
from tasks.corruptions import (
    Corrupted,
    Photographs,
    corrupt,
)

Images = npt.NDArray[np.float32]


def omega(ids: range | list[int], seed: int = 0, draw: int = 0) -> Omega:
    return Omega.of("corruptions", seed, "corrupt", ids, draw)


def flat(level: int, count: int = 8, channels: int = 3, side: int = 32) -> Images:
    return np.full((count, channels, side, side), level / 255, dtype=np.float32)


def done(images: Images, name: str, severity: int, photographs: Photographs | None = None) -> Corrupted:
    return corrupt(images, name, severity, omega(range(len(images))), photographs)


def values(images: Images, name: str, severity: int) -> npt.NDArray[np.float64]:
    """Corrupted values in [0, 1], with the half level that truncation takes on average given back."""
    return (done(images, name, severity).pixels + 0.5) / 255
