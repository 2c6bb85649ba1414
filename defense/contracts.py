"""The purifier's contract suite under its former name; import it from :mod:`puregrid.testing`."""

from importlib import import_module
from typing import Any

from defense.deprecation import warn_deprecated

__all__ = ["PurifierContract"]  # noqa: F822 - found by __getattr__


def __getattr__(name: str) -> Any:
    if name != "PurifierContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_deprecated(
        "defense.contracts.PurifierContract",
        since="0.1.0",
        removal="0.3.0",
        instead="puregrid.testing.PurifierContract",
    )
    # By name, since nothing in this package may import from those above it.
    return getattr(import_module("puregrid.testing"), name)
