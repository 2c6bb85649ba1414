"""Name the extra of puregrid that holds a missing package.

``pip install puregrid`` brings what ``defense`` needs, for a notebook. What runs sweeps, logs them and writes reports
are the extras ``run``, ``mlflow`` and ``report``; ``all`` is the three.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from defense.errors import PuregridError

__all__ = ["MODULES", "MissingExtra", "extras"]

MODULES = {
    "run": ("fsspec", "pandas", "pyarrow", "ray", "rich", "sklearn", "typer", "yaml"),
    "mlflow": ("mlflow",),
    "report": ("jinja2", "markupsafe"),
}
"""The top-level modules of the packages of each extra."""


class MissingExtra(PuregridError, ImportError):
    """A package of an extra is needed and not installed."""


@contextmanager
def extras() -> Iterator[None]:
    """Name the extra and its pip command where a package of one cannot be imported.

    Raises:
        MissingExtra: A package of an extra is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        for extra, modules in MODULES.items():
            if module in modules:
                raise MissingExtra(
                    f"this needs {module}, of puregrid's extra `{extra}`, which is not installed: "
                    f"pip install 'puregrid[{extra}]', or 'puregrid[all]' for everything."
                ) from error
        raise
