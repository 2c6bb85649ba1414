"""Public names that are imported on first use (PEP 562).

A package writes the imports of its public names below ``if TYPE_CHECKING:``, where type checkers and people look for
them. :func:`lazy` reads them there and does each when its name is used first. Importing the package costs nothing,
and ``from package import name``, ``package.name``, ``package.module`` and ``dir(package)`` are as if it had done all.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["lazy"]


def lazy(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__``.

    A name must not be that of a submodule too: Python binds a submodule to its package when it is first imported, and
    the name would then mean the module.

    Arguments:
        package: The package's ``__name__``.
        file: Its ``__file__``.

    Returns:
        ``__getattr__`` and ``__dir__``.
    """
    homes = _homes(Path(file).read_text(encoding="utf-8"))

    def get(name: str) -> Any:
        if homes.get(name, package) != package:
            value = getattr(importlib.import_module(homes[name]), name)
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


def _homes(source: str) -> dict[str, str]:
    """By name the module that it is imported from, of what is imported for type checkers alone."""
    return {
        alias.name: statement.module
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom) and statement.module is not None
        for alias in statement.names
    }
