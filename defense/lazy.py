"""Public names that are imported when somebody asks for them (PEP 562).

A package lists its public names by the module that each lives in. Importing the package then costs nothing, and
``from package import name``, ``package.name``, ``package.module`` and ``dir(package)`` are as if it had imported all.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy"]


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__``.

    A name must not be that of a submodule too: Python binds a submodule to its package when it is first imported, and
    the name would then mean the module.

    Arguments:
        package: The package's ``__name__``.
        homes: By module, the public names that live in it, separated by spaces.

    Returns:
        ``__getattr__`` and ``__dir__``.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        if name in home:
            value = getattr(importlib.import_module(home[name]), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # asked for once
        return value

    def names() -> list[str]:
        module = vars(sys.modules[package])
        return sorted({*module, *module["__all__"]})

    return get, names
