"""Where MLflow keeps the artifacts of a store: absolute in its database, and so wrong in a copy of the store.

An experiment of a store has its artifacts in ``FOLDER/mlartifacts/NAME``. In a database that was copied or moved with
its store, that FOLDER is another store, whose files a copy must not touch.
"""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["FOLDER", "local_path", "log_text", "other_store", "relocate"]

FOLDER = "mlartifacts"
"""The folder of artifacts beside a database."""

_BELOW = (("runs", "artifact_uri"), ("logged_models", "artifact_location"))
"""Tables whose locations lie below those of their experiment."""


def local_path(location: str) -> Path | None:
    """Return the path of a location on this machine, None for another."""
    if location.startswith("file:"):
        parts = urlsplit(location)
        return Path(unquote(parts.path)) if parts.netloc in ("", "localhost") and not parts.query else None
    return Path(location) if location.startswith("/") else None


def other_store(location: str, *folders: Path | None) -> Path | None:
    """Return the store whose artifacts are at a location, if that is none of these folders; None if it is no store's.

    Arguments:
        location: Of an experiment.
        folders: Where its artifacts may be.
    """
    path = local_path(location)
    if path is None or FOLDER not in path.parts:
        return None
    place = len(path.parts) - 1 - path.parts[::-1].index(FOLDER)
    store = Path(*path.parts[:place])
    ours = {os.path.realpath(folder) for folder in folders if folder is not None}
    return None if os.path.realpath(store) in ours else store


def log_text(client: Any, run: Any, path: str, text: str) -> None:
    """Write an artifact of a run; one on this machine atomically.

    MLflow's client remembers in its process where the artifacts of a run are, by the run's id alone: with a store and
    then with its copy, it would write to the first one.
    """
    folder = local_path(run.info.artifact_uri)
    if folder is None:
        client.log_text(run.info.run_id, text, path)
        return
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def relocate(database: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Let the experiments of a store's own database have their artifacts in this store.

    Arguments:
        database: The store's own database.
        folder: The store's folder.
        say: Is told where they were.
    """
    with contextlib.closing(sqlite3.connect(database, timeout=15, isolation_level=None)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        rows = connection.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
        moves = [(key, old, store) for key, old in rows if old and (store := other_store(old, folder)) is not None]
        if not moves:
            return
        connection.execute("BEGIN IMMEDIATE")
        for key, old, store in moves:
            path = local_path(old)
            assert path is not None
            new = (folder.absolute() / path.relative_to(store)).as_uri()
            connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, key))
            for table, column in _BELOW:
                if table in tables:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - names of ours
                        f"WHERE experiment_id = ? AND substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, key, len(old) + 1, f"{old}/"),
                    )
        connection.execute("COMMIT")
    stores = sorted({str(store) for _, _, store in moves})
    say(
        f"note: the MLflow database of this store had its artifacts in {', '.join(stores)}, from which it was copied "
        f"or moved; they are in {folder / FOLDER} now."
    )
