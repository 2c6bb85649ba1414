"""The purifier's contract suite under its former name; import it from :mod:`puregrid.testing`."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

__all__ = ["PurifierContract"]  # noqa: F822 - found by __getattr__


def __getattr__(name: str) -> Any:
    if name != "PurifierContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "defense.contracts is deprecated: write `from puregrid.testing import PurifierContract`.",
        DeprecationWarning,
        stacklevel=2,
    )
    # By name, since nothing in this package may import from those above it.
    return getattr(import_module("puregrid.testing"), name)
