"""Sweeps that come with puregrid, by their bare name from any folder: ``quickstart``, ``papers/agdm-cifar10``."""

import os
from pathlib import Path

from defense.errors import InvalidInput, nearest
from defense.files import path_of

__all__ = ["bundled_folder", "bundled_sweeps", "find_sweep"]

_FOLDER = Path(__file__).parents[1] / "sweeps"


def bundled_folder() -> Path:
    """Return the folder of the sweeps that come with puregrid."""
    return _FOLDER.resolve()


def bundled_sweeps() -> dict[str, Path]:
    """Return the file of each bundled sweep by its name, the path below the folder of sweeps without ``.yaml``."""
    files = sorted(_FOLDER.rglob("*.yaml"))
    return {path.relative_to(_FOLDER).with_suffix("").as_posix(): path for path in files}


def find_sweep(name: str | Path) -> Path:
    """Return the file of a sweep that is named by path or by bare name.

    Arguments:
        name: A path; or a name without ``.yaml``: of a file in the working directory, else of a bundled sweep.

    Returns:
        The file. A path that ends in ``.yaml`` is returned as it is, whether or not it exists.

    Raises:
        InvalidInput: A bare name that nothing has, or a bundled sweep's with ``.yaml`` where there is no such file.
    """
    path_of(name, "the sweep file", where=str(name))
    path, bundled = Path(name), bundled_sweeps()
    if os.path.lexists(path) and not (path.is_dir() and path.as_posix() in bundled):
        return path
    if path.suffix in (".yaml", ".yml"):
        if (bare := path.with_suffix("").as_posix()) in bundled:
            raise InvalidInput(f"there is no such file; the bundled sweep is called {bare!r}.", where=str(name))
        return path
    # Not `with_suffix`, which would replace the end of a name with a dot in it.
    beside = path.with_name(f"{path.name}.yaml") if path.name else path
    if beside.exists():
        return beside
    if path.as_posix() in bundled:
        return bundled[path.as_posix()]
    raise InvalidInput(
        f"there is no such file, no {beside} and no bundled sweep of this name; {nearest(path.as_posix(), bundled)}",
        where=str(name),
    )
