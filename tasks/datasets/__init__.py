"""Data sets: images in [0, 1] with labels, identified by content.

Nothing here downloads: ``puregrid data fetch`` does, and only when asked.
"""

from tasks.datasets.base import DATA_VARIABLE, DATASETS, DatasetConfig, ImageSet
from tasks.datasets.cifar import Cifar10Config, Cifar100Config
from tasks.datasets.digits import DigitsConfig
from tasks.datasets.folder import FolderConfig

__all__ = [
    "DATASETS",
    "DATA_VARIABLE",
    "Cifar10Config",
    "Cifar100Config",
    "DatasetConfig",
    "DigitsConfig",
    "FolderConfig",
    "ImageSet",
]
