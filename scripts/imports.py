"""Read the imports of the house: which module of the four packages imports which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PACKAGES", "house", "imports"]

PACKAGES = ("puregrid", "workflows", "tasks", "defense")
"""A package imports those behind it."""


def house(root: Path) -> dict[str, set[str]]:
    """Return the modules of the house by full name, each with the modules of the house that it imports.

    Arguments:
        root: Folder that holds the packages.
    """
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {_name(path, root): set(imports(path, root)) for path in files}


def imports(path: Path, root: Path) -> Iterator[str]:
    """Yield the full names of the modules of the house that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            # What is imported may be a module itself.
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if _is_module(name, root) else node.module for name in inside]
        else:
            continue
        yield from (name for name in dict.fromkeys(names) if name.split(".")[0] in PACKAGES)


def _is_module(name: str, root: Path) -> bool:
    path = root / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
