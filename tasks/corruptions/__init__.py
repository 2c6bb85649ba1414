"""Common corruptions: the benchmark's fifteen and its four extra ones, on any data set."""

from tasks.corruptions.base import SEVERITIES, Corrupted, Corruption
from tasks.corruptions.generate import BENCHMARK, CORRUPTIONS, EXTRA, corrupt
from tasks.corruptions.weather import FROST_FILES, Photographs

__all__ = [
    "BENCHMARK",
    "CORRUPTIONS",
    "EXTRA",
    "FROST_FILES",
    "SEVERITIES",
    "Corrupted",
    "Corruption",
    "Photographs",
    "corrupt",
]
