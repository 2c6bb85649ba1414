"""MLflow's SQLite database: made whole or not at all, looked at before MLflow opens it, and kept out of other stores.

MLflow makes its tables one by one in the file that everybody sees. Two processes that do so at once, a kill or a full
disk leave a database that no later start of MLflow mends. So a new one is made under another name and linked into
place, and :func:`trouble` says of one that is there what is wrong with it.

The database of a store, ``mlflow.db`` in its folder, is derived from rows. Only such a one is set aside
(:func:`set_aside`), under a lock (:func:`exclusive`) that every writer of the store holds; a database that a user has
named is never touched.
"""

import contextlib
import errno
import fcntl
import glob
import os
import re
import shlex
import shutil
import socket
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from urllib.parse import quote

from defense.errors import PuregridError
from workflows.monitoring.artifact_places import relocate
from workflows.monitoring.mlflow_client import BoundedClient
from workflows.monitoring.mlflow_uri import is_own, sqlite_path

__all__ = ["Busy", "damage", "exclusive", "prepare", "set_aside", "trouble"]

_MAGIC = b"SQLite format 3\x00"
_COMPANIONS = ("-journal", "-wal", "-shm")
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

_LOCK = ".mlflow.lock"
_LOCK_SECONDS = 600.0
"""How long another driver may write to MLflow before this one gives up."""

_MAKING_SECONDS = 240.0
"""How long MLflow may take for its tables: ten seconds of one core, which others may want too."""

_STILL_SECONDS = 6.0
"""A half-made database that does not change for so long is not being made by anybody."""


class Busy(PuregridError):
    """Another process writes to MLflow of this store, for longer than one waits."""


@contextlib.contextmanager
def exclusive(
    folder: Path | None, say: Callable[[str], None] = lambda _: None, seconds: float = _LOCK_SECONDS
) -> Iterator[None]:
    """Be the only process that writes to MLflow for a store; the lock ends with the process, however that ends.

    Arguments:
        folder: The store's folder; None, a bucket, has no lock.
        say: Is told of another process that is waited for.
        seconds: How long to wait for it.

    Raises:
        Busy: It still has the lock.
    """
    handle = None if folder is None else _lock_file(folder)
    if handle is None:
        yield
        return
    try:
        _acquire(handle, seconds, say)
        with contextlib.suppress(OSError):  # for the message of others; a full disk is no reason to stop
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{socket.gethostname()} {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(handle)


def _lock_file(folder: Path) -> int | None:
    """The lock of a store; None where none can be made, as in a store that may only be read."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError:
        return None


def _acquire(handle: int, seconds: float, say: Callable[[str], None]) -> None:
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            if time.monotonic() - began > seconds:
                raise Busy(f"process {who} has been writing to it for {seconds:.0f} s") from None
            if not told and time.monotonic() - began > 2:
                say(f"waiting for process {who}, which writes to MLflow of this store.")
                told = True
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            say("note: the store's file system has no locks: let one driver after the other log to MLflow.")
            return
        else:
            return


def prepare(uri: str, folder: Path | None, say: Callable[[str], None], *, derived: bool = True) -> None:
    """Have a whole SQLite database where MLflow will look for one; nothing to do for any other URI.

    Arguments:
        uri: Tracking URI.
        folder: The store's folder, whose lock the caller holds.
        say: Is told of what is set aside or moved.
        derived: Whether the folder's own database can be made again from what else is there.

    Raises:
        PuregridError: The database cannot be used, and is not the store's own, which would be made anew.
    """
    path = sqlite_path(uri)
    if path is None:
        return
    own = is_own(uri, folder)
    try:
        if own:
            for left in path.parent.glob(f".{path.name}.new-*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        if not os.path.lexists(path):
            _make(path)
            return
        wrong = trouble(path)
        if wrong is not None and not (own and derived):
            raise PuregridError(f"{wrong}. {_REMEDY}")
        if wrong is not None:
            set_aside(path, wrong, say)
            _make(path)
        elif own:
            assert folder is not None
            relocate(path, folder, say)
    except OSError as error:
        raise PuregridError(f"{error.strerror or error} ({error.filename or path})") from error
    except sqlite3.Error as error:
        raise PuregridError(f"{type(error).__name__}: {error}") from error


_REMEDY = (
    "puregrid does not touch a database that may hold more than its own runs: move it away or restore it from a copy "
    "(one of another version of MLflow: `mlflow db upgrade URI`, or that version), or name another"
)


def trouble(path: Path, *, write: bool = True) -> str | None:
    """Return what is wrong with a database, None if MLflow can use it.

    Arguments:
        path: A file, or whatever lies in its place.
        write: Whether it is to be written.

    Raises:
        PuregridError: It is locked, or may not be written: not broken, but of no use now.
    """
    place = path.stat() if path.exists() else path.lstat()
    if not stat.S_ISREG(place.st_mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISLNK, "a link to nothing"))
        return f"it is {next((name for is_kind, name in kinds if is_kind(place.st_mode)), 'a device')}, not a file"
    if not place.st_size:
        return "it is an empty file"
    try:
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
    except PermissionError:
        return f"it may not be read by you; it belongs to user {place.st_uid}"
    if head != _MAGIC:
        return "it is no SQLite database"
    if write and not os.access(path, os.W_OK, effective_ids=True):
        raise PuregridError(f"you may not write to {path}, which belongs to user {place.st_uid}")
    wrong = _inside(path)
    end = time.monotonic() + _STILL_SECONDS
    while wrong is not None and abs(time.time() - path.stat().st_mtime) < 60 and time.monotonic() < end:
        before = path.stat().st_mtime_ns  # `mlflow ui`, started by hand, may be making it now
        time.sleep(0.5)
        if path.stat().st_mtime_ns != before:
            end = time.monotonic() + _STILL_SECONDS
        wrong = _inside(path)
    return wrong


def _inside(path: Path) -> str | None:
    """What is wrong in a SQLite file: its pages, or MLflow's tables."""
    # One that may not be written cannot have a torn transaction that must be rolled back first.
    mode = (
        "rw"
        if os.access(path, os.W_OK, effective_ids=True) and os.access(path.parent, os.W_OK, effective_ids=True)
        else "ro"
    )
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=15)
        ) as database:
            database.text_factory = bytes
            (found,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            if found != b"ok":
                return f"it is damaged ({found.decode(errors='replace').splitlines()[-1][:120]})"
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name.decode(errors="replace") for (name,) in names}
            revisions = []
            if "alembic_version" in tables:
                found = database.execute("SELECT version_num FROM alembic_version").fetchall()
                revisions = [revision.decode(errors="replace") for (revision,) in found]
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None or code & 0xFF not in _CORRUPT:
            raise PuregridError(f"{type(error).__name__}: {error} ({path})") from error
        return f"it is damaged ({error})"
    return _schema(tables, revisions)


def _schema(tables: set[str], revisions: list[str]) -> str | None:
    if any(name.startswith("_alembic_tmp_") for name in tables) or len(revisions) != 1:
        return "its tables are half made"
    newest, known = _revisions()
    (revision,) = revisions
    if newest is not None and revision != newest:
        how = "an older" if revision in known else "a newer or foreign"
        return f"its tables are those of {how} version of MLflow (revision {revision}, not {newest})"
    missing = _tables() - tables
    return f"it has no table {min(missing)!r}" if missing else None


@cache
def _revisions() -> tuple[str | None, frozenset[str]]:
    """The revision of the installed MLflow's tables, None if its scripts do not say, and all that it knows."""
    import mlflow

    known, followed = set(), set()
    for script in (Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions").glob("*.py"):
        text = script.read_text(encoding="utf-8")
        known |= set(re.findall(r"^revision\b[^=\n]*=\s*[\"'](\w+)", text, re.MULTILINE))
        for earlier in re.findall(r"^down_revision\b[^=\n]*=(.*)$", text, re.MULTILINE):
            followed |= set(re.findall(r"[\"'](\w+)[\"']", earlier))
    newest = known - followed
    return (newest.pop() if len(newest) == 1 else None), frozenset(known)


@cache
def _tables() -> frozenset[str]:
    """The tables without which MLflow would begin to make its tables anew."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - its import declares them
    from mlflow.store.db.base_sql_model import Base

    return frozenset(Base.metadata.tables)


def damage(error: BaseException) -> str | None:
    """Return what an error says of the database that raised it; None if not that it is damaged."""
    link: BaseException | None = error
    while link is not None:
        code = getattr(link, "sqlite_errorcode", None)
        foreign_tables = code == sqlite3.SQLITE_ERROR and re.match(
            r"no such (table|column)|table .* has no", str(link)
        )
        if code is not None and (code & 0xFF in _CORRUPT or foreign_tables):
            return f"it is damaged ({link})"
        link = link.__cause__ or link.__context__
    return None


def set_aside(path: Path, why: str, say: Callable[[str], None]) -> Path:
    """Rename a store's database, with what SQLite keeps beside it; returns where it is. The caller has the lock.

    Arguments:
        path: The database.
        why: What is wrong with it.
        say: Is told.
    """
    target = _begun(path) or _unused(path)
    _move_companions(path, target)  # first: a journal that stays would be played back into the next database
    path.rename(target)
    say(
        f"note: the MLflow database {path} cannot be used: {why}. It is set aside as {target.name}, nothing is "
        "deleted, and a new one is made from the rows. "
        f"`puregrid track --store {shlex.quote(str(path.parent))}` logs all sweeps of this store again."
    )
    return target


def _begun(path: Path) -> Path | None:
    """Where a process was setting the database aside when it was killed: companions are there, and it is not."""
    for end in _COMPANIONS:
        for companion in path.parent.glob(f"{glob.escape(path.name)}.broken-*{end}"):
            target = companion.with_name(companion.name.removesuffix(end))
            if not os.path.lexists(target) and not any(
                os.path.lexists(f"{path}{other}") and os.path.lexists(f"{target}{other}") for other in _COMPANIONS
            ):
                return target
    return None


def _unused(path: Path) -> Path:
    """A name for a database that is set aside now."""
    now, number = f"{datetime.now(UTC):%Y%m%dT%H%M%S}", 1
    target = path.with_name(f"{path.name}.broken-{now}")
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}.broken-{now}-{number}")
    return target


def _move_companions(path: Path, target: Path) -> None:
    for end in _COMPANIONS:
        companion = path.with_name(path.name + end)
        if os.path.lexists(companion):
            companion.rename(target.with_name(target.name + end))


def _make(path: Path) -> None:
    """Make a database with MLflow's tables beside its place, then put it there, unless another was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        made = folder / "mlflow.db"
        BoundedClient(f"sqlite:///{made}", _MAKING_SECONDS).search_experiments(max_results=1)
        with made.open("rb+") as file:
            os.fsync(file.fileno())
        _move_companions(path, path.with_name(f"{path.name}.left-{datetime.now(UTC):%Y%m%dT%H%M%S}"))
        with contextlib.suppress(FileExistsError):
            try:
                os.link(made, path)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                if not os.path.lexists(path):
                    made.rename(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
