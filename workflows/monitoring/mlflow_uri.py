"""URIs of MLflow databases: which file one names, and by which URI MLflow finds a file."""

import atexit
import os
import re
import shlex
import shutil
import tempfile
from functools import cache
from pathlib import Path

from defense.redaction import redacted

__all__ = ["client_uri", "how_to_look", "is_own", "sqlite_path"]

_OPTIONS = re.compile(r"\w+=[^&/]*(?:&\w+=[^&/]*)*")


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite URI; None for other URIs and for databases in memory.

    What follows a ``?`` are SQLAlchemy's options, or belongs to the path if it cannot be that.
    """
    match = re.fullmatch(r"sqlite(?:\+pysqlite)?:///(?P<path>.+)", uri, re.DOTALL)
    if match is None:
        return None
    path, _, options = match["path"].partition("?")
    if options and not _OPTIONS.fullmatch(options):
        path = match["path"]
    return None if not path or path == ":memory:" or path.startswith("file:") else Path(path).absolute()


def is_own(uri: str, folder: Path | None) -> bool:
    """Return whether a URI is the database that a store, or the out folder of a training, has of itself.

    A link is somebody's own arrangement, and leads to a database that is not this folder's.
    """
    path = sqlite_path(uri)
    if path is None or folder is None or path.is_symlink():
        return False
    return path.name == "mlflow.db" and os.path.realpath(path.parent) == os.path.realpath(folder)


def client_uri(uri: str) -> str:
    """Return the URI by which MLflow finds a SQLite file; other URIs as they are.

    SQLAlchemy reads what follows a ``?`` as options, and ``%`` differently from version to version. A path with one
    of them is reached by a link without.
    """
    path = sqlite_path(uri)
    if path is None or ("%" not in str(path) and "?" not in uri):
        return uri
    if "?" not in str(path) and "%" not in str(path):
        return uri  # a plain path with options
    return f"sqlite:///{_link_to(path.parent) / path.name}"


@cache
def _link_to(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="puregrid-mlflow-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    link = place / "folder"
    link.symlink_to(folder, target_is_directory=True)
    return link


def how_to_look(uri: str) -> str:
    """Return the command that shows what is logged, for a shell."""
    path, folder = sqlite_path(uri), ""
    if path is not None and client_uri(uri) != uri:
        folder, uri = f"cd {shlex.quote(str(path.parent))} && ", f"sqlite:///{path.name}"
    return f"{folder}mlflow ui --backend-store-uri {shlex.quote(redacted(uri))} --host 127.0.0.1"
