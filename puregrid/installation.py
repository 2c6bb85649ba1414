"""Check that Python finds puregrid's own packages, and not others of the same names.

puregrid is four top-level packages. Other distributions install a ``workflows``, ``tasks`` or ``defense`` too: into
the same folder, where the last one installed overwrites the other's files, or into one that comes earlier on Python's
path, as does a ``tasks.py`` in the working directory. Without this check that ends in an import error about an
unknown module, or in running the code of another package.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import Distribution

__all__ = ["check_installation", "problem"]

_NAMES = ("defense", "tasks", "workflows")
_MARK = "# This package is part of puregrid."
"""A line of each package's ``__init__.py``."""


def check_installation() -> None:
    """Check that Python imports the three packages beside this one.

    Raises:
        ImportError: One is not, with the distribution that is in the way and what to do. The command line prints the
            message and ends with status 2.
    """
    message = problem(Path(__file__).parents[1])
    if message is None:
        return
    if _is_command():
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(message)


def _is_command() -> bool:
    """Return whether the program is ``puregrid`` or ``python -m puregrid``."""
    if sys.argv and Path(sys.argv[0]).stem == "puregrid":
        return True
    words = sys.orig_argv
    return "-m" in words and words[words.index("-m") + 1 :][:1] == ["puregrid"]


def problem(root: Path) -> str | None:
    """Return what is wrong with the packages that Python finds.

    Arguments:
        root: The folder in which puregrid's packages lie.

    Returns:
        A message, None if all is well.
    """
    for name in _NAMES:
        ours, origin = root / name / "__init__.py", _origin(name)
        if origin is None and (folder := _folder(name)) is not None:
            return _hidden(name, folder, ours)
        if origin is None:
            return (
                f"puregrid's package `{name}` is missing from {root}: another distribution's uninstallation may have "
                "removed it. Install puregrid again: pip install --force-reinstall --no-deps puregrid"
            )
        if origin == ours.resolve():
            if _MARK not in ours.read_text(encoding="utf-8", errors="replace"):
                return _overwritten(name, ours)
        else:
            return _hidden(name, origin, ours)
    return None


def _origin(name: str) -> Path | None:
    """Return the file that is or would be imported."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
    else:
        spec = importlib.util.find_spec(name)
        file = None if spec is None else spec.origin
    return None if file is None else Path(file).resolve()


def _folder(name: str) -> Path | None:
    """Return the folder without an ``__init__.py`` that is taken for a package.

    A package in any folder of Python's path goes before such a one, but one that an editable installation brings by a
    finder of its own comes after it.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]).resolve() if places else None


def _overwritten(name: str, file: Path) -> str:
    culprit = _owner(name, file.resolve())
    who = "another distribution" if culprit is None else _named(culprit)
    remove = "" if culprit is None else f"pip uninstall {culprit.metadata['Name']}; "
    return (
        f"puregrid's package `{name}` in {file.parent} has been overwritten by {who}, which installs a `{name}` too, "
        "and one environment has room for one. Install puregrid in an environment of its own (python -m venv), or "
        f"give it this one: {remove}pip install --force-reinstall --no-deps puregrid"
    )


def _hidden(name: str, origin: Path, ours: Path) -> str:
    culprit = _owner(name, origin)
    place = origin.parent if origin.name == "__init__.py" else origin
    if culprit is not None:
        return (
            f"puregrid's package `{name}` is hidden by {_named(culprit)}, whose `{name}` in {place} comes before "
            f"{ours.parent} on Python's path. Install puregrid in an environment of its own (python -m venv), or "
            f"uninstall the other: pip uninstall {culprit.metadata['Name']}"
        )
    return (
        f"puregrid's package `{name}` is hidden by {place}, which belongs to no installed distribution and comes "
        f"before {ours.parent} on Python's path. Rename it, start Python in another folder, or take its folder "
        "out of PYTHONPATH."
    )


def _named(distribution: Distribution) -> str:
    return f"the distribution {distribution.metadata['Name']} {distribution.version}"


def _owner(name: str, file: Path) -> Distribution | None:
    """Return the distribution, other than puregrid, that installed a file of a top-level package."""
    from importlib.metadata import distributions  # takes a third of the time of `import puregrid`, for nothing

    for distribution in distributions():
        if (distribution.metadata["Name"] or "").lower() == "puregrid":
            continue
        record = distribution.read_text("RECORD") or distribution.read_text("installed-files.txt") or ""
        for line in record.splitlines():
            path = line.partition(",")[0]
            if path in (f"{name}/__init__.py", f"{name}.py") and _located(distribution, path) == file:
                return distribution
    return None


def _located(distribution: Distribution, path: str) -> Path:
    return Path(str(distribution.locate_file(path))).resolve()
