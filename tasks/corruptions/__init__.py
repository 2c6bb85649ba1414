"""Common corruptions: the benchmark's fifteen and its four extra ones, on any data set."""

from tasks.corruptions.base import SEVERITIES, Corrupted, Corruption, Origin
from tasks.corruptions.generate import BENCHMARK, CORRUPTIONS, EXTRA, VERSION, corrupt
from tasks.corruptions.weather import FROST_FILES, Photographs

__all__ = [
    "BENCHMARK",
    "CORRUPTIONS",
    "EXTRA",
    "FROST_FILES",
    "SEVERITIES",
    "VERSION",
    "Corrupted",
    "Corruption",
    "Origin",
    "Photographs",
    "corrupt",
]
