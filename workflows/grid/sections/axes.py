"""The axes of a grid, and how many cells they make."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from defense.classifiers import ClassifierConfig
from defense.errors import InvalidInput
from defense.purifiers import PurifierConfig
from defense.spec import Spec
from tasks.attacks import AttackConfig
from tasks.certificates import CertificateConfig
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import DatasetConfig
from workflows.documents.document import Document, Keys
from workflows.documents.entries import combinations

__all__ = ["BASES", "BESIDE", "GRID_AXES", "MOST_CELLS", "THREATS", "check_product", "check_size"]

MOST_CELLS = 1_000_000
"""Cells of a sweep; the largest that is shipped has 284."""

THREATS = ("attacks", "corruptions", "certificates")
GRID_AXES = ("datasets", "classifiers", "defences", *THREATS, "seeds")
BASES: dict[str, type[Spec]] = {
    "dataset": DatasetConfig,
    "classifier": ClassifierConfig,
    "defence": PurifierConfig,
    "attack": AttackConfig,
    "corruption": CorruptionConfig,
    "certificate": CertificateConfig,
}
BESIDE = frozenset({"images", "converge"})
"""Fields of entries that are not those of a config."""


def check_size(document: Document, include: Sequence[Any]) -> None:
    """Refuse a grid of too many cells before a config is made of any entry."""
    data = document.data
    grids: list[tuple[Keys, dict[str, Any]]] = [((), data)]
    for position, entry in enumerate(include):
        if isinstance(entry, dict):
            own = entry if any(axis in entry for axis in THREATS) else data
            grids.append((("include", position), {**data, **dict.fromkeys(THREATS), **own, **entry}))
    total = 0
    for keys, grid in grids:
        counts = {axis: _count(axis, grid.get(axis)) for axis in GRID_AXES}
        total += _check_count(document, counts, keys, total)


def _count(axis: str, section: Any) -> int:
    """Return about how many values an axis has; mistakes in it are found later."""
    entries = section if isinstance(section, list) else []
    base = BASES.get(axis.removesuffix("s"))
    total = 0
    for entry in entries:
        if base is None or not isinstance(entry, dict):
            total += 1
            continue
        named = entry.get(base.named_by or "")
        try:
            kind = type(named) if isinstance(named, base) else base.entry_class(entry)
        except InvalidInput:
            kind = base
        total += combinations({name: value for name, value in entry.items() if name not in BESIDE}, kind)
    return total


def check_product(document: Document, axes: Mapping[str, Sequence[Any]], keys: Keys, before: int = 0) -> None:
    """Refuse a grid of too many cells before they are made."""
    _check_count(document, {axis: len(values) for axis, values in axes.items()}, keys, before)


def _check_count(document: Document, counts: dict[str, int], keys: Keys, before: int) -> int:
    """Return the product of the axes.

    Raises:
        InvalidInput: It is too large, with what was there ``before``; at the longest axis.
    """
    threats = {axis: counts[axis] for axis in THREATS}
    factors = {axis: max(1, count) for axis, count in counts.items() if axis not in threats}
    cells = math.prod(factors.values()) * max(1, sum(threats.values()))
    if before + cells <= MOST_CELLS:
        return cells
    longest = max(counts, key=lambda axis: counts[axis])
    product = " x ".join(f"{count:,} {axis}" for axis, count in (*factors.items(), *threats.items()) if count > 1)
    raise document.error(
        (*keys, longest),
        f"the grid has {before + cells:,} cells ({product}), more than {MOST_CELLS:,}, which one sweep can "
        "hold. A list inside an entry is an axis too, and axes multiply: shorten some, or write several sweep "
        "files, which share what they have in common.",
    )
