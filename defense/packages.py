"""Which command installs a third-party package that is missing.

Packages that only some parts need are imported inside functions, below ``with installed(...)``, so that one that is
missing is a message with its ``pip install`` and not a traceback. ``pip install puregrid`` brings what ``defense``
needs, for a notebook. What runs sweeps, logs them and writes reports are the extras ``run``, ``mlflow`` and
``report``; ``all`` is the three.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from defense.errors import InvalidInput

__all__ = ["BASE", "EXTRAS", "MissingPackage", "installed"]

EXTRAS = {
    "run": ("fsspec", "pandas", "pyarrow", "ray", "rich", "sklearn", "typer", "yaml"),
    "mlflow": ("mlflow",),
    "report": ("jinja2", "markupsafe", "matplotlib"),
    "timm": ("timm",),
    "robustbench": ("pkg_resources", "pyautoattack", "robustbench"),
}
"""The top-level modules of the packages of each extra."""

BASE = {
    "diffusers": "diffusers",
    "huggingface_hub": "huggingface-hub",
    "lpips": "lpips",
    "numpy": "numpy",
    "PIL": "pillow",
    "pydantic": "pydantic",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "torch": "torch",
    "torchmetrics": "torchmetrics",
    "torchvision": "torchvision",
}
"""The distributions that puregrid itself depends on, by their top-level modules."""

_IN_ALL = ("run", "mlflow", "report")


class MissingPackage(InvalidInput, ImportError):
    """A third-party package is needed and not installed."""


@contextmanager
def installed(what: str = "this") -> Iterator[None]:
    """Name the pip command where a package that puregrid knows cannot be imported.

    Arguments:
        what: What needs it, as the subject of the message.

    Raises:
        MissingPackage: A package is missing. Modules of other packages are import errors as ever.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        for extra, modules in EXTRAS.items():
            if module in modules:
                everything = ", or 'puregrid[all]' for everything" if extra in _IN_ALL else ""
                raise MissingPackage(
                    f"{what} needs {module}, of puregrid's extra `{extra}`, which is not installed: "
                    f"pip install 'puregrid[{extra}]'{everything}."
                ) from error
        if module in BASE:
            raise MissingPackage(
                f"{what} needs {module}, which is not installed: pip install {BASE[module]}."
            ) from error
        raise
