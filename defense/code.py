"""The code of parts that are not puregrid's, as part of what they are.

A purifier that is named ``module:attribute`` or comes by an entry point is what its code does, and that changes
without a field changing. So specs of such classes, and those that name such an architecture, hold in their identity

* ``digest``: a sha256 of the source of the module and of every module beside it that it imports, however deep.
  *Beside* are the modules of the same top-level package and, unless it is installed, those whose top-level package or
  module lies in the same folder: of a research repository all that is its own;
* ``distribution``: name and version of the distribution that it was installed with, if any;
* ``version``: what the class says under ``version``, a constant that its author raises by hand for what no source
  shows (a data file, a library of their own elsewhere).

Other libraries that it uses are not followed. What this process has imported is what counts: the digest is made once,
and workers compare theirs with the driver's.
"""

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from defense.errors import InvalidInput

__all__ = ["Code", "code_of_class", "code_of_modules", "is_foreign", "is_foreign_field", "owners_of"]

OWN = frozenset({"defense", "puregrid", "tasks", "workflows"})
"""puregrid's own packages: their stages have versions instead."""

_LIBRARIES = frozenset({"abc", "builtins", "collections", "enum", "pydantic", "torch", "types", "typing"})
"""Where base classes come from that everybody has."""

_INSTALLED = frozenset({"site-packages", "dist-packages"})


class Code(NamedTuple):
    """The code of a part.

    Arguments:
        digest: 16 hex digits of the sha256 of its sources.
        distribution: ``name version``, empty for modules that no distribution installed.
        version: What its author has raised by hand, empty if nothing.
        modules: Names of the modules that the digest is of, sorted.
    """

    digest: str
    distribution: str
    version: str
    modules: tuple[str, ...]

    def identity(self) -> dict[str, str]:
        """Return what goes into the id; empty parts are left out."""
        parts = {"digest": self.digest, "distribution": self.distribution, "version": self.version}
        return {name: value for name, value in parts.items() if value}


def is_foreign(module: str) -> bool:
    """Return whether a module is neither puregrid's nor a library that every spec has its base classes from."""
    top = module.partition(".")[0]
    return top not in OWN and top not in _LIBRARIES


@cache
def is_foreign_field(kind: type, name: str) -> bool:
    """Return whether a field is declared by a class that is not puregrid's: its name may mean anything there."""
    declaring = next((base for base in kind.__mro__ if name in inspect.get_annotations(base)), kind)
    return declaring.__module__.partition(".")[0] not in OWN


def owners_of(value: Any) -> tuple[str, ...]:
    """Modules in which a thing was made: of a function or partial that of the function, of a class all its bases'.

    Own and library modules are left out.
    """
    while hasattr(value, "func"):  # functools.partial
        value = value.func
    kinds = inspect.getmro(value) if isinstance(value, type) else (value,)
    modules = [str(getattr(kind, "__module__", None) or "") for kind in kinds]
    return tuple(dict.fromkeys(module for module in modules if module and is_foreign(module)))


@cache
def code_of_class(kind: type) -> Code | None:
    """Return the code of a class; None of puregrid's own.

    Raises:
        InvalidInput: Its source cannot be read, so that a change would go unnoticed.
    """
    raised = getattr(kind, "version", None)
    by_hand = str(raised) if isinstance(raised, str | int | float) else ""
    return code_of_modules(owners_of(kind), by_hand)


@cache
def code_of_modules(owners: tuple[str, ...], version: str = "") -> Code | None:
    """Return the code of modules and of those beside them; None if there are none.

    Arguments:
        owners: Their names; all are imported.
        version: What their author has raised by hand.

    Raises:
        InvalidInput: A source cannot be read.
    """
    if not owners:
        return None
    sources: dict[str, bytes] = {}
    for owner in owners:
        for name, source in _beside(owner):
            sources[name] = source
    content = hashlib.sha256()
    for name in sorted(sources):
        content.update(f"{name}\0{len(sources[name])}\0".encode())
        content.update(sources[name])
    distributions = sorted(
        {distribution for owner in owners for distribution in _distributions(owner.partition(".")[0])}
    )
    return Code(content.hexdigest()[:16], ", ".join(distributions), version, tuple(sorted(sources)))


@cache
def _distributions(top: str) -> tuple[str, ...]:
    """Return name and version of every distribution that installed a top-level module.

    ``importlib.metadata.packages_distributions`` reads all that is said of every distribution there is, for half a
    second, which everybody would wait who plans a sweep with a part that is not puregrid's.
    """
    named: dict[str, str] = {}
    for distribution in distributions():
        if _installs(distribution, top):
            # Of two of a name the first on the path is the one that is imported.
            named.setdefault(distribution.metadata["Name"], distribution.version)
    return tuple(f"{name} {version}" for name, version in named.items())


def _installs(distribution: Distribution, top: str) -> bool:
    declared = (distribution.read_text("top_level.txt") or "").split()
    if declared:
        return top in declared
    record = distribution.read_text("RECORD")
    lines = [str(path) for path in distribution.files or ()] if record is None else record.splitlines()
    after = [line.removeprefix(top).partition(",")[0] for line in lines if line.startswith(top)]
    return any(rest.startswith("/") or (rest.startswith(".") and "/" not in rest) for rest in after)


def _beside(owner: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names and sources of a module and of the modules beside it that it imports."""
    waiting, seen = [owner], {owner}
    while waiting:
        name = waiting.pop()
        source = _source(name)
        yield name, source
        for module in (name, *_imports(name, source)):
            parts = module.split(".")
            # Whoever imports a module runs the packages that it lies in first.
            for other in (".".join(parts[:count]) for count in range(1, len(parts) + 1)):
                if other not in seen and _is_beside(other, owner):
                    seen.add(other)
                    waiting.append(other)


def _source(name: str) -> bytes:
    """Return the source of an imported module, with line ends as on Unix; of a compiled one its file."""
    module = sys.modules.get(name)
    path = _origin(name, module)
    if path is None:
        hint = (
            "put the class into a module of its own and import it from there"
            if name == "__main__"
            else "install it from source"
        )
        raise InvalidInput(
            f"the code of module {name!r} cannot be read, so that nobody could tell when it changes; {hint}."
        )
    data = path.read_bytes()
    return data.replace(b"\r\n", b"\n") if path.suffix == ".py" else data


def _origin(name: str, module: ModuleType | None) -> Path | None:
    place = getattr(_spec(name), "origin", None) if module is None else getattr(module, "__file__", None)
    path = None if place is None else Path(place)
    return path if path is not None and path.is_file() else None


def _spec(name: str) -> ModuleSpec | None:
    """Find a module that nothing has imported, and import nothing: other people's packages may fail, or take long."""
    top, *others = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
        for number in range(len(others)):
            if spec is None or spec.submodule_search_locations is None:
                return None
            at = ".".join([top, *others[: number + 1]])
            spec = PathFinder.find_spec(at, list(spec.submodule_search_locations))
    except (ImportError, ValueError):
        return None
    return spec


def _folder(top: str) -> Path | None:
    """Return the folder in which a top-level module or package lies, with an ``__init__.py`` or without."""
    path = _origin(top, sys.modules.get(top))
    if path is not None:
        return (path.parents[1] if path.stem == "__init__" else path.parent).resolve()
    spec = _spec(top)
    places = list((spec and spec.submodule_search_locations) or ())
    return Path(places[0]).parent.resolve() if places else None


def _imports(name: str, source: bytes) -> Iterator[str]:
    """Modules that a source may import, wherever in it, relative names resolved."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # compiled
        return
    path = _origin(name, sys.modules.get(name))
    package = name if path is not None and path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = package.split(".")
                parents = parts[: len(parts) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            else:
                base = node.module or ""
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)


def _is_beside(name: str, owner: str) -> bool:
    """Return whether a module belongs to the top-level package of ``owner``, or lies in the folder of that."""
    if not is_foreign(name):
        return False
    top, own = name.partition(".")[0], owner.partition(".")[0]
    if top != own:
        home = _folder(own)
        # Neighbours of what is installed are other people's, and so is what was installed beside it.
        if home is None or _INSTALLED & set(home.parts) or _folder(top) != home:
            return False
        if not set(_distributions(top)) <= set(_distributions(own)):
            return False
    return _origin(name, sys.modules.get(name)) is not None
